//! A thread of the client's own: its connections live there, whatever the program's own threads are busy with.
//!
//! A connection whose owner computes for three seconds would be lost otherwise, and the program would need a runtime of
//! a certain kind.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use potluck_net::Node;
use tokio::{
    runtime::{Builder, Handle},
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, LocalSet, spawn_local},
    time::timeout,
};

use super::ClientError;

/// Longest that the other sides may take to hear that this one ends.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// The thread. Clones are the same; it ends with the last, or when told to.
#[derive(Debug, Clone)]
pub(super) struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle,
    local: mpsc::UnboundedSender<Local>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    node: Arc<Mutex<Option<Node>>>,
    over: watch::Receiver<bool>,
}

/// Work that stays on its thread.
type Local = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Work that ends when nobody waits for it any more.
struct Abandoned(AbortHandle);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Worker {
    /// Starts it.
    pub(super) fn start() -> Result<Self, ClientError> {
        let failed = |error| ClientError::io("starting the client's thread", &error);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let ((stop, stopped), (ended, over)) = (oneshot::channel::<()>(), watch::channel(false));
        let node = Arc::<Mutex<Option<Node>>>::default();
        let (local, begun) = mpsc::unbounded_channel::<Local>();
        let last = node.clone();
        let work = move || {
            runtime.block_on(async {
                LocalSet::new().run_until(until_stopped(stopped, begun)).await;
                let node = lock(&last).take();
                if let Some(node) = node {
                    let _ = timeout(CLOSE_MAX, node.close()).await;
                }
            });
            drop(runtime);
            ended.send_replace(true);
        };
        thread::Builder::new().name("potluck".into()).spawn(work).map_err(failed)?;
        Ok(Self(Arc::new(Inner { handle, local, stop: Mutex::new(Some(stop)), node, over })))
    }

    /// Closes this node at the end.
    pub(super) fn keep(&self, node: Node) {
        *lock(&self.0.node) = Some(node);
    }

    /// Does that work there. It ends early where nobody waits for it any more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ClientError> {
        let task = self.0.handle.spawn(work);
        let _abandoned = Abandoned(task.abort_handle());
        task.await.map_err(|_| ClientError::Closed)
    }

    /// Does it there, whoever waits for it.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.0.handle.spawn(work).abort_handle()
    }

    /// The same for work that may not leave its thread. Nothing comes of it once the thread has ended.
    pub(super) fn spawn_local<F: Future<Output = ()> + 'static>(&self, work: impl FnOnce() -> F + Send + 'static) {
        let _ = self.0.local.send(Box::new(move || Box::pin(work())));
    }

    /// Ends it, and returns once it has ended.
    pub(super) async fn stop(&self) {
        let stop = lock(&self.0.stop).take();
        drop(stop);
        let mut over = self.0.over.clone();
        // The thread that would say so may be gone.
        let _ = over.wait_for(|over| *over).await;
    }
}

/// Begins what it is given, until it is to end: also where whoever would say so is gone.
async fn until_stopped(mut stopped: oneshot::Receiver<()>, mut begun: mpsc::UnboundedReceiver<Local>) {
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            Some(work) = begun.recv() => drop(spawn_local(work())),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_waits_for_ends_and_so_does_the_thread() {
        let worker = Worker::start().unwrap();
        assert_eq!(worker.run(async { 7 }).await, Ok(7));
        let (kept, dropped) = oneshot::channel::<()>();
        let waits = worker.run(async move {
            let _kept = kept;
            std::future::pending::<()>().await;
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), waits).await.is_err());
        assert!(dropped.await.is_err(), "it is gone");
        worker.stop().await;
        worker.stop().await;
        assert_eq!(worker.run(async {}).await, Err(ClientError::Closed));
    }
}
