//! When a failed step is tried again.

use std::time::Duration;

/// How often and after which delays a failed step is tried again.
///
/// The delay before the second attempt is [`backoff`](Self::backoff); each further one is
/// [`multiplier`](Self::multiplier) times the one before, at most [`max_backoff`](Self::max_backoff), and then
/// shortened by a random share of up to [`jitter`](Self::jitter), so that steps that failed together do not come
/// back together. The instant of the next attempt is recorded: a crash neither shortens nor restarts the wait.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ergon::RetryPolicy;
///
/// const PATIENT: RetryPolicy = RetryPolicy::new()
///     .max_attempts(20)
///     .backoff(Duration::from_secs(1))
///     .max_backoff(Duration::from_secs(3600))
///     .jitter(0.0);
///
/// assert_eq!(PATIENT.delay_after(1, 0.0), Some(Duration::from_secs(1)));
/// assert_eq!(PATIENT.delay_after(3, 0.0), Some(Duration::from_secs(4)));
/// assert_eq!(PATIENT.delay_after(19, 0.0), Some(Duration::from_secs(3600)));
/// assert_eq!(PATIENT.delay_after(20, 0.0), None);
/// assert_eq!(RetryPolicy::NONE.delay_after(1, 0.0), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    max_attempts: u32,
    backoff: Duration,
    multiplier: f64,
    max_backoff: Duration,
    jitter: f64,
}

impl RetryPolicy {
    /// One attempt, no more.
    pub const NONE: Self = Self::new().max_attempts(1);
    /// Four attempts over about two seconds: what a step has that names no policy.
    pub const STANDARD: Self = Self::new();
    /// Unlimited attempts, from one second up to five minutes apart: for what must happen in the end.
    pub const PERSISTENT: Self =
        Self::new().max_attempts(u32::MAX).backoff(Duration::from_secs(1)).max_backoff(Duration::from_secs(300));

    /// Four attempts, 200 ms after the first, doubling, at most 10 s, with a jitter of 0.2.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            max_attempts: 4,
            backoff: Duration::from_millis(200),
            multiplier: 2.0,
            max_backoff: Duration::from_secs(10),
            jitter: 0.2,
        }
    }

    /// How many attempts there are in all; 0 counts as 1.
    #[must_use]
    pub const fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = if max_attempts == 0 { 1 } else { max_attempts };
        self
    }

    /// The delay after the first failed attempt; raises the longest delay to it if that is shorter.
    #[must_use]
    pub const fn backoff(mut self, backoff: Duration) -> Self {
        self.backoff = backoff;
        if self.max_backoff.as_nanos() < backoff.as_nanos() {
            self.max_backoff = backoff;
        }
        self
    }

    /// The factor from one delay to the next; less than 1 counts as 1.
    #[must_use]
    pub const fn multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = if multiplier >= 1.0 { multiplier } else { 1.0 };
        self
    }

    /// The longest delay.
    #[must_use]
    pub const fn max_backoff(mut self, max_backoff: Duration) -> Self {
        self.max_backoff = max_backoff;
        self
    }

    /// The largest share of a delay, from 0 to 1, by which chance shortens it.
    #[must_use]
    pub const fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = if jitter >= 0.0 && jitter <= 1.0 { jitter } else { 0.0 };
        self
    }

    /// The delay after the `failed`th failed attempt (from 1), with `chance` from 0 to 1 deciding about the
    /// jitter; `None` when there is no further attempt.
    pub fn delay_after(&self, failed: u32, chance: f64) -> Option<Duration> {
        if failed >= self.max_attempts {
            return None;
        }
        let steps = i32::try_from(failed.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.backoff.as_secs_f64() * self.multiplier.powi(steps);
        let delay = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(self.max_backoff);
        Some(delay.mul_f64(1.0 - self.jitter * chance.clamp(0.0, 1.0)))
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// Lets an error say whether trying again can help, and when.
///
/// Without it every error of a step is tried again, up to the policy and when the policy says. `ergon::Error` has
/// [`permanent`](crate::Error::permanent) and [`with_retry_after`](crate::Error::with_retry_after) for the same purpose.
///
/// # Examples
///
/// ```
/// use ergon::Retryable;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// enum ChargeError {
///     Declined,
///     Unreachable,
///     TooMany { again_in_secs: u64 },
/// }
///
/// impl Retryable for ChargeError {
///     fn is_retryable(&self) -> bool {
///         !matches!(self, ChargeError::Declined)
///     }
///
///     fn retry_after(&self) -> Option<Duration> {
///         match self {
///             ChargeError::TooMany { again_in_secs } => Some(Duration::from_secs(*again_in_secs)),
///             _ => None,
///         }
///     }
/// }
/// # use std::time::Duration;
///
/// assert!(!ChargeError::Declined.is_retryable());
/// assert_eq!(ChargeError::Unreachable.retry_after(), None);
/// assert_eq!(ChargeError::TooMany { again_in_secs: 90 }.retry_after(), Some(Duration::from_secs(90)));
/// ```
pub trait Retryable {
    /// False when the step must not be tried again with this outcome.
    fn is_retryable(&self) -> bool;

    /// How long after this failure the next attempt may begin at the earliest; `None`, the default, leaves that to the
    /// policy.
    ///
    /// It takes the place of the policy's delay, also when that is longer: neither
    /// [`max_backoff`](RetryPolicy::max_backoff) nor [`jitter`](RetryPolicy::jitter) changes it. Whether there is a next
    /// attempt is the policy's decision still. Zero is at once. The instant is recorded with the failed attempt: a
    /// crash neither shortens nor restarts the wait, and a wait that is long costs no memory and no slot. One that would
    /// end after the year 9999 is refused: the step fails with an error of the kind
    /// [`Invalid`](crate::ErrorKind::Invalid).
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl Retryable for crate::Error {
    fn is_retryable(&self) -> bool {
        crate::Error::is_retryable(self)
    }

    fn retry_after(&self) -> Option<Duration> {
        crate::Error::retry_after(self)
    }
}
