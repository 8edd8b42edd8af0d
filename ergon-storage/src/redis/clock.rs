//! The server's clock, as near as this process can know it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use redis::Value;

use crate::{Clock, Timestamp};

/// How long the best estimate is kept, so that a clock that was set, or drifts, is noticed.
const KEPT: Duration = Duration::from_secs(10);
/// The longest single wait before the estimate is read again.
const NAP_MAX: Duration = Duration::from_secs(10);

/// An estimate of the server's time that is never ahead of it (unless the server's clock was just set back): the
/// time that an answer carries has passed when it arrives. So what waits for an instant and then asks the server
/// finds that it has come.
#[derive(Debug)]
pub(super) struct ServerClock {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// What the server's clock showed, at the latest, at `at`.
    server: Timestamp,
    at: Instant,
    learned_at: Instant,
}

impl ServerClock {
    pub(super) fn new(server: Timestamp) -> Self {
        let at = Instant::now();
        Self { known: Arc::new(Mutex::new(Known { server, at, learned_at: at })) }
    }

    /// Learns from an answer that has just arrived.
    pub(super) fn learn(&self, answer: &Value) {
        let Some(server) = timestamp(answer) else { return };
        let at = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if server > known.at(at) || at.saturating_duration_since(known.learned_at) > KEPT {
            *known = Known { server, at, learned_at: at };
        }
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

    fn answer(at: Timestamp) -> Value {
        let part = |number: i64| Value::BulkString(number.to_string().into_bytes());
        Value::Array(vec![part(at.as_micros() / 1_000_000), part(at.as_micros() % 1_000_000)])
    }

    #[test]
    fn a_later_time_is_nearer() {
        let start = Timestamp::from_micros(1_735_689_600_000_000);
        let clock = ServerClock::new(start);
        assert!(clock.now() >= start);
        let later = start.saturating_add(Duration::from_secs(60));
        clock.learn(&answer(later));
        assert!(clock.now() >= later);
        // An answer that was long under way says nothing new.
        clock.learn(&answer(start));
        assert!(clock.now() >= later);
        clock.learn(&Value::Nil);
        clock.learn(&Value::BulkString(b"x".to_vec()));
        assert!(clock.now() >= later);
    }
}
