//! What blocks on a person or a pipe: on a thread of its own, which the program's end does not wait for.

use tokio::sync::oneshot;

use crate::failure::Failure;

/// Runs `read` apart. Unlike the runtime's own blocking threads it may block for ever.
pub(crate) async fn apart<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let (send, receive) = oneshot::channel();
    let work = move || {
        // Nobody waits any more where the receiver is gone.
        let _ = send.send(read());
    };
    std::thread::Builder::new().name("input".into()).spawn(work).map_err(|e| Failure::io("starting a thread", &e))?;
    receive.await.map_err(|error| Failure::new("internal", error, "report this"))
}
