//! The server's clock, as this process knows it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;

use crate::{Clock, SystemClock, Timestamp};

/// The machine's clock, set to the server's whenever an answer tells its time.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerClock {
    /// How many microseconds the server is ahead.
    ahead: Arc<AtomicI64>,
}

impl ServerClock {
    /// Longest single wait before the time is read again, so that a clock that was set is noticed.
    const NAP_MAX: Duration = Duration::from_secs(60);

    /// Takes in that the server read `server` between two instants of the machine's clock. An estimate that agrees
    /// with this is kept.
    pub(super) fn observe(&self, sent: Timestamp, server: Timestamp, received: Timestamp) {
        let most = server.as_micros() - sent.as_micros();
        let least = server.as_micros() - received.as_micros();
        let ahead = self.ahead.load(Ordering::Relaxed);
        // A machine's clock that was set back between the two instants tells nothing.
        if least <= most && !(least..=most).contains(&ahead) {
            self.ahead.store(least + (most - least) / 2, Ordering::Relaxed);
        }
    }
}

impl Clock for ServerClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(SystemClock.now().as_micros().saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let clock = self.clone();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_narrows_what_the_servers_time_can_be() {
        let clock = ServerClock::default();
        let at = Timestamp::from_micros;
        let ahead = |clock: &ServerClock| clock.ahead.load(Ordering::Relaxed);
        clock.observe(at(1_000), at(61_050), at(1_100));
        assert_eq!(ahead(&clock), 60_000);
        clock.observe(at(2_000), at(62_010), at(3_000));
        assert_eq!(ahead(&clock), 60_000, "a slow answer says nothing new");
        clock.observe(at(4_000), at(63_930), at(4_020));
        assert_eq!(ahead(&clock), 59_920, "a quick one does");
        clock.observe(at(5_000), at(9_000), at(4_000));
        assert_eq!(ahead(&clock), 59_920, "the machine's clock was set back meanwhile");
    }
}
