//! Ctrl-C and SIGTERM, as something to wait for.

use tokio::signal;

use crate::failure::Failure;

/// Hears Ctrl-C and SIGTERM from the moment it is made; none is lost while nobody waits.
#[derive(Debug)]
pub(crate) struct Interrupt {
    #[cfg(unix)]
    interrupt: signal::unix::Signal,
    #[cfg(unix)]
    terminate: signal::unix::Signal,
}

impl Interrupt {
    /// Listens from now on: neither signal ends the process by itself any more.
    pub(crate) fn listen() -> Result<Self, Failure> {
        #[cfg(unix)]
        {
            use signal::unix::{SignalKind, signal};
            let listen = |kind| signal(kind).map_err(|error| Failure::io("listening for signals", &error));
            Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for the next one.
    pub(crate) async fn wait(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        if signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }

    /// What `work` gives, or a failure as soon as the user gives up on it.
    pub(crate) async fn or<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            done = work => Ok(done),
            () = self.wait() => Err(Failure::new("cancelled", "interrupted", "")),
        }
    }
}
