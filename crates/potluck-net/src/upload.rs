//! How many bytes a second a node sends, all its streams together.

use std::{num::NonZeroU32, sync::Arc};

use bytes::Bytes;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    state::{InMemoryState, NotKeyed},
};
use tokio::{sync::Mutex, time::sleep};

/// Bytes that go at once: what waits for its turn behind them does not wait long.
const PIECE_BYTES: u32 = 16 << 10;

/// What is counted: the limiter knows whole nanoseconds, and a byte of a fast line takes less than one.
const UNIT_BYTES: u32 = 64;

/// How much of a second's bytes may go at once where nothing went before: timers are not exact.
const BURSTS_A_SECOND: u32 = 50;

/// A limit, shared by all streams of a node.
#[derive(Debug, Clone)]
pub(crate) struct Upload(Arc<Limit>);

#[derive(Debug)]
struct Limit {
    rate: RateLimiter<NotKeyed, InMemoryState, MonotonicClock>,
    /// Whose turn it is: who came first.
    turn: Mutex<()>,
}

impl Upload {
    pub(crate) fn new(bytes_per_second: NonZeroU32) -> Self {
        let units = |bytes: u32| NonZeroU32::new(bytes / UNIT_BYTES).unwrap_or(NonZeroU32::MIN);
        let burst = PIECE_BYTES.max(bytes_per_second.get() / BURSTS_A_SECOND);
        let quota = Quota::per_second(units(bytes_per_second.get())).allow_burst(units(burst));
        Self(Arc::new(Limit { rate: RateLimiter::direct_with_clock(quota, MonotonicClock), turn: Mutex::default() }))
    }

    /// Cuts off what may be sent at once, and waits until it may.
    pub(crate) async fn next(&self, bytes: &mut Bytes) -> Bytes {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES as usize));
        let Some(units) = NonZeroU32::new((piece.len() as u32).div_ceil(UNIT_BYTES)) else { return piece };
        let Limit { rate, turn } = &*self.0;
        let _turn = turn.lock().await;
        // No piece is more than a burst.
        while let Ok(Err(not_yet)) = rate.check_n(units) {
            sleep(not_yet.wait_time_from(MonotonicClock.now())).await;
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    async fn sent(upload: &Upload, mut bytes: Bytes) -> Vec<u8> {
        let mut sent = Vec::new();
        while !bytes.is_empty() {
            sent.extend_from_slice(&upload.next(&mut bytes).await);
        }
        sent
    }

    #[tokio::test]
    async fn what_is_sent_takes_as_long_as_it_must_and_all_of_it_is() {
        let rate = 1_000_000;
        let upload = Upload::new(NonZeroU32::new(rate).unwrap());
        let whole: Bytes = (0..200_000_u32).map(|at| at as u8).collect();
        let begun = Instant::now();
        let (one, other) = tokio::join!(sent(&upload, whole.clone()), sent(&upload, Bytes::from(vec![1; 100_000])));
        assert_eq!((&one[..], other.len()), (&whole[..], 100_000));
        // All but what went at once had to wait for its turn.
        let least = f64::from(300_000 - rate / BURSTS_A_SECOND) / f64::from(rate);
        assert!(begun.elapsed() >= Duration::from_secs_f64(least), "{:?}", begun.elapsed());
        assert!(upload.next(&mut Bytes::new()).await.is_empty());
    }

    #[tokio::test]
    async fn whoever_sends_little_does_not_wait_for_all_that_another_sends() {
        let upload = Upload::new(NonZeroU32::new(1_000_000).unwrap());
        let mut long = Box::pin(sent(&upload, Bytes::from(vec![1; 1_000_000])));
        let mut short = Box::pin(sent(&upload, Bytes::from(vec![2; 100])));
        let first = std::future::poll_fn(|context| {
            // Both wait; the long one came first.
            assert!(long.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(short.as_mut().poll(context).is_ready())
        });
        assert!(!first.await, "it waits for its turn");
        tokio::select! {
            biased;
            _ = &mut long => panic!("the long one was never interrupted"),
            sent = &mut short => assert_eq!(sent.len(), 100),
        }
    }
}
