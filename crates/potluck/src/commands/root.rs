//! `potluck swarm root`: the key that all of a swarm's authority rests on.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use clap::Args;
use potluck_core::Revoked;
use potluck_grant::{Gate, GrantError, GrantId};
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    authority::{read_revoked, spread},
    join::keys,
    swarm::{days_from, utc_now},
};
use crate::{
    args::RootArgs,
    failure::Failure,
    home::{
        Form, Home, Invitations, Membership, Passphrase, RootKept, SwarmRoot, issued, keep_revocations, lock_rotation,
    },
    screen::Screen,
    talk::client_node,
};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").args(["lock", "unlock", "export", "rotate"]))]
pub(crate) struct RootKey {
    /// Lock it by a passphrase, which is asked for twice; one that is named with --root is kept here, too
    #[arg(long)]
    lock: bool,
    /// Keep it as it is again, so that newcomers are let in while nobody is there
    #[arg(long)]
    unlock: bool,
    /// Write it to a file, locked by a passphrase: for a safe place
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// And keep it here no longer
    #[arg(long, requires = "export")]
    remove: bool,
    /// Let a new root sign in its place: members stay members, and what the old key signs from now on lets nobody in
    #[arg(long)]
    rotate: bool,
    /// Days for which grants hold that were given out elsewhere with the old key, and which the new one does not know
    #[arg(long, value_name = "DAYS", default_value_t = 0, requires = "rotate", value_parser = clap::value_parser!(u32).range(..=365))]
    grace: u32,
    /// A grant that was given out elsewhere with the old key and stays good, as `potluck swarm members` shows it there (repeatable)
    #[arg(long, value_name = "ID", requires = "rotate")]
    adopt: Vec<GrantId>,
    /// What a thief may have taken back: a key, a grant's id, or all; it is taken back no longer, whoever did it (repeatable)
    #[arg(long, value_name = "KEY|ID|all", requires = "rotate")]
    restore: Vec<Restore>,
    #[command(flatten)]
    root: RootArgs,
}

/// What is taken back no longer.
#[derive(Debug, Clone, Copy)]
enum Restore {
    All,
    One(Revoked),
}

impl Restore {
    fn one(&self) -> Option<Revoked> {
        match self {
            Self::All => None,
            Self::One(what) => Some(*what),
        }
    }
}

impl FromStr for Restore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        read_revoked(text).map(Self::One).map_err(|failure| failure.hint)
    }
}

impl RootKey {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let home = &self.root.of(home);
        match self {
            Self { lock: true, .. } => {
                let root = SwarmRoot::open(home)?;
                let path = root.keep(home, &Form::Locked(Passphrase::choose(&home.root)?), None)?;
                told(
                    screen,
                    "locked",
                    &path,
                    "whoever is let in by an invitation waits until it is opened: potluck serve --passphrase-file -",
                )
            }
            Self { unlock: true, .. } => {
                let path = SwarmRoot::open(home)?.keep(home, &Form::Plain, None)?;
                told(screen, "unlocked", &path, "whoever reads that file may let in anybody")
            }
            Self { export: Some(path), remove, .. } => export(home, screen, path, remove),
            Self { rotate: true, grace, adopt, restore, .. } => rotate(home, screen, grace, &adopt, &restore).await,
            _ => show(home, screen),
        }
    }
}

fn told(screen: Screen, what: &str, path: &std::path::Path, note: &str) -> Result<(), Failure> {
    if screen.json {
        return screen.object(&json!({ what: path }));
    }
    screen.text(&format!("{what}: {}\n", path.display()))?;
    screen.note(note);
    Ok(())
}

fn export(home: &Home, screen: Screen, path: PathBuf, remove: bool) -> Result<(), Failure> {
    if path.exists() {
        let message = format!("{} exists already", path.display());
        return Err(Failure::new("exists", message, "name another file, or move that one away"));
    }
    let root = SwarmRoot::open(home)?;
    let form = root.locked_as().map_or_else(|| Passphrase::choose(&home.root).map(Form::Locked), Ok)?;
    let path = root.keep(home, &form, Some(path))?;
    if remove {
        // What was written opens, or nothing is removed.
        RootKept::at(path.clone()).check(&root.key(), &form)?;
        RootKept::remove_all(home)?;
    }
    let note = if remove {
        "the root key is there alone now: name it with --root FILE, and keep a copy of it"
    } else {
        "the root key is here, too: --remove takes it away"
    };
    told(screen, "exported", &path, note)
}

/// What rests on the root, and how it is kept.
fn show(home: &Home, screen: Screen) -> Result<(), Failure> {
    let membership = Membership::open(home)?;
    let gate = membership.gate(home)?;
    let now = utc_now();
    let here = if SwarmRoot::is_here(home)? { RootKept::of(home)? } else { None };
    let kept = match &here {
        Some(kept) if kept.is_locked()? => "locked",
        Some(_) => "plain",
        None => "elsewhere",
    };
    let path = here.as_ref().map(|kept| kept.path().display().to_string());
    let (successions, root) = (gate.successions(), gate.root());
    let since = successions.last().and_then(|last| last.verify(gate.swarm().root()).ok()).map(|said| said.at);
    let given = issued(home)?;
    let holds = |grant: &[u8]| gate.read(grant).is_ok_and(|chain| gate.check(grant, chain.holder(), now).is_ok());
    let holding = given.iter().filter(|one| holds(&one.grant())).count();
    let open = Invitations::open(home, now)?.into_all().iter().filter(|one| one.state(now) == "open").count();
    let rivals: Vec<_> = gate.rivals().iter().map(|(_, rival)| rival.next.to_string()).collect();
    if screen.json {
        return screen.object(&json!({
            "swarm": membership.swarm,
            "root": root.to_string(),
            "rotations": successions.len(),
            "since": since,
            "kept": kept,
            "path": path,
            "grants": holding,
            "invitations": open,
            "rivals": rivals,
        }));
    }
    let since = since.map_or_else(
        || "since the swarm was made".to_owned(),
        |at| format!("since {}", humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at))),
    );
    let place = match (&path, kept) {
        (Some(path), "locked") => format!("{path}, locked by a passphrase"),
        (Some(path), _) => format!("{path}, which whoever reads it may use: --lock"),
        (None, _) => "not here: name it with --root FILE where it is needed".to_owned(),
    };
    let lines = [
        format!("root   {root}  ({since}, {} before it)", successions.len()),
        format!("swarm  {}", membership.swarm),
        format!("kept   {place}"),
        format!("rests  {holding} grants that were given out here, {open} open invitations"),
    ];
    screen.text(&(lines.join("\n") + "\n"))?;
    for rival in &rivals {
        screen.note(format!(
            "an earlier root has named another successor, too: {rival}. Somebody else has its key: potluck doctor"
        ));
    }
    Ok(())
}

async fn rotate(
    home: &Home,
    screen: Screen,
    grace: u32,
    adopt: &[GrantId],
    restore: &[Restore],
) -> Result<(), Failure> {
    // Two at once would each put a key in the other's place.
    let _alone = lock_rotation(home)?;
    let root = SwarmRoot::open(home)?;
    let membership = Membership::open(home)?;
    // What was taken back elsewhere stays so; and if the root was rotated already, that is to be known now.
    let gate = hear(home, &membership).await?;
    if gate.root() != root.public() {
        let message = format!("{} signs in the place of this root already", gate.root().short());
        return Err(Failure::new(
            "root_followed",
            message,
            "if you did not rotate it, somebody has its key: docs/guides/roles.md",
        ));
    }
    if !gate.is_whole() {
        let message = "it is not known yet what the present root lets stand";
        return Err(Failure::new("rotate", message, "try again when a member that knows it is there: potluck peers"));
    }
    let given = issued(home)?;
    if given.is_empty() && adopt.is_empty() && grace == 0 && !membership.contacts.is_empty() {
        let message = "this home has given out no grant: all members but this machine would be out";
        let hint =
            "rotate where the members were let in, name their grants (--adopt ID), or give them time (--grace DAYS)";
        return Err(Failure::new("nobody_stays", message, hint));
    }
    let now = utc_now();
    let by_roots = gate.revoked_by_roots();
    let all = restore.iter().any(|what| matches!(what, Restore::All));
    let named: BTreeSet<Revoked> = restore.iter().filter_map(Restore::one).collect();
    // Whoever took it back: a thief of the root may have made himself an operator first.
    let is_restored = |what: Revoked| all || named.contains(&what);
    let taken: BTreeSet<Revoked> = by_roots.iter().copied().filter(|what| !is_restored(*what)).collect();
    let mut restored = by_roots.len() - taken.len();
    // What stood after the last rotation stands on.
    let mut adopted: BTreeSet<GrantId> = adopt.iter().copied().chain(gate.adopted()).collect();
    let own = keys(home)?.into_iter().filter_map(|key| membership.grant(key).ok());
    for grant in given.iter().map(crate::home::Issued::grant).chain(own) {
        // Of another swarm, which this machine belonged to before.
        let Ok(chain) = gate.read(&grant) else { continue };
        let first = chain.links().first().map(|link| link.id);
        // Whoever took it back may count no longer once the new root signs: so it does not stay at all.
        let taken_back = match gate.check(&grant, chain.holder(), now) {
            Err(GrantError::Revoked(what)) => Some(what.0),
            _ => None,
        };
        match (first, taken_back) {
            (Some(first), Some(what)) if !is_restored(what) && !adopt.contains(&first) => drop(adopted.remove(&first)),
            (Some(first), what) => {
                restored += usize::from(what.is_some_and(|what| !by_roots.contains(&what)));
                adopted.insert(first);
            }
            (None, _) => {}
        }
    }
    if !restore.is_empty() && restored == 0 && adopt.is_empty() {
        let message = "nothing of it was taken back";
        return Err(Failure::usage(message, "potluck swarm members shows keys, ids and what was taken back"));
    }
    let until = if grace == 0 { 0 } else { days_from(now, grace) };
    let (next, said) = root.rotate(home, &gate, (&adopted, &taken), now, until)?;
    let (told, asked) = spread(home, &membership, said).await?;
    if screen.json {
        let (next, adopted) = (next.to_string(), adopted.len());
        return screen.object(
            &json!({ "root": next, "adopted": adopted, "restored": restored, "told": told, "members": asked }),
        );
    }
    screen.text(&format!("root {next}\n"))?;
    let restored = match restored {
        0 => String::new(),
        restored => format!("; taken back no longer: {restored}"),
    };
    screen.note(format!(
        "{} grants stay good{restored}; {told} of {asked} members know, the others learn of it from them, or at the next contact\n\
         copies of the old key are worth nothing any more: potluck swarm root --export FILE makes one of the new\n\
         relays help newcomers by invitations that are written from now on",
        adopted.len()
    ));
    Ok(())
}

/// All that the members who answer know to be taken back, kept here.
async fn hear(home: &Home, membership: &Membership) -> Result<Gate, Failure> {
    let node = client_node(home, membership).await?;
    let mut asked = JoinSet::new();
    for contact in membership.contacts.iter().filter(|contact| contact.peer != node.id()).cloned() {
        let node = node.clone();
        asked.spawn(async move {
            if let Err(error) = node.pull_revocations(&contact).await {
                tracing::debug!(peer = %contact.peer.short(), %error, "not asked what was taken back");
            }
        });
    }
    while asked.join_next().await.is_some() {}
    let gate = node.identity().gate.clone();
    node.close().await;
    keep_revocations(home, &gate)?;
    Ok(gate)
}
