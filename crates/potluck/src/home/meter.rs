//! What is used of grants that say how much in a day: counted over restarts.

use potluck_grant::{ByteMeter, GrantId, Keep, Meter};
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::Home;
use crate::{commands::swarm::utc_now, failure::Failure};

/// Of which link, on which day (since 1970), how much.
const USED: TableDefinition<'_, [u8; 16], (u64, u64)> = TableDefinition::new("used");

const DAY_SECONDS: u64 = 86_400;

/// Who counts: each for what it serves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Positions that a stage computes.
    Peer,
    /// Tokens that a gateway answers with.
    Gateway,
    /// Bytes to and from services that this machine exposes.
    Tunnel,
}

/// What is kept of a day, and what keeps it.
type Kept = (u64, Vec<(GrantId, u64)>, Keep);

/// The meter of this machine's peer or gateway. Where another process has it, whatever has a limit is refused here.
pub(crate) fn meter(home: &Home, counted: Counted) -> Result<Meter, Failure> {
    let (day, used, keep) = kept(home, counted)?;
    Ok(Meter::kept(day, used, keep))
}

/// The meter of what this machine exposes, with the same exception.
pub(crate) fn byte_meter(home: &Home) -> Result<ByteMeter, Failure> {
    let (day, used, keep) = kept(home, Counted::Tunnel)?;
    Ok(ByteMeter::kept(day, used, keep))
}

fn kept(home: &Home, counted: Counted) -> Result<Kept, Failure> {
    let name = match counted {
        Counted::Peer => "used-peer.redb",
        Counted::Gateway => "used-gateway.redb",
        Counted::Tunnel => "used-tunnel.redb",
    };
    let path = home.path(name);
    let today = utc_now() / DAY_SECONDS;
    let database = match Database::create(&path) {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            let elsewhere = |_, _, _| Err("another process of this machine counts".to_owned());
            return Ok((today, Vec::new(), Box::new(elsewhere)));
        }
        Err(error) => return Err(unreadable(&path, &error)),
    };
    let used = read(&database, today).map_err(|error| unreadable(&path, &error))?;
    let keep = move |day, link: GrantId, used| write(&database, (day, link, used)).map_err(|error| error.to_string());
    Ok((today, used, Box::new(keep)))
}

fn unreadable(path: &std::path::Path, error: &dyn std::fmt::Display) -> Failure {
    let message = format!("{}: {error}", path.display());
    Failure::new("meter", message, "restore it from a copy, or remove it: the day is counted anew")
}

/// What was used on that day. What is older is removed.
fn read(database: &Database, today: u64) -> Result<Vec<(GrantId, u64)>, redb::Error> {
    let writing = database.begin_write()?;
    // Made where it is not there, so that it can be read.
    writing.open_table(USED)?.retain(|_, (day, _)| day >= today)?;
    writing.commit()?;
    let table = database.begin_read()?.open_table(USED)?;
    let mut used = Vec::new();
    for row in table.iter()? {
        let (link, kept) = row?;
        used.push((GrantId::from_bytes(link.value()), kept.value().1));
    }
    Ok(used)
}

fn write(database: &Database, (day, link, used): (u64, GrantId, u64)) -> Result<(), redb::Error> {
    let writing = database.begin_write()?;
    writing.open_table(USED)?.insert(*link.as_bytes(), (day, used))?;
    writing.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use potluck_core::SecretKey;
    use potluck_grant::{Caveats, Gate, GrantError, Role, Root};

    use super::*;

    #[test]
    fn what_was_used_is_used_after_a_restart_too() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), crate::args::Reach::default()).unwrap();
        let (root, holder) = (Root::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]).peer_id());
        let caveats =
            Caveats { role: Some(Role::Guest), until: Some(u64::MAX), tokens_per_day: Some(100), ..Caveats::default() };
        let grant = root.grant_as(holder, &caveats).unwrap().into_bytes();
        let chain = Gate::new(root.public()).read(&grant).unwrap();
        let now = utc_now();
        let mut first = meter(&home, Counted::Peer).unwrap();
        first.charge(chain.scope(), 60, now).unwrap();
        let mut beside = meter(&home, Counted::Peer).unwrap();
        assert!(matches!(beside.charge(chain.scope(), 1, now), Err(GrantError::Uncounted(_))), "one at a time");
        meter(&home, Counted::Gateway).unwrap().charge(chain.scope(), 100, now).unwrap();
        drop(first);
        let mut second = meter(&home, Counted::Peer).unwrap();
        assert!(matches!(second.charge(chain.scope(), 41, now), Err(GrantError::Spent { .. })));
        second.charge(chain.scope(), 40, now).unwrap();

        let caveats = Caveats { bytes_per_day: Some(1 << 30), tokens_per_day: None, ..caveats };
        let grant = root.grant_as(holder, &caveats).unwrap().into_bytes();
        let chain = Gate::new(root.public()).read(&grant).unwrap();
        byte_meter(&home).unwrap().charge(chain.scope(), 1 << 29, now).unwrap();
        let mut again = byte_meter(&home).unwrap();
        assert!(matches!(again.charge(chain.scope(), (1 << 29) + 1, now), Err(GrantError::BytesSpent { .. })));
        again.charge(chain.scope(), 1 << 29, now).unwrap();
    }
}
