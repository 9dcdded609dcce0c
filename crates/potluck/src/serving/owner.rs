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

use potluck_net::Node;
use potluck_owner::{Keeper, Reason, Seen, Senses, Terms, Verdict};
use tokio::{sync::watch, task::JoinSet};

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
        let last = Some(Reason::Unseen("it is looked at just now".into()));
        let (since, keeper) = (Instant::now(), Keeper::default());
        let mut look = Look { home: home.clone(), terms, since, last, keeper, sight: sight.clone() };
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

    /// Turns whoever wants parts of models away for as long as the owner wants the machine, until this is dropped.
    pub(crate) fn resting(&self, node: &Node) -> JoinSet<()> {
        let (mut wants, node) = (self.view(), node.clone());
        let mut resting = JoinSet::new();
        resting.spawn(async move {
            loop {
                node.rest(wants.borrow_and_update().is_some());
                if wants.changed().await.is_err() {
                    return node.rest(true);
                }
            }
        });
        resting
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
    /// When, for which terms, and what.
    seen: Mutex<Option<(Instant, Terms, Seen)>>,
}

/// Sees what terms ask for, as long as somebody wants to know.
fn see(sight: &Arc<Sight>) {
    let mut senses = None;
    // The other thread has the second.
    while Arc::strong_count(sight) > 1 {
        let terms = sight.terms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if terms.are_any() {
            let seen = senses.get_or_insert_with(Senses::default).look(&terms);
            *sight.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), terms, seen));
        }
        thread::sleep(SEE_EVERY);
    }
}

/// Decides, again and again.
struct Look {
    home: Home,
    /// The last ones that could be read.
    terms: Terms,
    /// Since when these are the terms, and what was decided last.
    since: Instant,
    last: Option<Reason>,
    keeper: Keeper,
    sight: Arc<Sight>,
}

impl Look {
    fn decide(&mut self) -> Option<Reason> {
        let pause = self.paused();
        // They may be half changed by hand: those before hold until they can be read.
        if let Ok(terms) = self.home.terms()
            && terms != self.terms
        {
            self.sight.terms.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&terms);
            (self.terms, self.since) = (terms, Instant::now());
        }
        if pause.is_some() {
            return pause;
        }
        self.last = self.judge();
        self.last.clone()
    }

    fn paused(&self) -> Option<Reason> {
        // What cannot be read says that it is there.
        let pause = self.home.pause().unwrap_or(Some(potluck_owner::Pause { until: None }));
        pause.filter(|pause| pause.holds(utc_now())).map(|pause| Reason::Paused(pause.until))
    }

    fn judge(&mut self) -> Option<Reason> {
        if !self.terms.are_any() {
            self.keeper = Keeper::default();
            return None;
        }
        let seen = self.sight.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match seen.filter(|(at, terms, _)| at.elapsed() < STALE && *terms == self.terms) {
            Some((.., seen)) => match self.keeper.decide(Instant::now(), &self.terms, &seen) {
                Verdict::Lend => None,
                Verdict::Not(reason) => Some(reason),
            },
            // New terms: as before, until it has been looked at.
            None if self.since.elapsed() < STALE => self.last.clone(),
            None => Some(Reason::Unseen("nothing was seen for a while".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use potluck_owner::{Moment, Pause, Power, Presence};

    use super::*;
    use crate::args::Reach;

    fn look() -> (tempfile::TempDir, Look) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), Reach::default()).unwrap();
        let sight = Arc::new(Sight { terms: Mutex::default(), seen: Mutex::default() });
        let (terms, keeper, last) = Default::default();
        (dir, Look { home, terms, since: Instant::now(), last, keeper, sight })
    }

    /// The other thread has seen that, for the terms that hold.
    fn sees(look: &Look, temperature: f32) {
        let (presence, power, temperature) = (Presence::Nobody, Power::Mains, Some(temperature));
        let seen = Seen { presence, others_cpu: None, power, temperature, moment: Moment::now() };
        *look.sight.seen.lock().unwrap() = Some((Instant::now(), look.terms.clone(), seen));
    }

    #[test]
    fn new_terms_change_nothing_until_it_was_looked_at() {
        let (_dir, mut look) = look();
        assert_eq!(look.decide(), None);
        let terms = Terms { temperature: Some(85), ..Terms::default() };
        look.home.set_terms(&terms).unwrap();
        assert_eq!(look.decide(), None, "nobody knows how hot it is");
        assert_eq!(*look.sight.terms.lock().unwrap(), terms);
        sees(&look, 90.0);
        assert_eq!(look.decide(), Some(Reason::Hot(90)));
        // What was seen for other terms says nothing of these.
        look.home.set_terms(&Terms { temperature: Some(95), ..Terms::default() }).unwrap();
        assert_eq!(look.decide(), Some(Reason::Hot(90)));
        // Nobody looks any more.
        look.since = Instant::now().checked_sub(2 * STALE).unwrap();
        assert!(matches!(look.decide(), Some(Reason::Unseen(_))));
        look.home.set_terms(&Terms::default()).unwrap();
        assert_eq!(look.decide(), None);
    }

    #[test]
    fn a_pause_holds_whatever_else_cannot_be_read() {
        let (_dir, mut look) = look();
        look.home.write("terms.json", "{").unwrap();
        assert_eq!(look.decide(), None, "those before hold");
        look.home.set_pause(Some(Pause { until: None })).unwrap();
        assert_eq!(look.decide(), Some(Reason::Paused(None)));
        look.home.write("pause.json", "{").unwrap();
        assert_eq!(look.decide(), Some(Reason::Paused(None)), "it is there");
        look.home.set_pause(None).unwrap();
        assert_eq!(look.decide(), None);
    }
}
