//! Instants.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// An instant of the log's clock: whole microseconds since the Unix epoch, UTC.
///
/// Arithmetic never wraps: [`checked_add`](Self::checked_add) says when an instant is out of range,
/// [`saturating_add`](Self::saturating_add) stops at [`Timestamp::MAX`].
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ergon_storage::Timestamp;
///
/// let start = Timestamp::from_micros(1_700_000_000_000_000);
/// let later = start.checked_add(Duration::from_secs(90)).unwrap();
/// assert_eq!(later.since(start), Duration::from_secs(90));
/// assert_eq!(start.since(later), Duration::ZERO);
/// assert_eq!(start.to_string(), "2023-11-14T22:13:20.000000Z");
/// assert!(start.checked_add(Duration::MAX).is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The latest instant that can be written as a date, the end of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_999_999);
    /// The Unix epoch.
    pub const EPOCH: Self = Self(0);

    /// The instant that many microseconds after the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// This instant plus a duration, rounded up to the next microsecond so that a timer is never early.
    /// `None` past [`Timestamp::MAX`].
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        // In 64 bits: the clock is read several times a step.
        let micros = duration.as_secs().checked_mul(1_000_000)?;
        let micros = micros.checked_add(u64::from(duration.subsec_nanos().div_ceil(1_000)))?;
        let sum = self.0.checked_add(i64::try_from(micros).ok()?)?;
        (sum <= Self::MAX.0).then_some(Self(sum))
    }

    /// This instant plus a duration, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        self.checked_add(duration).unwrap_or(Self::MAX)
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

impl From<SystemTime> for Timestamp {
    /// Rounds up to the next microsecond; instants out of range become the nearest that is in range.
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self::EPOCH.saturating_add(after),
            Err(before) => {
                let micros = i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX);
                Self(-micros)
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(at: Timestamp) -> Self {
        let distance = Duration::from_micros(at.0.unsigned_abs());
        if at.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds; instants before 1970 or past [`Timestamp::MAX`] as a count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if (0..=Self::MAX.0).contains(&self.0) {
            write!(f, "{}", humantime::format_rfc3339_micros(SystemTime::from(*self)))
        } else {
            write!(f, "{} us", self.0)
        }
    }
}
