//! Where a flow is to go on: on the worker that ran it last, or anywhere.

use std::time::Duration;

use crate::{Error, ErrorKind, Labels, Result};
#[cfg(any(feature = "memory", feature = "sqlite"))]
use crate::{FlowInfo, Timestamp};

/// Whether a flow that is due waits for the worker that ran it last. What it has there may be worth it: files, a model in
/// memory, a device.
///
/// Workers are told apart by their [names](crate::ClaimRequest::worker): whoever claims under the name of another is the
/// same place. A flow that nobody has run yet goes anywhere, and so does the next run of one that
/// [begins again](crate::Next::Continue). One whose time is up waits for nobody, until its
/// clean-up has begun: that goes on where it was.
///
/// The log keeps it among the flow's [labels](Self::LABEL), by which such flows can be listed.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ergon_storage::{Affinity, FlowId, Labels, NewFlow, Takeover};
///
/// let warm = Affinity::Prefer { patience: Duration::from_secs(5) };
/// let flow = NewFlow::new(FlowId::new("train-7")?, "Train", 1, &b"{}"[..]).with_affinity(warm);
/// assert_eq!(Affinity::of(&flow.labels), warm);
/// assert_eq!(flow.labels.get(Affinity::LABEL), Some("prefer 5000000"));
///
/// // A worker must have the time to be heard of.
/// let hasty = Affinity::Require { takeover: Takeover::After(Duration::from_secs(1)) };
/// assert!(flow.with_affinity(hasty).labels.check().is_err());
/// # Ok::<(), ergon_storage::InvalidId>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Affinity {
    /// Whoever asks first has it.
    #[default]
    Anyone,
    /// For so long after it has become due, the worker that ran it last alone is given it; then anyone is.
    Prefer {
        /// How long; at most [`Affinity::TIME_MAX`].
        patience: Duration,
    },
    /// The worker that ran it last alone is given it, unless it is gone.
    Require {
        /// When others may take over.
        takeover: Takeover,
    },
}

/// When another worker may take over what is bound to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Takeover {
    /// When the log has not heard of the worker for so long; [`Affinity::TAKEOVER_MIN`] at least,
    /// [`Affinity::TIME_MAX`] at most. A minute is what most want.
    After(Duration),
    /// Never. While the worker is gone, the flow waits until one of its name is there again.
    Never,
}

impl Default for Takeover {
    /// After a minute.
    fn default() -> Self {
        Self::After(Duration::from_secs(60))
    }
}

impl Affinity {
    /// The label that holds a flow's affinity.
    pub const LABEL: &'static str = "ergon.affinity";
    /// The label of a flow that is in a session: it is bound by this one, whatever its [affinity](Self::LABEL) is.
    pub const SESSION_LABEL: &'static str = "ergon.session";
    /// The shortest time after which others may take over: as long as a worker may be silent that is there.
    pub const TAKEOVER_MIN: Duration = Duration::from_secs(15);
    /// The longest patience, and the longest time until a takeover.
    pub const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
    /// For how long a worker must not have been heard of, for a flow that never moves to count as
    /// [abandoned](crate::FlowInfo::is_abandoned).
    pub const ABANDONED_AFTER: Duration = Duration::from_secs(60);
    /// How many flows that are due and bound to others one claim passes over at most. Each is filed behind what is due by
    /// then, so that the next claim comes to what is behind them.
    pub const PASSED_MAX: usize = 1_000;
    /// For how long a worker must not have been heard of, for a log to forget it when the next one is heard of for the first
    /// time. The takeover of what was kept for it meanwhile counts from when that was due; what is due only later waits once
    /// more.
    pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 3_600);
    /// How exactly a log knows when it has heard of a worker.
    #[cfg(any(feature = "memory", feature = "sqlite"))]
    pub(crate) const HEARD_STEP: Duration = Duration::from_secs(1);

    /// What a flow with these labels was given as its affinity.
    pub fn of(labels: &Labels) -> Self {
        labels.get(Self::LABEL).and_then(Self::parse).unwrap_or_default()
    }

    /// What binds a flow with these labels: its session, or else its affinity.
    pub fn binding(labels: &Labels) -> Self {
        match labels.get(Self::SESSION_LABEL).and_then(Self::parse) {
            Some(session) => session,
            None => Self::of(labels),
        }
    }

    /// The text of the label, as [`LABEL`](Self::LABEL) has it; `None` for anyone.
    #[must_use]
    pub fn to_label(self) -> Option<String> {
        let micros = |time: Duration| time.as_nanos().div_ceil(1_000);
        match self {
            Self::Anyone => None,
            Self::Prefer { patience } => Some(format!("prefer {}", micros(patience))),
            Self::Require { takeover: Takeover::After(time) } => Some(format!("require {}", micros(time))),
            Self::Require { takeover: Takeover::Never } => Some("require never".into()),
        }
    }

    /// Reads the beginning of a label; what follows on it belongs to others.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (kind, time) = (words.next()?, words.next()?);
        let micros = || time.parse().ok().map(Duration::from_micros).filter(|time| *time <= Self::TIME_MAX);
        match (kind, time) {
            ("prefer", _) => Some(Self::Prefer { patience: micros()? }),
            ("require", "never") => Some(Self::Require { takeover: Takeover::Never }),
            ("require", _) => {
                let takeover = Takeover::After(micros().filter(|time| *time >= Self::TAKEOVER_MIN)?);
                Some(Self::Require { takeover })
            }
            _ => None,
        }
    }

    /// Refuses labels that say nothing that a log could go by.
    pub(crate) fn check(labels: &Labels) -> Result<()> {
        for name in [Self::LABEL, Self::SESSION_LABEL] {
            if let Some(value) = labels.get(name).filter(|value| Self::parse(value).is_none()) {
                let (min, max) = (Self::TAKEOVER_MIN.as_secs(), Self::TIME_MAX.as_secs());
                let message = format!(
                    "the label {name:?} is \"prefer\" or \"require\" and a time in microseconds, at most {max} s and, to \
                     take over, at least {min} s, or \"require never\"; {value:?} is none of them"
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        Ok(())
    }

    /// Until when a flow that is due since then is kept for its worker, of which the log has heard then; `None` when
    /// anyone may have it.
    #[cfg(any(feature = "memory", feature = "sqlite"))]
    pub(crate) fn kept_until(
        info: &FlowInfo,
        due_at: Timestamp,
        heard_at: Timestamp,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let until = match Self::binding(&info.labels) {
            Self::Anyone => return None,
            Self::Prefer { patience } => due_at.saturating_add(patience),
            Self::Require { takeover: Takeover::After(time) } => heard_at.saturating_add(time),
            Self::Require { takeover: Takeover::Never } => {
                Some(heard_at.saturating_add(Self::ABANDONED_AFTER)).filter(|at| *at > now).unwrap_or(Timestamp::MAX)
            }
        };
        // What cleans up has no time limit.
        let deadline_at = info.deadline_at.filter(|_| !info.is_cleaning_up());
        Some(deadline_at.map_or(until, |at| at.min(until))).filter(|until| *until > now)
    }
}
