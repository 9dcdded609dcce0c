//! Several are asked at once, and whoever is gone holds up nobody.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// How long peers that do not answer are waited for when one has: as long as until a lost one is noticed.
pub(crate) const STRAGGLERS: Duration = Duration::from_secs(3);

/// Waits for what comes of `asked`, and for what is late no longer than `patience` after the first that `note` finds good. What is late
/// still stays in `asked`.
pub(crate) async fn most<T: 'static>(asked: &mut JoinSet<T>, patience: Duration, mut note: impl FnMut(T) -> bool) {
    let mut until = None;
    loop {
        let next = asked.join_next();
        let next = match until {
            Some(until) => timeout_at(until, next).await,
            None => Ok(next.await),
        };
        let Ok(Some(answer)) = next else { return };
        if answer.is_ok_and(&mut note) {
            until.get_or_insert_with(|| Instant::now() + patience);
        }
    }
}

/// Waits for all that is late; whether anything was.
pub(crate) async fn rest<T: 'static>(asked: &mut JoinSet<T>, mut note: impl FnMut(T)) -> bool {
    let were = !asked.is_empty();
    while let Some(answer) = asked.join_next().await {
        // One that has panicked has said so.
        answer.into_iter().for_each(&mut note);
    }
    were
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_gone_is_waited_for_until_somebody_has_helped() {
        let mut asked = JoinSet::new();
        let (go, late) = tokio::sync::oneshot::channel::<()>();
        asked.spawn(std::future::pending());
        asked.spawn(async move {
            drop(late.await);
            "late"
        });
        asked.spawn(std::future::ready("empty"));
        asked.spawn(std::future::ready("good"));
        let mut heard = Vec::new();
        most(&mut asked, Duration::ZERO, |name| {
            heard.push(name);
            name == "good"
        })
        .await;
        assert!(heard.contains(&"good") && !heard.contains(&"late"), "{heard:?}");
        assert_eq!(asked.len() + heard.len(), 4, "who was not waited for can be still");
        // As long as nobody has helped, the late one is waited for, and the one that is gone holds nobody up after that.
        let _ = go.send(());
        most(&mut asked, Duration::ZERO, |name| name == "late").await;
        assert_eq!(asked.len(), 1);
    }
}
