//! What sessions hold that were put aside: encrypted files in a folder of the machine that holds it, for a while and within bounds.
//!
//! Whoever keeps a state has read it while it computed it, and cannot read it afterwards: the key stays with the client.

mod sealed;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use potluck_core::{CacheId, SessionKey, StageCommand, StageError, StageReply, StageSpec, StateKey, StatePart};
use potluck_net::{StateJob, StateJobs};
use tempfile::NamedTempFile;
use tokio::{
    sync::{Mutex, mpsc},
    task::spawn_blocking,
    time::timeout,
};

use crate::{commands::swarm::utc_now, failure::Failure, home::Home, placement::free_disk};
use sealed::{Header, Reader, Writer};

/// Bytes that all states may take, unless the user says otherwise.
pub(crate) const STATES_BYTES: u64 = 4 << 30;

/// Bytes of the disk that are left to others.
const DISK_LEFT: u64 = 2 << 30;

/// How long a state is kept at most.
pub(crate) const KEPT_SECONDS_MAX: u32 = 7 * 24 * 3_600;

/// How long a stage may take to give a part of what it holds, or to take it: it computes for others meanwhile.
const PART_WITHIN: Duration = Duration::from_secs(60);

/// After that, a file that was begun is nobody's any more.
const BEGUN_WITHIN: Duration = Duration::from_secs(3_600);

/// The version of what is in the files, beside that of the engine.
const VERSION: &str = concat!("1 ", env!("CARGO_PKG_VERSION"));

/// The folder, and how much it may hold.
#[derive(Debug, Clone)]
struct States {
    folder: PathBuf,
    bytes_max: u64,
}

/// Keeps what sessions hold, in that home, as long as whoever asks for it is there. `bytes_max`: what all of it may take.
pub(crate) fn keep_states(home: &Home, bytes_max: u64) -> Result<StateJobs, Failure> {
    let states = States { folder: home.private_folder("states")?, bytes_max };
    let (jobs, mut asked) = mpsc::unbounded_channel::<StateJob>();
    // One after the other: each may be as large as a cache.
    let turn = Arc::new(Mutex::new(()));
    tokio::spawn(async move {
        while let Some(job) = asked.recv().await {
            let (states, turn) = (states.clone(), turn.clone());
            tokio::spawn(async move {
                let _turn = turn.lock().await;
                states.carry_out(job).await;
            });
        }
    });
    Ok(jobs)
}

impl States {
    async fn carry_out(&self, mut job: StateJob) {
        let reply = match job.command {
            StageCommand::Save { cache, session, key, seconds } => {
                let result = self.save(&mut job, session, key, seconds).await;
                if let Err(error) = &result {
                    tracing::info!(session = %session.id, "what a session holds was not kept: {error}");
                }
                StageReply::Saved { cache, result: result.map_err(failed) }
            }
            StageCommand::Restore { cache, session, key } => {
                let result = self.restore(&mut job, session, key).await;
                if let Err(error) = &result {
                    tracing::info!(session = %session.id, "what a session held does not come back: {error}");
                }
                StageReply::Restored { cache, result: result.map_err(failed) }
            }
            _ => return,
        };
        job.done(reply);
    }

    async fn save(&self, job: &mut StateJob, session: SessionKey, key: StateKey, seconds: u32) -> io::Result<u64> {
        let StageCommand::Save { cache, .. } = job.command else { return Err(ended()) };
        let mut part = export(job, cache, 0).await?;
        let until = utc_now() + u64::from(seconds.min(KEPT_SECONDS_MAX));
        let (place, spec, states) = (place(session, job.spec), job.spec, self.clone());
        let (whose, total) = ((part.positions, part.total), part.total);
        let begin = move || {
            states.make_room(&owner_prefix(session), total)?;
            // Made with mode 600.
            let file = NamedTempFile::new_in(&states.folder)?;
            Writer::begin(file, &key, &place, whose, until)
        };
        let mut writer = blocking(begin).await?;
        loop {
            let (is_last, offset) = (part.is_last(), part.offset + part.bytes.len() as u64);
            writer = blocking(move || writer.part(&part).map(|()| writer)).await?;
            if is_last {
                break;
            }
            part = export(job, cache, offset).await?;
        }
        let path = self.path(session, spec);
        blocking(move || writer.end()?.persist(path).map_err(|error| error.error)).await?;
        Ok(total)
    }

    async fn restore(&self, job: &mut StateJob, session: SessionKey, key: StateKey) -> io::Result<u32> {
        let StageCommand::Restore { cache, .. } = job.command else { return Err(ended()) };
        let (path, place) = (self.path(session, job.spec), place(session, job.spec));
        let mut reader = blocking(move || Reader::begin(File::open(path)?, &key, &place)).await?;
        if reader.header.until < utc_now() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its time is over"));
        }
        loop {
            let (part, rest) = blocking(move || reader.part().map(|part| (part, reader))).await?;
            reader = rest;
            let is_last = part.is_last();
            let asked = job.ask(StageCommand::Import { cache, part });
            match timeout(PART_WITHIN, asked).await {
                Ok(Some(StageReply::Imported { result: Ok(()), .. })) if is_last => return Ok(reader.header.positions),
                Ok(Some(StageReply::Imported { result: Ok(()), .. })) => {}
                Ok(Some(StageReply::Imported { result: Err(error), .. })) => return Err(io::Error::other(error)),
                _ => return Err(ended()),
            }
        }
    }

    fn path(&self, session: SessionKey, spec: StageSpec) -> PathBuf {
        let place = blake3::hash(&place(session, spec)).to_hex();
        self.folder.join(format!("{}{}", owner_prefix(session), &place[..32]))
    }

    /// Removes what is over, and the oldest of whoever has most, until there is room for so many bytes of `owner`'s.
    fn make_room(&self, owner: &str, bytes: u64) -> io::Result<()> {
        let free = free_disk(&self.folder).map_or(u64::MAX, |free| free.saturating_sub(DISK_LEFT));
        let mut kept = self.list()?;
        // One client does not take the room of all others.
        if bytes > self.bytes_max / 2 || bytes > free {
            let most = free.min(self.bytes_max / 2);
            return Err(io::Error::other(format!("it takes {bytes} bytes; there is room for {most}")));
        }
        loop {
            let mut sums = BTreeMap::from([(owner.to_owned(), bytes)]);
            kept.iter().for_each(|state| *sums.entry(state.owner.clone()).or_default() += state.bytes);
            if sums.values().sum::<u64>() <= self.bytes_max {
                return Ok(());
            }
            let Some((most, _)) = sums.iter().max_by_key(|(_, sum)| **sum) else { return Ok(()) };
            let of = |state: &&Kept| state.owner == *most;
            let Some(oldest) = kept.iter().filter(of).min_by_key(|state| state.since).map(|state| state.path.clone())
            else {
                return Ok(());
            };
            fs::remove_file(&oldest)?;
            kept.retain(|state| state.path != oldest);
        }
    }

    /// What is kept. What is over, and what was begun and left, is removed.
    fn list(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let Ok(about) = entry.metadata() else { continue };
            let since = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let Some((owner, _)) = name.split_at_checked(OWNER_CHARS).filter(|_| !name.starts_with('.')) else {
                if since.elapsed().is_ok_and(|age| age > BEGUN_WITHIN) {
                    fs::remove_file(&path)?;
                }
                continue;
            };
            match is_over(&path) {
                true => fs::remove_file(&path)?,
                false => kept.push(Kept { owner: owner.to_owned(), path, since, bytes: about.len() }),
            }
        }
        Ok(kept)
    }
}

/// A state that is kept.
#[derive(Debug)]
struct Kept {
    owner: String,
    path: PathBuf,
    since: SystemTime,
    bytes: u64,
}

fn is_over(path: &Path) -> bool {
    let header = File::open(path).and_then(|mut file| Header::read(&mut file));
    header.map_or(true, |header| header.until < utc_now())
}

async fn export(job: &mut StateJob, cache: CacheId, offset: u64) -> io::Result<StatePart> {
    match timeout(PART_WITHIN, job.ask(StageCommand::Export { cache, offset })).await {
        Ok(Some(StageReply::Exported { result: Ok(part), .. })) if part.offset == offset && !part.bytes.is_empty() => {
            Ok(part)
        }
        Ok(Some(StageReply::Exported { result: Err(error), .. })) => Err(io::Error::other(error)),
        _ => Err(ended()),
    }
}

/// Disks take their time: sessions go on meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

fn ended() -> io::Error {
    io::Error::other("the session has ended, or its engine has")
}

fn failed(error: io::Error) -> StageError {
    StageError::Engine(format!("what a session holds: {error}"))
}

/// Characters of a file's name that say whose it is.
const OWNER_CHARS: usize = 16;

fn owner_prefix(session: SessionKey) -> String {
    blake3::hash(session.client.as_bytes()).to_hex()[..OWNER_CHARS].to_owned()
}

/// What a state is of: nothing else begins with it.
fn place(SessionKey { client, id }: SessionKey, spec: StageSpec) -> Vec<u8> {
    let StageSpec { model, layers, head, tail } = spec;
    let [start, end] = [layers.start(), layers.end()].map(u32::to_le_bytes);
    let parts: [&[u8]; 6] =
        [client.as_bytes(), id.as_bytes(), model.as_bytes(), &start, &end, &[head.into(), tail.into()]];
    [&parts.concat()[..], VERSION.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use potluck_core::{LayerRange, ModelId, PeerId, SessionId};

    use super::*;

    fn session(client: u8, id: u8) -> SessionKey {
        SessionKey { client: PeerId::from_bytes([client; 32]), id: SessionId::from_bytes([id; 16]) }
    }

    fn states(bytes_max: u64) -> (tempfile::TempDir, States) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        (dir, States { folder, bytes_max })
    }

    fn put(states: &States, of: SessionKey, bytes: usize, until: u64) -> io::Result<()> {
        let layers = LayerRange::new(0, 2).unwrap();
        let spec = StageSpec { model: ModelId::from_bytes([1; 32]), layers, head: true, tail: true };
        states.make_room(&owner_prefix(of), bytes as u64)?;
        let file = File::create(states.path(of, spec))?;
        let whose = (9, bytes as u64);
        let mut writer = Writer::begin(file, &StateKey([7; 32]), &place(of, spec), whose, until)?;
        writer.part(&StatePart { positions: 9, total: bytes as u64, offset: 0, bytes: vec![5; bytes] })?;
        writer.end().map(drop)
    }

    #[test]
    fn whoever_has_most_makes_room_and_what_is_over_goes_first() {
        let (_dir, states) = states(1_000);
        let later = utc_now() + 60;
        put(&states, session(1, 1), 300, utc_now() - 1).unwrap();
        put(&states, session(1, 2), 300, later).unwrap();
        assert_eq!(states.list().unwrap().len(), 1, "one was over");
        put(&states, session(1, 3), 300, later).unwrap();
        put(&states, session(2, 1), 300, later).unwrap();
        let owners = |states: &States| {
            let mut owners: Vec<_> = states.list().unwrap().into_iter().map(|kept| kept.owner).collect();
            owners.sort();
            owners
        };
        let [one, two] = [session(1, 1), session(2, 1)].map(owner_prefix);
        let mut expected = vec![one, two.clone()];
        expected.sort();
        assert_eq!(owners(&states), expected, "of the first one's, the older is gone");
        assert!(put(&states, session(3, 1), 501, later).is_err(), "more than half of all");
        fs::write(states.folder.join("x"), "no state").unwrap();
        assert_eq!(owners(&states), expected);
    }

    #[test]
    fn states_have_names_of_their_own() {
        let layers = |start, end| LayerRange::new(start, end).unwrap();
        let spec = |layers| StageSpec { model: ModelId::from_bytes([1; 32]), layers, head: false, tail: false };
        let states = States { folder: PathBuf::new(), bytes_max: 0 };
        let mut names: Vec<_> = [
            (session(1, 1), spec(layers(1, 2))),
            (session(1, 2), spec(layers(1, 2))),
            (session(2, 1), spec(layers(1, 2))),
            (session(1, 1), spec(layers(1, 3))),
        ]
        .map(|(session, spec)| states.path(session, spec))
        .into();
        names.dedup();
        assert_eq!(names.len(), 4);
        assert!(names.iter().all(|name| name.to_string_lossy().len() == OWNER_CHARS + 32));
    }
}
