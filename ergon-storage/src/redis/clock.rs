//! The server's clock, as near as this process can know it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use redis::Value;

use crate::{Clock, Timestamp};

/// By how much two clocks drift apart at most, as one part of so many.
const DRIFT: u32 = 10_000;
/// The longest single wait before the estimate is read again.
const NAP_MAX: Duration = Duration::from_secs(10);

/// An estimate of the server's time that is never ahead of it (unless the server's clock was just set back): the
/// time that an answer carries has passed when it arrives. So what waits for an instant and then asks the server
/// finds that it has come.
///
/// The server has read its clock between question and answer, so its time lies between what the answer carries and that
/// plus how long it took. An answer that took long, because this process was stopped before it read it, say, is believed
/// only as far as it contradicts the estimate: else the estimate would fall behind by as much, and a worker would take
/// leases for good that have ended.
#[derive(Debug)]
pub(super) struct ServerClock {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// What the server's clock showed, at the least, at `at`.
    server: Timestamp,
    at: Instant,
    /// By how much more, at most.
    error: Duration,
}

impl ServerClock {
    /// With what the server has answered to a question that was asked then.
    pub(super) fn new(server: Timestamp, asked_at: Instant) -> Self {
        Self { known: Arc::new(Mutex::new(Known::new(server, asked_at, Instant::now()))) }
    }

    /// Learns from an answer that has just arrived to a question that was asked then.
    pub(super) fn learn(&self, answer: &Value, asked_at: Instant) {
        let Some(server) = timestamp(answer) else { return };
        let answer = Known::new(server, asked_at, Instant::now());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.after(answer);
    }
}

/// What `TIME` answers: seconds, and microseconds of the next one.
pub(super) fn timestamp(answer: &Value) -> Option<Timestamp> {
    let Value::Array(parts) = answer else { return None };
    let [Value::BulkString(seconds), Value::BulkString(micros)] = &parts[..] else { return None };
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<i64>().ok();
    Some(Timestamp::from_micros(number(seconds)?.checked_mul(1_000_000)?.checked_add(number(micros)?)?))
}

impl Known {
    fn new(server: Timestamp, asked_at: Instant, at: Instant) -> Self {
        Self { server, at, error: at.saturating_duration_since(asked_at) }
    }

    /// What is known after a later answer: that, if it contradicts this or is nearer to the truth, and else this.
    fn after(self, later: Self) -> Self {
        let now = self.at(later.at);
        let error = self.error + later.at.saturating_duration_since(self.at) / DRIFT;
        if later.server > now {
            // The server's time was between the two then: what was known of how far it may be ahead holds still.
            return Self { error: later.error.min(error), ..later };
        }
        if later.server.saturating_add(later.error) < now || later.error <= error { later } else { self }
    }

    fn at(&self, at: Instant) -> Timestamp {
        let passed = at.saturating_duration_since(self.at);
        // Rounded down: never ahead.
        let micros = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(self.server.as_micros().saturating_add(micros))
    }
}

impl Clock for ServerClock {
    fn now(&self) -> Timestamp {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).at(Instant::now())
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let known = Arc::clone(&self.known);
        Box::pin(async move {
            loop {
                let now = known.lock().unwrap_or_else(PoisonError::into_inner).at(Instant::now());
                let left = at.since(now);
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(NAP_MAX)).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_735_689_600_000_000);
    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// What is known after an answer to a question that was asked so long after the first answer came, that took so
    /// long, and that carries a time so far from that of the first one.
    fn after(asked: Duration, took: Duration, server: Duration) -> Known {
        let began_at = Instant::now();
        let known = Known { server: START, at: began_at, error: MILLI };
        let asked_at = began_at + asked;
        known.after(Known::new(START.saturating_add(server), asked_at, asked_at + took))
    }

    #[test]
    fn an_answer_that_says_it_is_later_is_believed() {
        let known = after(SECOND, 5 * MILLI, SECOND + 6 * MILLI);
        assert_eq!(known.server, START.saturating_add(SECOND + 6 * MILLI));
    }

    #[test]
    fn an_answer_that_lay_there_for_long_says_nothing() {
        // The process was stopped for a minute before it read the answer, which carries a time soon after the question.
        let known = after(SECOND, 60 * SECOND, SECOND + MILLI);
        assert_eq!(known.server, START);
    }

    #[test]
    fn nor_does_the_next_one_that_did() {
        // The first was asked before the process was stopped, and answered after; it shows that the clock runs fast by a bit.
        let known = after(SECOND, 60 * SECOND, 61 * SECOND + MILLI);
        assert_eq!(known.server, START.saturating_add(61 * SECOND + MILLI));
        let later = Known::new(START.saturating_add(62 * SECOND), known.at, known.at + 60 * SECOND);
        assert_eq!(known.after(later).server, known.server);
    }

    #[test]
    fn a_clock_that_was_set_back_is_noticed_at_once() {
        let known = after(60 * SECOND, 10 * MILLI, 10 * SECOND);
        assert_eq!(known.server, START.saturating_add(10 * SECOND));
    }

    #[test]
    fn an_answer_as_quick_as_the_last_one_or_nearly_so_after_long_follows_a_drift() {
        let near = |took: Duration| after(20 * SECOND, took, 20 * SECOND).server != START;
        assert!(near(MILLI) && near(3 * MILLI));
        assert!(!near(4 * MILLI));
    }

    #[test]
    fn what_is_no_answer_says_nothing() {
        let clock = ServerClock::new(START, Instant::now());
        clock.learn(&Value::Nil, Instant::now());
        clock.learn(&Value::BulkString(b"x".to_vec()), Instant::now());
        assert!(clock.now() >= START && clock.now() < START.saturating_add(60 * SECOND));
        let later = START.saturating_add(60 * SECOND).as_micros();
        let part = |number: i64| Value::BulkString(number.to_string().into_bytes());
        clock.learn(&Value::Array(vec![part(later / 1_000_000), part(later % 1_000_000)]), Instant::now());
        assert!(clock.now() >= START.saturating_add(60 * SECOND));
    }
}
