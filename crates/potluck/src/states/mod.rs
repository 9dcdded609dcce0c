//! What sessions hold that were put aside: encrypted files in a folder of the machine that holds it, for a while and within bounds.
//!
//! Whoever keeps a state has read it while it computed it, and cannot read it afterwards: the key stays with the client.

mod sealed;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use potluck_core::{
    CacheId, PeerId, STATE_PART_BYTES_MAX, SessionKey, StageCommand, StageError, StageReply, StageSpec, StateKey,
    StatePart,
};
use potluck_engine::{EngineSettings, LLAMA_BUILD};
use potluck_net::{StateJob, StateJobs};
use tempfile::NamedTempFile;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{interval, timeout},
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

/// How often what is over is removed, where nothing else is to be done.
const SWEPT_EVERY: Duration = Duration::from_secs(3_600);

/// Jobs of one client that wait at a time: others wait behind them.
const WAITING_MAX: usize = 2;

/// The version of what is in the files, beside that of the engine.
const VERSION: &str = concat!("2 ", env!("CARGO_PKG_VERSION"));

/// Where the states of peers' sessions lie, and those of this machine's own.
const FOLDERS: [(Whose, &str); 2] = [(Whose::Lent, "states"), (Whose::Own, "states-own")];

/// Whose sessions they are states of: each kind has a folder, and room, of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Of whoever asks this machine for what it lends.
    Lent,
    /// Of this machine's own conversations.
    Own,
}

/// The folder, and how much it may hold.
#[derive(Debug, Clone)]
struct States {
    folder: PathBuf,
    bytes_max: u64,
    /// How they are computed: what was computed otherwise is another's.
    how: String,
}

/// Keeps what sessions hold, in that home, as long as whoever asks for it is there. `bytes_max`: what all of it may take; `settings`: with
/// which it is computed.
pub(crate) fn keep_states(
    home: &Home,
    whose: Whose,
    bytes_max: u64,
    settings: &EngineSettings,
) -> Result<StateJobs, Failure> {
    sweep_states(home, Some(whose));
    let EngineSettings { kv, flash, exact, gpu_layers, .. } = settings;
    let how = format!("llama {LLAMA_BUILD}, {kv:?}, {flash:?}, exact {exact}, gpu {gpu_layers}");
    let states = States { folder: home.private_folder(whose.folder())?, bytes_max, how };
    let (jobs, asked) = mpsc::unbounded_channel::<StateJob>();
    tokio::spawn(states.carry_out_all(asked));
    Ok(jobs)
}

/// Removes what is over. `kept`: where states are kept from now on; what lies elsewhere stays until it is over, and what was lent where nothing
/// is kept any more goes at once.
pub(crate) fn sweep_states(home: &Home, kept: Option<Whose>) {
    for (whose, folder) in FOLDERS {
        let folder = home.path(folder);
        let listed = States { folder, bytes_max: 0, how: String::new() }.list();
        if whose == Whose::Lent && kept.is_none() {
            listed.iter().for_each(|state| remove(&state.path));
        }
    }
}

impl Whose {
    fn folder(self) -> &'static str {
        match self {
            Self::Lent => FOLDERS[0].1,
            Self::Own => FOLDERS[1].1,
        }
    }
}

fn client(job: &StateJob) -> Option<PeerId> {
    match &job.command {
        StageCommand::Save { session, .. } | StageCommand::Restore { session, .. } => Some(session.client),
        _ => None,
    }
}

impl States {
    /// One after the other: each may be as large as a cache.
    async fn carry_out_all(self, mut asked: mpsc::UnboundedReceiver<StateJob>) {
        let (mut waiting, mut turn) = (VecDeque::<StateJob>::new(), JoinSet::new());
        let mut hourly = interval(SWEPT_EVERY);
        loop {
            tokio::select! {
                Some(_) = turn.join_next(), if !turn.is_empty() => {}
                job = asked.recv() => {
                    let Some(job) = job else { break };
                    let others = waiting.iter().filter(|other| client(other) == client(&job) && !other.is_over());
                    // Dropped, it has failed.
                    if others.count() < WAITING_MAX {
                        waiting.push_back(job);
                    }
                }
                _ = hourly.tick() => {
                    let states = self.clone();
                    let _ = spawn_blocking(move || states.list()).await;
                }
            }
            waiting.retain(|job| !job.is_over());
            if turn.is_empty()
                && let Some(job) = waiting.pop_front()
            {
                let states = self.clone();
                turn.spawn(async move { states.carry_out(job).await });
            }
        }
    }

    async fn carry_out(&self, mut job: StateJob) {
        let reply = match job.command {
            StageCommand::Save { cache, session, .. } => {
                let result = self.save(&mut job).await;
                if let Err(error) = &result {
                    job.forget();
                    tracing::info!(session = %session.id, "what a session holds was not kept: {error}");
                }
                StageReply::Saved { cache, result: result.map_err(failed) }
            }
            StageCommand::Restore { cache, session, .. } => {
                let result = self.restore(&mut job).await;
                if let Err(error) = &result {
                    tracing::info!(session = %session.id, "what a session held does not come back: {error}");
                }
                StageReply::Restored { cache, result: result.map_err(failed) }
            }
            _ => return,
        };
        job.done(reply);
    }

    async fn save(&self, job: &mut StateJob) -> io::Result<u64> {
        let StageCommand::Save { cache, session, positions, bytes, key, seconds } = job.command else {
            return Err(ended());
        };
        let owner = owner_prefix(session);
        // Before it is taken down: that takes as much memory.
        self.make_room_for(&owner, bytes).await?;
        let mut part = export(job, cache, 0).await?;
        let until = utc_now() + u64::from(seconds.min(KEPT_SECONDS_MAX));
        let (place, path, states) = (self.place(session, job.spec), self.path(session, job.spec, &key), self.clone());
        let (whose, total) = ((part.positions, part.total), part.total);
        if part.positions != positions {
            return Err(io::Error::other(format!("{} positions are held, not {positions}", part.positions)));
        }
        self.make_room_for(&owner, total).await?;
        let begin = move || {
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
            if (part.positions, part.total) != whose {
                return Err(io::Error::other("its parts are of different moments"));
            }
        }
        blocking(move || writer.end()?.persist(path).map_err(|error| error.error)).await?;
        Ok(total)
    }

    async fn restore(&self, job: &mut StateJob) -> io::Result<u32> {
        let StageCommand::Restore { cache, session, key } = job.command else { return Err(ended()) };
        let (path, place) = (self.path(session, job.spec, &key), self.place(session, job.spec));
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

    /// What a state is of: nothing else begins with it.
    fn place(&self, SessionKey { client, id }: SessionKey, spec: StageSpec) -> Vec<u8> {
        let StageSpec { model, layers, head, tail } = spec;
        let [start, end] = [layers.start(), layers.end()].map(u32::to_le_bytes);
        let parts: [&[u8]; 6] =
            [client.as_bytes(), id.as_bytes(), model.as_bytes(), &start, &end, &[head.into(), tail.into()]];
        [&parts.concat()[..], VERSION.as_bytes(), b" ", self.how.as_bytes()].concat()
    }

    /// Each time that a session is put aside, it has another key, and so another file.
    fn path(&self, session: SessionKey, spec: StageSpec, key: &StateKey) -> PathBuf {
        let name = blake3::keyed_hash(&key.0, &self.place(session, spec)).to_hex();
        self.folder.join(format!("{}{}", owner_prefix(session), &name[..32]))
    }

    async fn make_room_for(&self, owner: &str, bytes: u64) -> io::Result<()> {
        let (states, owner) = (self.clone(), owner.to_owned());
        blocking(move || states.make_room(&owner, bytes)).await
    }

    /// Removes what is over, and the oldest of whoever has most, until there is room for so many bytes of `owner`'s.
    fn make_room(&self, owner: &str, bytes: u64) -> io::Result<()> {
        let mut free = free_disk(&self.folder).map_or(u64::MAX, |free| free.saturating_sub(DISK_LEFT));
        let mut kept = self.list();
        // One client does not take the room of all others.
        let most = (self.bytes_max / 2).min(free.saturating_add(kept.iter().map(|state| state.bytes).sum()));
        if bytes > most {
            return Err(io::Error::other(format!("it takes {bytes} bytes; there is room for {most}")));
        }
        loop {
            let mut sums = BTreeMap::from([(owner.to_owned(), bytes)]);
            kept.iter().for_each(|state| *sums.entry(state.owner.clone()).or_default() += state.bytes);
            if sums.values().sum::<u64>() <= self.bytes_max && bytes <= free {
                return Ok(());
            }
            let most = sums.iter().max_by_key(|(_, sum)| **sum).map(|(name, _)| name);
            let oldest = (0..kept.len()).filter(|at| most == Some(&kept[*at].owner));
            let Some(oldest) = oldest.min_by_key(|at| kept[*at].since) else {
                return Err(io::Error::other("it would take more than any other's, and there is no room left"));
            };
            let Kept { path, bytes, .. } = kept.swap_remove(oldest);
            remove(&path);
            free = free.saturating_add(bytes);
        }
    }

    /// What is kept. What is over, and what was begun and left, is removed. What cannot be read is left alone.
    fn list(&self) -> Vec<Kept> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let Ok(about) = entry.metadata() else { continue };
            let since = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let Some((owner, _)) = name.split_at_checked(OWNER_CHARS).filter(|_| !name.starts_with('.')) else {
                if since.elapsed().is_ok_and(|age| age > BEGUN_WITHIN) {
                    remove(&path);
                }
                continue;
            };
            match is_over(&path) {
                true => remove(&path),
                false => kept.push(Kept { owner: owner.to_owned(), path, since, bytes: about.len() }),
            }
        }
        kept
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

/// Another process may have done it, too.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("{} cannot be removed: {error}", path.display());
        }
        _ => {}
    }
}

/// It is no state, or its time is over.
fn is_over(path: &Path) -> bool {
    match File::open(path).and_then(|mut file| Header::read(&mut file)) {
        Ok(header) => header.until < utc_now(),
        Err(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
    }
}

async fn export(job: &mut StateJob, cache: CacheId, offset: u64) -> io::Result<StatePart> {
    match timeout(PART_WITHIN, job.ask(StageCommand::Export { cache, offset })).await {
        Ok(Some(StageReply::Exported { result: Ok(part), .. })) => {
            let due = part.total.saturating_sub(offset).min(STATE_PART_BYTES_MAX as u64);
            if part.offset != offset || due == 0 || part.bytes.len() as u64 != due {
                return Err(io::Error::other("a part of a state that is none"));
            }
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
        (dir, States { folder, bytes_max, how: String::new() })
    }

    fn put(states: &States, of: SessionKey, bytes: usize, until: u64) -> io::Result<()> {
        let layers = LayerRange::new(0, 2).unwrap();
        let spec = StageSpec { model: ModelId::from_bytes([1; 32]), layers, head: true, tail: true };
        states.make_room(&owner_prefix(of), bytes as u64)?;
        let file = File::create(states.path(of, spec, &StateKey([7; 32])))?;
        let whose = (9, bytes as u64);
        let mut writer = Writer::begin(file, &StateKey([7; 32]), &states.place(of, spec), whose, until)?;
        writer.part(&StatePart { positions: 9, total: bytes as u64, offset: 0, bytes: vec![5; bytes] })?;
        writer.end().map(drop)
    }

    #[test]
    fn whoever_has_most_makes_room_and_what_is_over_goes_first() {
        let (_dir, states) = states(1_000);
        let later = utc_now() + 60;
        put(&states, session(1, 1), 300, utc_now() - 1).unwrap();
        put(&states, session(1, 2), 300, later).unwrap();
        assert_eq!(states.list().len(), 1, "one was over");
        put(&states, session(1, 3), 300, later).unwrap();
        put(&states, session(2, 1), 300, later).unwrap();
        let owners = |states: &States| {
            let mut owners: Vec<_> = states.list().into_iter().map(|kept| kept.owner).collect();
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
        let states = States { folder: PathBuf::new(), bytes_max: 0, how: String::new() };
        let key = StateKey([7; 32]);
        let mut names: Vec<_> = [
            (session(1, 1), spec(layers(1, 2))),
            (session(1, 2), spec(layers(1, 2))),
            (session(2, 1), spec(layers(1, 2))),
            (session(1, 1), spec(layers(1, 3))),
        ]
        .map(|(session, spec)| states.path(session, spec, &key))
        .into();
        // And whoever puts one aside twice has two.
        names.push(states.path(session(1, 1), spec(layers(1, 2)), &StateKey([8; 32])));
        let otherwise = States { how: "otherwise".into(), ..states };
        names.push(otherwise.path(session(1, 1), spec(layers(1, 2)), &key));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6);
        assert!(names.iter().all(|name| name.to_string_lossy().len() == OWNER_CHARS + 32));
    }
}
