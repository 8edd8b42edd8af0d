//! A clock for tests that wait for hours.

use std::{sync::Arc, time::Duration};

use ergon::{Timestamp, storage::Clock};
use futures::future::BoxFuture;
use tokio::{sync::watch, time::Instant};

/// A clock that goes with tokio's, perhaps many times as fast.
///
/// In a runtime whose time is paused it jumps from one deadline to the next whenever nothing else is to be done.
/// Each runtime has a time of its own: call [`enter`](Self::enter) when another one takes over.
#[derive(Debug, Clone)]
pub struct TestClock {
    speed: u32,
    origin: Arc<watch::Sender<(Timestamp, Instant)>>,
}

impl TestClock {
    /// A clock that runs `speed` times as fast as tokio's.
    #[must_use]
    pub fn new(speed: u32) -> Self {
        let beginning = Timestamp::from_micros(1_735_689_600_000_000);
        Self { speed, origin: Arc::new(watch::Sender::new((beginning, Instant::now()))) }
    }

    /// Goes on in the runtime of the calling task, `later` than it stopped.
    pub fn enter(&self, stopped_at: Timestamp, later: Duration) {
        self.origin.send_replace((stopped_at.saturating_add(later), Instant::now()));
    }

    /// Lets so much time pass at once.
    pub fn skip(&self, time: Duration) {
        self.enter(self.now(), time);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let (base, origin) = *self.origin.borrow();
        base.saturating_add(origin.elapsed() * self.speed)
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let (clock, mut skipped) = (self.clone(), self.origin.subscribe());
        Box::pin(async move {
            loop {
                let left = at.since(clock.now());
                if left.is_zero() {
                    return;
                }
                let nap = (left / clock.speed).max(Duration::from_micros(1)).min(Duration::from_secs(60 * 60));
                // The clock is held by this future.
                let _ = tokio::time::timeout(nap, skipped.changed()).await;
            }
        })
    }
}
