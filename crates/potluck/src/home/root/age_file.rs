//! A root key under a passphrase: a file of the `age` format, which its own program reads and writes, too.

use std::{
    fmt,
    io::{BufRead, BufReader, IsTerminal, Read, Write, stderr, stdin},
    path::Path,
};

use age::{
    armor::{ArmoredReader, ArmoredWriter, Format},
    scrypt,
    secrecy::{ExposeSecret as _, SecretString},
};
use zeroize::Zeroizing;

use super::RootSource;
use crate::{
    failure::{Failure, OrFail},
    home::identity::check_mode,
};

/// The work of a guess, as a power of two: that of the `age` program, 256 MiB and about a second.
const WORK: u8 = 18;

/// The most that a file may ask for: 1 GiB of memory. What asks for more is refused before anything is computed.
const WORK_MAX: u8 = 20;

/// Bytes of a passphrase. A longer one is refused.
const PASSPHRASE_BYTES_MAX: u64 = 1_024;

/// Characters that a new passphrase has at least.
const PASSPHRASE_CHARS_MIN: usize = 8;

/// Bytes of what is locked. What unlocks to more is no root key.
const KEY_BYTES_MAX: u64 = 1_024;

/// How files of the format begin, as bytes and as text.
const BINARY: &[u8] = b"age-encryption.org/v1";
const ARMOR: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

/// What locks a root key. Overwritten when it is dropped, and never shown.
#[derive(Clone)]
pub(crate) struct Passphrase(SecretString);

impl Passphrase {
    /// The one that opens `path`: the first line of the file that the user named, or what is typed on the terminal.
    pub(super) fn read(source: &RootSource, path: &Path) -> Result<Self, Failure> {
        match &source.passphrase {
            Some(file) => Self::from_file(file),
            None => ask(&format!("passphrase of {}: ", path.display())),
        }
    }

    /// A new one: typed twice, or the first line of the file.
    pub(crate) fn choose(source: &RootSource) -> Result<Self, Failure> {
        let chosen = match &source.passphrase {
            // What is typed is typed twice.
            Some(file) if file != Path::new("-") || !stdin().is_terminal() => Self::from_file(file)?,
            _ => {
                let chosen = ask("new passphrase of the root key: ")?;
                if ask("again: ")?.0.expose_secret() != chosen.0.expose_secret() {
                    return Err(Failure::new("passphrase", "the two are not the same", "try again"));
                }
                chosen
            }
        };
        if chosen.0.expose_secret().chars().count() < PASSPHRASE_CHARS_MIN {
            let message = format!("a passphrase has {PASSPHRASE_CHARS_MIN} characters or more");
            return Err(Failure::new(
                "passphrase",
                message,
                "five or six words that nobody else would choose are good",
            ));
        }
        Ok(chosen)
    }

    fn from_file(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") && stdin().is_terminal() {
            return ask("passphrase of the root key: ");
        }
        if path == Path::new("-") {
            return Self::from_line(stdin().lock(), path);
        }
        if path.is_file() {
            check_mode(path)?;
        }
        let file = std::fs::File::open(path).map_err(|error| Failure::io(path.display(), &error))?;
        Self::from_line(BufReader::new(file), path)
    }

    fn from_line(from: impl BufRead, path: &Path) -> Result<Self, Failure> {
        let mut line = Zeroizing::new(String::new());
        from.take(PASSPHRASE_BYTES_MAX + 1)
            .read_line(&mut line)
            .map_err(|error| Failure::io(path.display(), &error))?;
        if line.len() as u64 > PASSPHRASE_BYTES_MAX {
            let message = format!("the first line of {} has more than {PASSPHRASE_BYTES_MAX} bytes", path.display());
            return Err(Failure::new("passphrase", message, "choose a shorter one"));
        }
        let line = line.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            let message = format!("the first line of {} is no passphrase", path.display());
            return Err(Failure::new("passphrase", message, "write it there, and nothing else"));
        }
        Ok(Self(SecretString::from(line.to_owned())))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

fn ask(prompt: &str) -> Result<Passphrase, Failure> {
    if !(stdin().is_terminal() && stderr().is_terminal()) {
        let hint =
            "name a file whose first line it is: --passphrase-file FILE, or POTLUCK_ROOT_PASSPHRASE_FILE; `-` is stdin";
        return Err(Failure::new(
            "root_locked",
            "a passphrase is needed for the root key, and there is no terminal to ask on",
            hint,
        ));
    }
    let typed = rpassword::prompt_password(prompt).map_err(|error| Failure::io("reading a passphrase", &error))?;
    Ok(Passphrase(SecretString::from(typed)))
}

/// Whether these bytes are a file of the format.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(BINARY) || bytes.trim_ascii_start().starts_with(ARMOR)
}

/// Locks a key, as text.
pub(super) fn lock(key: &[u8], passphrase: &Passphrase) -> Result<String, Failure> {
    let mut recipient = scrypt::Recipient::new(passphrase.0.clone());
    recipient.set_work_factor(WORK);
    let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient));
    let encryptor = encryptor.or_fail("internal", "report this")?;
    let write = || {
        let armored = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
        let mut writer = encryptor.wrap_output(armored)?;
        writer.write_all(key)?;
        writer.finish()?.finish()
    };
    let bytes = write().map_err(|error| Failure::io("locking the root key", &error))?;
    String::from_utf8(bytes).or_fail("internal", "report this")
}

/// Unlocks a key; its bytes are wiped when they are dropped.
pub(super) fn unlock(file: &[u8], passphrase: &Passphrase, path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: age::DecryptError| {
        let (code, message, hint) = match error {
            age::DecryptError::ExcessiveWork { required, .. } => (
                "identity",
                format!("{} asks for 2^{required} of work; at most 2^{WORK_MAX} is done", path.display()),
                "lock the key again with `age -p`, or with potluck swarm root --lock",
            ),
            age::DecryptError::DecryptionFailed | age::DecryptError::KeyDecryptionFailed => (
                "passphrase",
                format!("that is not the passphrase of {}", path.display()),
                "try again; what is forgotten cannot be had back",
            ),
            age::DecryptError::NoMatchingKeys => (
                "identity",
                format!("{} is not locked by a passphrase", path.display()),
                "lock it by one: age -d -i IDENTITY FILE | age -p -a -o root.age",
            ),
            other => ("identity", format!("{}: {other}", path.display()), "restore it from a copy"),
        };
        Failure::new(code, message, hint)
    };
    let decryptor = age::Decryptor::new(ArmoredReader::new(file)).map_err(failed)?;
    let mut identity = scrypt::Identity::new(passphrase.0.clone());
    identity.set_max_work_factor(WORK_MAX);
    let reader = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).map_err(failed)?;
    let mut key = Zeroizing::new(Vec::new());
    let read = reader.take(KEY_BYTES_MAX).read_to_end(&mut key);
    read.map_err(|error| Failure::io(path.display(), &error))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the `age` program (1.1.1) made with `age -p`, as text and as bytes, of 1111…17 under that passphrase.
    const MADE: [&[u8]; 2] =
        [include_bytes!("../../../tests/age/root.age"), include_bytes!("../../../tests/age/root-binary.age")];

    fn passphrase(text: &str) -> Passphrase {
        Passphrase(SecretString::from(text.to_owned()))
    }

    fn unlocked(file: &[u8], with: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        unlock(file, &passphrase(with), Path::new("root.age"))
    }

    #[test]
    fn a_file_of_the_age_program_opens_and_so_does_ours() {
        const WORDS: &str = "six words nobody else would choose";
        for made in MADE {
            assert!(is_one(made));
            let key = unlocked(made, WORDS).unwrap();
            assert_eq!(key.trim_ascii(), ["1".repeat(63), "7".to_owned()].concat().as_bytes());
        }
        assert_eq!(unlocked(MADE[0], "six words somebody would choose").unwrap_err().code, "passphrase");
        let ours = lock(b"a key", &passphrase(WORDS)).unwrap();
        assert!(is_one(ours.as_bytes()) && ours.is_ascii());
        assert_eq!(unlocked(ours.as_bytes(), WORDS).unwrap().as_slice(), b"a key");
    }

    #[test]
    fn what_asks_for_too_much_work_or_is_damaged_is_refused() {
        let made = MADE[1].to_vec();
        let at = made.windows(4).position(|window| window == b" 18\n").unwrap();
        let mut costly = made.clone();
        costly[at + 1..at + 3].copy_from_slice(b"21");
        let refused = unlocked(&costly, "six words nobody else would choose").unwrap_err();
        assert!(refused.code == "identity" && refused.message.contains("2^21"), "{refused:?}");
        for cut in [0, 10, 60, at] {
            assert!(unlocked(&made[..cut], "six words nobody else would choose").is_err(), "{cut}");
        }
        assert!(!is_one(b"0123") && !is_one(b""));
    }

    #[test]
    fn a_passphrase_is_the_first_line_and_is_never_shown() {
        let read = |text: &[u8]| Passphrase::from_line(text, Path::new("words"));
        assert_eq!(read(b"two words\r\nand more").unwrap().0.expose_secret(), "two words");
        assert_eq!(read(b"\n").unwrap_err().code, "passphrase");
        assert_eq!(format!("{:?}", read(b"two words").unwrap()), "Passphrase");
    }
}
