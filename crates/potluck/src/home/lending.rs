//! On which terms this machine is lent, and what comes of it at present.

use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use potluck_owner::{Pause, Terms};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Home;
use crate::failure::Failure;

/// What the owner sets.
const TERMS: &str = "terms.json";

/// There where the owner has paused lending.
const PAUSE: &str = "pause.json";

/// What is lent at present: kept by the process that lends.
const LENDING: &str = "lending.json";

/// Held by the process that lends.
const LOCK: &str = "lending.lock";

/// Longest that whoever begins to lend waits for those who only look whether somebody does.
const LOOKED_AT: Duration = Duration::from_millis(500);

/// What the process that lends says of itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Lending {
    /// What it lends; none: nothing now.
    pub(crate) lends: Option<Lent>,
    /// Why it lends nothing: a name for programs, and a sentence.
    pub(crate) reason: Option<(String, String)>,
    /// Sessions of others, by who has them.
    pub(crate) sessions: Vec<(String, usize)>,
    /// Milliseconds that it took to give the machine back, the last time.
    pub(crate) gave_back_ms: Option<u64>,
}

/// A stage that is lent, or what runs on the machine already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lent {
    pub(crate) model: String,
    /// Of a stage: its layers, and the bytes of its weights.
    pub(crate) layers: Option<[u32; 2]>,
    pub(crate) bytes: Option<u64>,
}

/// Says what is lent, as long as it lives.
#[derive(Debug)]
pub(crate) struct LendingNote {
    home: Home,
    /// None where another process of this home lends, too: it has the say.
    lock: Option<File>,
    said: Lending,
}

impl Home {
    /// What the owner has set; the default where nothing was.
    pub(crate) fn terms(&self) -> Result<Terms, Failure> {
        self.read_json(TERMS).map(Option::unwrap_or_default)
    }

    /// Sets them.
    pub(crate) fn set_terms(&self, terms: &Terms) -> Result<(), Failure> {
        self.write_json(TERMS, terms)
    }

    /// Whether the owner has paused lending.
    pub(crate) fn pause(&self) -> Result<Option<Pause>, Failure> {
        self.read_json(PAUSE)
    }

    /// Pauses it, or goes on.
    pub(crate) fn set_pause(&self, pause: Option<Pause>) -> Result<(), Failure> {
        match pause {
            Some(pause) => self.write_json(PAUSE, &pause),
            None => self.remove(PAUSE),
        }
    }

    /// What is lent at present; none: no process lends.
    pub(crate) fn lending(&self) -> Result<Option<Lending>, Failure> {
        let failed = |error: std::io::Error| Failure::io(self.path(LOCK).display(), &error);
        let lock = match File::options().read(true).open(self.path(LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // Those who look do not stand in each other's way.
        match lock.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => self.read_json(LENDING),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        let unreadable = |error| {
            let message = format!("{}: {error}", self.path(name).display());
            Failure::new("io", message, "it was written by another build, or by hand: mend it, or remove it")
        };
        serde_json::from_str(&text).map(Some).map_err(unreadable)
    }

    fn write_json(&self, name: &str, content: &impl Serialize) -> Result<(), Failure> {
        self.write(name, &json(content)?)
    }
}

fn json(content: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(content).map_err(|error| Failure::new("internal", error, "report this"))
}

impl LendingNote {
    /// Begins to say it.
    pub(crate) fn begin(home: &Home) -> Result<Self, Failure> {
        let path = home.path(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| Failure::io(path.display(), &error))?;
        let begun = Instant::now();
        let mut is_ours = lock.try_lock().is_ok();
        while !is_ours && begun.elapsed() < LOOKED_AT {
            thread::sleep(Duration::from_millis(10));
            is_ours = lock.try_lock().is_ok();
        }
        let lock = is_ours.then_some(lock);
        let note = Self { home: home.clone(), lock, said: Lending::default() };
        note.write();
        Ok(note)
    }

    /// What is lent now.
    pub(crate) fn say(&mut self, change: impl FnOnce(&mut Lending)) {
        let mut lending = self.said.clone();
        change(&mut lending);
        if lending != self.said {
            self.said = lending;
            self.write();
        }
    }

    fn write(&self) {
        if self.lock.is_some()
            && let Err(failure) = json(&self.said).and_then(|text| self.home.write_soon(LENDING, &text))
        {
            tracing::warn!(code = %failure.code, "what is lent could not be noted: {}", failure.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Reach;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), Reach::default()).unwrap();
        (dir, home)
    }

    #[test]
    fn terms_and_pauses_are_kept() {
        let (_dir, home) = home();
        assert_eq!((home.terms(), home.pause()), (Ok(Terms::default()), Ok(None)));
        let (terms, pause) = (Terms { idle_s: Some(60), ..Terms::default() }, Pause { until: Some(7) });
        home.set_terms(&terms).unwrap();
        home.set_pause(Some(pause)).unwrap();
        assert_eq!((home.terms(), home.pause()), (Ok(terms), Ok(Some(pause))));
        home.set_pause(None).unwrap();
        home.set_pause(None).unwrap();
        assert_eq!(home.pause(), Ok(None));
        home.write(TERMS, "{\"moon\":1}").unwrap();
        let failure = home.terms().unwrap_err();
        assert!(failure.code == "io" && failure.message.contains("moon"), "{failure:?}");
    }

    #[test]
    fn what_is_lent_is_said_by_the_one_process_that_lends_and_while_it_lives() {
        let (_dir, home) = home();
        assert_eq!(home.lending(), Ok(None));
        let mut note = LendingNote::begin(&home).unwrap();
        assert_eq!(home.lending(), Ok(Some(Lending::default())));
        note.say(|lending| lending.gave_back_ms = Some(3));
        let mut second = LendingNote::begin(&home).unwrap();
        second.say(|lending| lending.gave_back_ms = Some(4));
        assert_eq!(home.lending().unwrap().unwrap().gave_back_ms, Some(3));
        drop(note);
        assert_eq!(home.lending(), Ok(None));
    }
}
