//! Models that come and go at a client's wish: what keeps them is behind a trait, this module knows no store.
//!
//! One task owns every pull, on the thread of the slots. Who asks for what is under way already follows it; a pull that nobody follows
//! any more ends, and what has come is kept for the next one.

use std::collections::HashMap;

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{Problem, Whose};

/// Pulls under way at once. More are refused.
const PULLS_MAX: usize = 4;

/// What is wished for on its way to the keeper. Beyond it handlers wait.
pub(crate) const WISHES_MAX: usize = 16;

/// Keeps models.
#[expect(async_fn_in_trait, reason = "a keeper is asked on the thread of the local set")]
pub trait Keeper: Clone + 'static {
    /// Gets a model, whole, and tells how far it has come. Dropped, it stops.
    ///
    /// # Errors
    /// Why not; whoever asked is told.
    async fn pull(&self, name: &str, tell: &mut dyn FnMut(Step)) -> Result<(), Problem>;

    /// Forgets a model.
    ///
    /// # Errors
    /// `Missing` where there is none, `Conflict` where it is in use.
    async fn delete(&self, name: &str) -> Result<(), Problem>;
}

/// How far a pull has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It is found out what there is.
    Asking,
    /// A part of it comes.
    Coming {
        /// What it is the hash of, such as `sha256:...`.
        digest: String,
        /// Bytes of it that are here.
        done: u64,
        /// Bytes of it.
        total: u64,
    },
    /// All is here, and is read once.
    Checking,
}

/// The same, and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    Step(Step),
    Done(Result<(), Problem>),
}

/// What handlers ask for.
#[derive(Debug)]
pub(crate) enum Wish {
    Pull(String, oneshot::Sender<Result<watch::Receiver<Progress>, Problem>>),
    Delete(String, oneshot::Sender<Result<(), Problem>>),
}

/// A pull under way.
struct Pull {
    progress: watch::Sender<Progress>,
    task: JoinHandle<()>,
}

/// Does what is wished for, until `stop` or until nobody can wish any more: then what is under way ends. In a local set.
pub(crate) async fn run<K: Keeper>(keeper: K, mut wishes: mpsc::Receiver<Wish>, stop: oneshot::Receiver<()>) {
    let mut pulls: HashMap<String, Pull> = HashMap::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let wish = tokio::select! {
            _ = &mut stop => break,
            wish = wishes.recv() => wish,
        };
        match wish {
            Some(Wish::Pull(name, reply)) => {
                pulls.retain(|_, pull| !pull.task.is_finished());
                let following = follow(&keeper, &mut pulls, name);
                // Whoever asked may be gone already.
                let _ = reply.send(following);
            }
            Some(Wish::Delete(name, reply)) => {
                let keeper = keeper.clone();
                tokio::task::spawn_local(async move {
                    let _ = reply.send(keeper.delete(&name).await);
                });
            }
            None => break,
        }
    }
    for pull in pulls.into_values() {
        pull.task.abort();
    }
}

fn follow<K: Keeper>(
    keeper: &K,
    pulls: &mut HashMap<String, Pull>,
    name: String,
) -> Result<watch::Receiver<Progress>, Problem> {
    if let Some(pull) = pulls.get(&name)
        && !matches!(*pull.progress.borrow(), Progress::Done(_))
    {
        return Ok(pull.progress.subscribe());
    }
    if pulls.len() >= PULLS_MAX {
        let message = format!("{PULLS_MAX} models are being pulled: wait until one of them is here");
        return Err(Problem::new(Whose::Busy(60), "too_many_pulls", message));
    }
    let (progress, following) = watch::channel(Progress::Step(Step::Asking));
    let (keeper, told, of) = (keeper.clone(), progress.clone(), name.clone());
    let task = tokio::task::spawn_local(async move {
        let mut tell = |step| drop(told.send_replace(Progress::Step(step)));
        let ended = tokio::select! {
            ended = keeper.pull(&of, &mut tell) => ended,
            // Nobody follows it any more.
            () = told.closed() => return,
        };
        told.send_replace(Progress::Done(ended));
    });
    pulls.insert(name, Pull { progress, task });
    Ok(following)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{sync::Notify, task::LocalSet};

    use super::*;

    /// Pulls until it is told that all has come; counts what it was asked for, and what was dropped.
    #[derive(Clone, Default)]
    struct Counting {
        begun: Rc<RefCell<Vec<String>>>,
        dropped: Rc<Notify>,
        come: Rc<Notify>,
    }

    struct Dropped(Rc<Notify>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    impl Keeper for Counting {
        async fn pull(&self, name: &str, tell: &mut dyn FnMut(Step)) -> Result<(), Problem> {
            let _dropped = Dropped(self.dropped.clone());
            self.begun.borrow_mut().push(name.to_owned());
            tell(Step::Coming { digest: "sha256:00".into(), done: 1, total: 2 });
            self.come.notified().await;
            Ok(())
        }

        async fn delete(&self, name: &str) -> Result<(), Problem> {
            Err(Problem::new(Whose::Missing, "model_not_found", format!("model '{name}' not found")))
        }
    }

    async fn wish<T>(wishes: &mpsc::Sender<Wish>, make: impl FnOnce(oneshot::Sender<T>) -> Wish) -> T {
        let (reply, answer) = oneshot::channel();
        wishes.send(make(reply)).await.unwrap();
        answer.await.unwrap()
    }

    #[tokio::test]
    async fn who_asks_for_what_comes_already_follows_it_and_what_nobody_follows_ends() {
        let keeper = Counting::default();
        let (wishes, queue) = mpsc::channel(WISHES_MAX);
        let (stop, stopped) = oneshot::channel();
        let seen = keeper.clone();
        let asks = async move {
            let pull = async |name: &str| wish(&wishes, |reply| Wish::Pull(name.into(), reply)).await;
            let mut first = pull("a").await.unwrap();
            first.changed().await.unwrap();
            let mut second = pull("a").await.unwrap();
            assert_eq!(*second.borrow(), *first.borrow(), "the second one sees how far it is");
            drop(first);
            seen.come.notify_one();
            while !matches!(*second.borrow_and_update(), Progress::Done(Ok(()))) {
                second.changed().await.unwrap();
            }
            assert_eq!(*seen.begun.borrow(), ["a"]);
            seen.dropped.notified().await;

            let third = pull("a").await.unwrap();
            let others = [pull("b").await, pull("c").await, pull("d").await];
            assert!(others.iter().all(Result::is_ok));
            assert!(matches!(pull("e").await, Err(Problem { whose: Whose::Busy(_), .. })), "four at a time");
            drop(third);
            seen.dropped.notified().await;
            assert_eq!(wish(&wishes, |reply| Wish::Delete("x".into(), reply)).await.unwrap_err().whose, Whose::Missing);
            let mut last = pull("e").await.unwrap();
            stop.send(()).unwrap();
            while last.changed().await.is_ok() {}
            assert!(!matches!(*last.borrow(), Progress::Done(_)), "what is under way ends with the gateway");
        };
        let local = LocalSet::new();
        local.run_until(async { tokio::join!(run(keeper, queue, stopped), asks) }).await;
    }
}
