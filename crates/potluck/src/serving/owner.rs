//! The owner's word while a machine is lent: looked for several times a second, on threads of their own.
//!
//! What the owner says (`potluck pause`) is looked for by one thread, what is seen by another: a screen that does not answer keeps nobody
//! from having the machine back.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use potluck_owner::{Keeper, Reason, Seen, Senses, Terms, Verdict};
use tokio::sync::watch;

use crate::{
    commands::swarm::utc_now,
    failure::Failure,
    home::{Home, Lending, LendingNote},
};

/// How often it is looked whether the owner wants the machine, and what there is to be seen.
const LOOK_EVERY: Duration = Duration::from_millis(150);
const SEE_EVERY: Duration = Duration::from_millis(250);

/// What was seen so long ago is not known any more.
const STALE: Duration = Duration::from_secs(5);

/// What the owner wants, as far as a process that lends is concerned, and what others may know of it.
#[derive(Debug)]
pub(crate) struct Owner {
    wants: watch::Receiver<Option<Reason>>,
    note: LendingNote,
}

impl Owner {
    /// Looks from now on, until this is dropped.
    ///
    /// # Errors
    /// Where terms are set that this build does not read: it does not lend without them.
    pub(crate) fn watch(home: &Home) -> Result<Self, Failure> {
        let terms = home.terms()?;
        let sight = Arc::new(Sight { terms: Mutex::new(terms.clone()), seen: Mutex::new(None) });
        let mut look = Look { home: home.clone(), terms, keeper: Keeper::default(), sight: sight.clone() };
        let (say, wants) = watch::channel(look.decide());
        let sees = move || see(&sight);
        let watches = move || {
            while !say.is_closed() {
                thread::sleep(LOOK_EVERY);
                let wants = look.decide();
                // How long ago somebody was there changes all the time, and nothing with it.
                let code = |reason: &Option<Reason>| reason.as_ref().map(Reason::code);
                say.send_if_modified(|said| {
                    let differs = code(said) != code(&wants);
                    if differs {
                        *said = wants;
                    }
                    differs
                });
            }
        };
        spawn("owner", watches)?;
        spawn("owner-sees", sees)?;
        Ok(Self { wants, note: LendingNote::begin(home)? })
    }

    /// Why the machine is not to be lent; none: it is.
    pub(crate) fn wants(&mut self) -> Option<Reason> {
        if self.wants.has_changed().is_err() {
            return Some(Reason::Unseen("nobody looks any more: start it again".into()));
        }
        self.wants.borrow_and_update().clone()
    }

    /// Until the owner wants something else.
    pub(crate) async fn changed(&mut self) {
        if self.wants.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// What the owner wants, for whoever waits beside.
    pub(crate) fn view(&self) -> watch::Receiver<Option<Reason>> {
        self.wants.clone()
    }

    /// Why nothing is lent now.
    pub(crate) fn say_not(&mut self, reason: &Reason) {
        self.note.say(|lending| {
            lending.lends = None;
            lending.reason = Some((reason.code().into(), reason.to_string()));
        });
    }

    /// What is lent now: for whoever asks on this machine.
    pub(crate) fn say(&mut self, change: impl FnOnce(&mut Lending)) {
        self.note.say(change);
    }
}

/// Until the owner wants the machine, or nobody knows any more.
pub(crate) async fn taken_back(wants: &mut watch::Receiver<Option<Reason>>) {
    let _ = wants.wait_for(Option::is_some).await;
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned = thread::Builder::new().name(name.into()).spawn(work);
    spawned.map(drop).map_err(|error: io::Error| Failure::io("starting a thread", &error))
}

/// What is to be seen, and what was.
#[derive(Debug)]
struct Sight {
    terms: Mutex<Terms>,
    seen: Mutex<Option<(Instant, Seen)>>,
}

/// Sees what terms ask for, as long as somebody wants to know.
fn see(sight: &Arc<Sight>) {
    let mut senses = None;
    // The other thread has the second.
    while Arc::strong_count(sight) > 1 {
        let terms = sight.terms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if terms.are_any() {
            let seen = senses.get_or_insert_with(Senses::default).look(&terms);
            *sight.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), seen));
        }
        thread::sleep(SEE_EVERY);
    }
}

/// Decides, again and again.
struct Look {
    home: Home,
    /// The last ones that could be read.
    terms: Terms,
    keeper: Keeper,
    sight: Arc<Sight>,
}

impl Look {
    fn decide(&mut self) -> Option<Reason> {
        // What cannot be read says that it is there.
        let pause = self.home.pause().unwrap_or(Some(potluck_owner::Pause { until: None }));
        if let Some(pause) = pause.filter(|pause| pause.holds(utc_now())) {
            return Some(Reason::Paused(pause.until));
        }
        // They may be half changed by hand: those before hold until they can be read.
        if let Ok(terms) = self.home.terms()
            && terms != self.terms
        {
            self.sight.terms.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&terms);
            self.terms = terms;
        }
        if !self.terms.are_any() {
            self.keeper = Keeper::default();
            return None;
        }
        let seen = self.sight.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((_, seen)) = seen.filter(|(at, _)| at.elapsed() < STALE) else {
            return Some(Reason::Unseen("it is looked at, and nothing has been seen yet".into()));
        };
        match self.keeper.decide(Instant::now(), utc_now(), &self.terms, None, &seen) {
            Verdict::Lend => None,
            Verdict::Not(reason) => Some(reason),
        }
    }
}
