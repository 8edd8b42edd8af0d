//! A clock that knows who waits for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ergon_storage::{Clock, ManualClock, Timestamp};
use futures::future::BoxFuture;

/// A clock that stands still until it is moved, and knows for which instants somebody waits. Clones are the same
/// clock.
#[derive(Debug, Clone, Default)]
pub(super) struct TestClock {
    clock: ManualClock,
    /// How many wait for each instant.
    waits: Arc<Mutex<BTreeMap<Timestamp, usize>>>,
}

impl TestClock {
    /// Moves the time to `at`, never back.
    pub(super) fn move_to(&self, at: Timestamp) {
        if at > self.clock.now() {
            self.clock.set(at);
        }
    }

    /// The next instant that somebody waits for.
    pub(super) fn next_wait(&self) -> Option<Timestamp> {
        let now = self.clock.now();
        // Whoever waits for the end of time waits for nothing.
        self.waits().keys().copied().find(|at| *at > now && *at < Timestamp::MAX)
    }

    fn waits(&self) -> MutexGuard<'_, BTreeMap<Timestamp, usize>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        *self.waits().entry(at).or_default() += 1;
        let wait = Wait { clock: self.clone(), at };
        Box::pin(async move { wait.clock.clock.sleep_until(wait.at).await })
    }
}

/// Somebody waits.
struct Wait {
    clock: TestClock,
    at: Timestamp,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waits = self.clock.waits();
        if let Some(count) = waits.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                waits.remove(&self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_next_wait_is_known_while_somebody_waits() {
        let clock = TestClock::default();
        let at = |seconds| clock.now().saturating_add(Duration::from_secs(seconds));
        let _never = clock.sleep_until(Timestamp::MAX);
        assert_eq!(clock.next_wait(), None);
        let (first, second) = (at(1), at(2));
        let (soon, twin, later) = (clock.sleep_until(first), clock.sleep_until(first), clock.sleep_until(second));
        drop(soon);
        assert_eq!(clock.next_wait(), Some(first));
        clock.move_to(first);
        twin.await;
        assert_eq!(clock.next_wait(), Some(second));
        clock.move_to(Timestamp::EPOCH);
        assert_eq!(clock.now(), first);
        drop(later);
        assert_eq!(clock.next_wait(), None);
    }
}
