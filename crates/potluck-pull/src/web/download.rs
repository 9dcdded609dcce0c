//! One file after another, each resumed where an earlier attempt broke off, checked, and named only then.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use potluck_store::{Progress, StoreError};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, IF_RANGE, RANGE},
};
use sha2::{Digest as _, Sha256};
use tokio::{task::spawn_blocking, time::timeout};

use super::{Coming, check};
use crate::{PullError, RoomFor};

/// How long nothing may come before the line counts as lost.
const STALL: Duration = Duration::from_secs(30);

/// How often a line that was lost is tried again without a byte in between, and after how long.
const TRIES: u32 = 4;
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A file to get.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) url: Url,
    /// Shown to the host of `url` only: a redirect to another loses it.
    pub(super) token: Option<String>,
    /// As announced.
    pub(super) bytes: Option<u64>,
    pub(super) sha256: Option<[u8; 32]>,
    pub(super) to: PathBuf,
}

/// Gets those that are not here yet. `room`: asked for all of them at once, where it was announced how large they are, else for each when it comes.
pub(super) async fn all(
    client: &Client,
    files: &[Wanted],
    room: &mut RoomFor<'_>,
    progress: &mut dyn FnMut(Coming),
) -> Result<(), PullError> {
    let mut missing = files.iter().filter(|file| !file.to.is_file());
    let announced = missing
        .try_fold(0u64, |sum, file| Some(sum.saturating_add(file.bytes?.saturating_sub(Partial::bytes_of(&file.to)))));
    if let Some(bytes) = announced.filter(|&bytes| bytes > 0) {
        room(bytes)?;
    }
    let total = files.iter().filter_map(|file| file.bytes).fold(0, u64::saturating_add);
    let mut before = 0u64;
    for file in files {
        let mut tell = |done: u64, bytes: u64| {
            let (all, total) = (before.saturating_add(done), if total == 0 { bytes } else { total });
            let all = Progress { done: all, total: total.max(all) };
            progress(Coming { all, file: Progress { done, total: bytes }, sha256: file.sha256 });
            done
        };
        let mut here = file.bytes.unwrap_or(0);
        if !file.to.is_file() {
            let mut room = Asking { room: &mut *room, asked: announced.is_some() };
            one(client, file, &mut room, &mut |done, bytes| here = tell(done, bytes)).await?;
        }
        before = before.saturating_add(tell(here, here));
    }
    Ok(())
}

/// Whether there is room is asked once: for all files, or for one of which nobody has said how large it is.
struct Asking<'a, 'r> {
    room: &'a mut RoomFor<'r>,
    asked: bool,
}

async fn one(
    client: &Client,
    file: &Wanted,
    room: &mut Asking<'_, '_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), PullError> {
    let partial = Partial::open(&file.to)?;
    // Another process may have got it while we waited.
    if file.to.is_file() {
        return Ok(());
    }
    let (mut tries, mut last) = (0, partial.len()?);
    loop {
        match attempt(client, file, &partial, room, progress).await {
            Ok(()) => break,
            // What came in between was worth another try.
            Err(error @ PullError::Web { .. }) => {
                let now = partial.len()?;
                tries = if now > last { 0 } else { tries + 1 };
                last = now;
                if tries >= TRIES {
                    return Err(error);
                }
                tracing::info!(%error, "trying again");
                tokio::time::sleep(TRY_AGAIN * (1 << tries)).await;
            }
            Err(error) => return Err(error),
        }
    }
    partial.keep(file).await
}

/// Asks for what is missing, and writes it.
async fn attempt(
    client: &Client,
    file: &Wanted,
    partial: &Partial,
    room: &mut Asking<'_, '_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), PullError> {
    let failed = |what: &str| PullError::web(&file.url, what);
    let broken = |error| PullError::http(&file.url, error);
    let (have, version) = (partial.len()?, partial.version());
    if file.bytes.is_some_and(|bytes| have == bytes && bytes > 0) && version.is_some() {
        return Ok(());
    }
    if file.bytes.is_some_and(|bytes| have > bytes) {
        partial.restart(None)?;
        return Err(failed("more of it is here than there is"));
    }
    let mut request = client.get(file.url.clone()).header(ACCEPT_ENCODING, "identity");
    if let Some(token) = &file.token {
        request = request.bearer_auth(token);
    }
    if let (1.., Some(version)) = (have, &version) {
        // Where the file has changed since, all of it comes.
        request = request.header(RANGE, format!("bytes={have}-")).header(IF_RANGE, version);
    }
    let response = timeout(STALL, request.send()).await.map_err(|_| failed("no answer"))?;
    let response = response.map_err(broken)?;
    let (mut done, total, mut response) = match response.status() {
        StatusCode::PARTIAL_CONTENT if starts_at(&response) == Some(have) => {
            (have, response.content_length().and_then(|rest| have.checked_add(rest)), response)
        }
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
            partial.restart(None)?;
            return Err(failed("what is here of it is not what is there"));
        }
        status if status.is_server_error() => return Err(failed(&format!("it answers {status}"))),
        _ => {
            let response = check(&file.url, response)?;
            partial.restart(response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()))?;
            (0, response.content_length(), response)
        }
    };
    if let (Some(announced), Some(coming)) = (file.bytes, total)
        && announced != coming
    {
        return Err(PullError::Digest(file.url.to_string()));
    }
    // Without an end it could fill the disk.
    let Some(total) = total.or(file.bytes) else {
        let what = "it does not say how long the file is".into();
        return Err(PullError::Answer { address: file.url.to_string(), what });
    };
    if !std::mem::replace(&mut room.asked, true) {
        (room.room)(total.saturating_sub(done))?;
    }
    let mut out = partial.append()?;
    while let Some(chunk) = timeout(STALL, response.chunk())
        .await
        .map_err(|_| failed(&format!("nothing came for {} s", STALL.as_secs())))?
        .map_err(broken)?
    {
        out.write_all(&chunk).map_err(|source| StoreError::Io { path: partial.path.clone(), source })?;
        done += chunk.len() as u64;
        // One that sends more than it announced would fill the disk.
        if done > total {
            partial.restart(None)?;
            return Err(PullError::Digest(file.url.to_string()));
        }
        progress(done, total);
    }
    if done < total { Err(failed("the line was lost")) } else { Ok(()) }
}

/// The first byte that a partial answer brings.
fn starts_at(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// What has come of a file, and of which version of it. One process at a time works at it.
struct Partial {
    path: PathBuf,
    tag: PathBuf,
    _lock: File,
}

/// A file beside the one that is wanted.
fn beside(to: &Path, suffix: &str) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    to.with_file_name(name)
}

impl Partial {
    /// What has come of a file already.
    fn bytes_of(to: &Path) -> u64 {
        fs::metadata(beside(to, ".incomplete")).map_or(0, |metadata| metadata.len())
    }

    fn open(to: &Path) -> Result<Self, PullError> {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(|source| StoreError::Io { path: folder.into(), source })?;
        }
        let lock_path = beside(to, ".incomplete.lock");
        let io = |source| StoreError::Io { path: lock_path.clone(), source };
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: lock_path }.into()),
            Err(TryLockError::Error(source)) => return Err(io(source).into()),
        }
        Ok(Self { path: beside(to, ".incomplete"), tag: beside(to, ".incomplete.etag"), _lock: lock })
    }

    fn len(&self) -> Result<u64, PullError> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(StoreError::Io { path: self.path.clone(), source }.into()),
        }
    }

    /// Without one, what has come cannot be gone on with.
    fn version(&self) -> Option<String> {
        // A weak one promises nothing about bytes.
        fs::read_to_string(&self.tag).ok().filter(|tag| tag.starts_with('"'))
    }

    fn restart(&self, version: Option<&str>) -> Result<(), PullError> {
        let io = |source| StoreError::Io { path: self.path.clone(), source };
        File::create(&self.path).map_err(io)?;
        fs::write(&self.tag, version.unwrap_or_default()).map_err(io)?;
        Ok(())
    }

    fn append(&self) -> Result<File, PullError> {
        let opened = OpenOptions::new().append(true).create(true).open(&self.path);
        opened.map_err(|source| StoreError::Io { path: self.path.clone(), source }.into())
    }

    /// Checks it and gives it its name.
    async fn keep(&self, file: &Wanted) -> Result<(), PullError> {
        let (path, wanted) = (self.path.clone(), file.sha256);
        let checked = spawn_blocking(move || -> std::io::Result<bool> {
            let mut file = File::options().read(true).write(true).open(&path)?;
            file.sync_all()?;
            let Some(wanted) = wanted else { return Ok(true) };
            file.rewind()?;
            let (mut hasher, mut chunk) = (Sha256::new(), vec![0; 1 << 20]);
            loop {
                match file.read(&mut chunk)? {
                    0 => return Ok(hasher.finalize().as_slice() == wanted),
                    n => hasher.update(&chunk[..n]),
                }
            }
        });
        let io = |source| StoreError::Io { path: self.path.clone(), source };
        let checked = checked.await.map_err(|error| io(std::io::Error::other(error)))?;
        if !checked.map_err(io)? {
            self.restart(None)?;
            return Err(PullError::Digest(file.url.to_string()));
        }
        fs::rename(&self.path, &file.to).map_err(io)?;
        let _ = fs::remove_file(&self.tag);
        Ok(())
    }
}
