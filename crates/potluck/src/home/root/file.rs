//! A file that holds a root key: 64 hexadecimal digits, or the same locked by a passphrase.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use potluck_core::SecretKey;
use potluck_grant::Root;
use zeroize::{Zeroize as _, Zeroizing};

use super::{RootSource, age_file, age_file::Passphrase};
use crate::{
    failure::Failure,
    home::{Home, authority::lock_rotation, identity::check_mode, write_private},
};

const PLAIN: &str = "root.key";
const LOCKED: &str = "root.age";

/// What the file of the next root is called, as long as it does not count.
const NEXT: &str = "next";

/// Bytes of a key file. A longer one is none.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// How a root key lies on the disk.
#[derive(Debug, Clone, Default)]
pub(crate) enum Form {
    /// As it is.
    #[default]
    Plain,
    /// Locked by this passphrase.
    Locked(Passphrase),
}

/// A file that holds a root key.
#[derive(Debug, Clone)]
pub(crate) struct RootKept(PathBuf);

impl RootKept {
    /// That of this home, if there is one.
    pub(crate) fn of(home: &Home) -> Result<Option<Self>, Failure> {
        let kept = [PLAIN, LOCKED].map(|name| Self(home.path(name)));
        // The last step of a rotation that was cut short.
        if kept.iter().any(Self::is_cut_short) {
            let _alone = lock_rotation(home)?;
            kept.iter().filter(|one| one.is_cut_short()).try_for_each(Self::put_next)?;
        }
        Ok(kept.into_iter().find(|one| one.0.exists()))
    }

    /// Elsewhere.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes what is kept in this home.
    pub(crate) fn remove_all(home: &Home) -> Result<(), Failure> {
        [PLAIN, LOCKED].map(|name| Self(home.path(name))).iter().try_for_each(|one| {
            wipe(&one.next())?;
            wipe(&one.0)
        })
    }

    /// Keeps a key in this home, in this form alone.
    pub(super) fn write(home: &Home, root: &Root, form: &Form) -> Result<PathBuf, Failure> {
        let (name, other) = match form {
            Form::Plain => (PLAIN, LOCKED),
            Form::Locked(_) => (LOCKED, PLAIN),
        };
        let kept = Self(home.path(name));
        let path = kept.replace(root, form)?;
        // What was written opens, or nothing is overwritten.
        kept.check(&root.key(), form)?;
        for rest in [&kept.next(), &home.path(other), &Self(home.path(other)).next()] {
            wipe(rest)?;
        }
        Ok(path)
    }

    /// Keeps a key in this file.
    pub(super) fn replace(&self, root: &Root, form: &Form) -> Result<PathBuf, Failure> {
        let mut hex = Zeroizing::new(HEXLOWER.encode(&*Zeroizing::new(root.to_bytes())));
        hex.push('\n');
        match form {
            Form::Plain => write_over(&self.0, &hex)?,
            Form::Locked(passphrase) => write_over(&self.0, &age_file::lock(hex.as_bytes(), passphrase)?)?,
        }
        Ok(self.0.clone())
    }

    /// Reads it; `form`: how it lies there, and the passphrase that opened another file before this one.
    pub(super) fn open(&self, source: &RootSource, form: &mut Form) -> Result<Root, Failure> {
        open(&self.0, source, form)
    }

    /// The key that follows this one, where a rotation left it.
    pub(super) fn open_next(&self, source: &RootSource, form: &mut Form) -> Result<Option<Root>, Failure> {
        if self.next().exists() { open(&self.next(), source, form).map(Some) } else { Ok(None) }
    }

    /// The key, where no passphrase locks it.
    pub(super) fn plain(&self) -> Result<Option<Root>, Failure> {
        let bytes = read(&self.0)?;
        if age_file::is_one(&bytes) {
            return Ok(None);
        }
        check_mode(&self.0)?;
        parse(&bytes, &self.0).map(Some)
    }

    /// Reads again what was written.
    pub(crate) fn check(&self, key: &SecretKey, form: &Form) -> Result<(), Failure> {
        let root = open(&self.0, &RootSource::default(), &mut form.clone())?;
        if root.public().root() == key.peer_id() { Ok(()) } else { Err(damaged(&self.0)) }
    }

    /// Whether a passphrase locks it.
    pub(crate) fn is_locked(&self) -> Result<bool, Failure> {
        Ok(age_file::is_one(&read(&self.0)?))
    }

    /// Keeps the key that is to follow this one.
    pub(super) fn write_next(&self, root: &Root, form: &Form) -> Result<(), Failure> {
        Self(self.next()).replace(root, form).map(drop)
    }

    /// Puts the next key in this one's place, which is overwritten.
    pub(super) fn put_next(&self) -> Result<(), Failure> {
        let failed = |error| Failure::io(self.0.display(), &error);
        let before = File::options().write(true).open(&self.0).ok();
        // At no time is there none.
        fs::rename(self.next(), &self.0).map_err(failed)?;
        sync_folder(&self.0).map_err(failed)?;
        before.map_or(Ok(()), overwrite).map_err(failed)
    }

    fn is_cut_short(&self) -> bool {
        !self.0.exists() && self.next().exists()
    }

    fn next(&self) -> PathBuf {
        let mut name = self.0.as_os_str().to_owned();
        name.push(".");
        name.push(NEXT);
        name.into()
    }
}

/// What was renamed in a folder stays so, whatever happens to the machine.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn open(path: &Path, source: &RootSource, form: &mut Form) -> Result<Root, Failure> {
    let bytes = read(path)?;
    if !age_file::is_one(&bytes) {
        // One that is locked may lie on a stick that knows no owners.
        check_mode(path)?;
        return parse(&bytes, path);
    }
    if let Form::Plain = form {
        *form = Form::Locked(Passphrase::read(source, path)?);
    }
    let Form::Locked(passphrase) = form else { return Err(damaged(path)) };
    parse(&age_file::unlock(&bytes, passphrase, path)?, path)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| Failure::io(path.display(), &error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(damaged(path)) } else { Ok(bytes) }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Root, Failure> {
    let mut key = HEXLOWER.decode(bytes.trim_ascii()).map_err(|_| damaged(path))?;
    let root = <[u8; 32]>::try_from(key.as_slice()).map(|key| Root::from_bytes(&Zeroizing::new(key)));
    key.zeroize();
    root.map_err(|_| damaged(path))
}

fn damaged(path: &Path) -> Failure {
    let message = format!("{} holds no root key of 64 hexadecimal digits, locked or not", path.display());
    Failure::new("identity", message, "restore it from a copy")
}

/// Replaces a file, and overwrites what it held before.
fn write_over(path: &Path, text: &str) -> Result<(), Failure> {
    let before = File::options().write(true).open(path).ok();
    write_private(path, text)?;
    before.map_or(Ok(()), |file| overwrite(file).map_err(|error| Failure::io(path.display(), &error)))
}

/// Overwrites a file and removes it, if there is one.
pub(super) fn wipe(path: &Path) -> Result<(), Failure> {
    let wiped = match File::options().write(true).open(path) {
        Ok(file) => overwrite(file).and_then(|()| fs::remove_file(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    wiped.map_err(|error| Failure::io(path.display(), &error))
}

/// As far as the file's own blocks go: what a disk or a copy-on-write file system keeps of them is out of reach.
fn overwrite(mut file: File) -> std::io::Result<()> {
    let len = file.metadata()?.len().min(FILE_BYTES_MAX);
    file.rewind()?;
    file.write_all(&vec![0; usize::try_from(len).unwrap_or(0)])?;
    file.sync_all()
}
