//! Where time comes from.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::Timestamp;

/// The source of time of an embedded log, and of everything that waits for it.
///
/// The log alone decides about time: leases, timers and start times are compared with its clock, so that the
/// clocks of several workers need not agree.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present instant.
    fn now(&self) -> Timestamp;

    /// Resolves once [`now`](Clock::now) has reached `at`, never before; at once if it already has.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()>;
}

/// The machine's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Longest single wait before the wall clock is read again, so that a clock that was set is noticed.
    const NAP_MAX: Duration = Duration::from_secs(60);
}

impl Clock for SystemClock {
    // The one place that may read the machine's clock.
    #[allow(clippy::disallowed_methods)]
    fn now(&self) -> Timestamp {
        Timestamp::from(SystemTime::now())
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let clock = *self;
        Box::pin(async move {
            loop {
                let left = at.since(clock.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(Self::NAP_MAX)).await;
            }
        })
    }
}

/// A clock that stands still until a test moves it.
///
/// Clones share the same time.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ergon_storage::{Clock, ManualClock};
///
/// let clock = ManualClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(3600));
/// assert_eq!(clock.now().since(before), Duration::from_secs(3600));
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: watch::Sender<Timestamp>,
}

impl ManualClock {
    /// A clock that stands at the start of the year 2025.
    #[must_use]
    pub fn new() -> Self {
        Self::starting_at(Timestamp::from_micros(1_735_689_600_000_000))
    }

    /// A clock that stands at `now`.
    #[must_use]
    pub fn starting_at(now: Timestamp) -> Self {
        Self { now: watch::Sender::new(now) }
    }

    /// Moves the time forward and wakes everything whose instant has come.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now = now.saturating_add(by));
    }

    /// Moves the time to `at`, which may lie in the past.
    pub fn set(&self, at: Timestamp) {
        self.now.send_replace(at);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let mut now = self.now.subscribe();
        // The sender is kept alive by the future, so that waiting cannot fail.
        let clock = self.clone();
        Box::pin(async move {
            let reached = now.wait_for(|now| *now >= at).await.is_ok();
            debug_assert!(reached, "the clock is held by this future");
            drop(clock);
        })
    }
}
