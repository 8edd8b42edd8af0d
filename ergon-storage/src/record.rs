//! One line of a flow's history.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;

use crate::Timestamp;

/// One line of a flow's history: something that happened to one of its calls.
///
/// A call leaves one or more records. A step that succeeds at once leaves one, [`Phase::Completed`]; one that is
/// tried again leaves a [`Phase::Attempt`] per failed attempt first; a wait leaves a [`Phase::Pending`] record
/// that fixes what it waits for, and later its end. A step that waits inside its body and has a time limit leaves a
/// [`Phase::Pending`] record too, which fixes when the time of that attempt is up; and so does each attempt of a step that
/// runs at most once, before it begins. A body that sends heartbeats leaves one whose payload each [`Beat`] replaces, each
/// time that it starts.
///
/// The fields mean the same for every [`CallKind`], so that a log stores them without knowing the kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The record's number within its flow, from 1, without gaps. The order of the numbers is the order in
    /// which outcomes are released.
    pub seq: u32,
    /// When the record was made, by the log's clock as the engine read it; when the last [`Beat`] replaced its payload.
    pub at: Timestamp,
    /// The call's place in the flow.
    pub path: CallPath,
    /// What was called.
    pub kind: CallKind,
    /// What happened to it.
    pub phase: Phase,
    /// The name of the step, timer, signal or child type; at most [`Record::NAME_BYTES_MAX`] bytes.
    pub name: Arc<str>,
    /// A hash of the call's arguments, equal over processes and platforms.
    pub args_hash: u64,
    /// For a step the number of the attempt that this record is about, from 1; else 0.
    pub attempt: u32,
    /// When the call, or this attempt of it, began.
    pub started_at: Timestamp,
    /// For a wait its instant or time limit, for an attempt under way when its time is up; for a failed attempt when
    /// the next one may begin.
    pub due_at: Option<Timestamp>,
    /// For a child its flow id; for a signal that came the number of its message; for a step called by another one its
    /// number among equal calls, unless it is the first; `uncertain` for a failure of a step that runs at most once when
    /// what its body has done is unknown.
    pub reference: Option<Arc<str>>,
    /// The encoded outcome or error, or the progress that the last heartbeat has reported; empty where there is none.
    pub payload: Bytes,
}

/// A heartbeat: how far a call has come that is under way. It takes the place of what a record said of that before, so
/// that a history does not grow with the heartbeats in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The number of the record, which is a pending one.
    pub seq: u32,
    /// The record's instant from now on.
    pub at: Timestamp,
    /// The record's payload from now on.
    pub payload: Bytes,
}

impl Record {
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 255;
    /// The greatest number of records a flow can have.
    pub const SEQ_MAX: u32 = (1 << 24) - 3;
    /// The name of the record of a cancellation.
    pub const CANCELLED: &'static str = "cancelled";
    /// The name of the record of a time limit that has passed.
    pub const TIME_IS_UP: &'static str = "time is up";

    /// The record that a flow, which has something to clean up, was cancelled, or that its time is up.
    #[must_use]
    pub fn cancel(seq: u32, at: Timestamp, name: impl Into<Arc<str>>, reason: &str) -> Self {
        Self {
            seq,
            at,
            path: CallPath::top(0),
            kind: CallKind::Cancel,
            phase: Phase::Completed,
            name: name.into(),
            args_hash: 0,
            attempt: 0,
            started_at: at,
            due_at: None,
            reference: None,
            payload: Bytes::copy_from_slice(reason.as_bytes()),
        }
    }
}

/// What kind of call a [`Record`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CallKind {
    /// A step: the user's own code.
    Step,
    /// A durable timer.
    Timer,
    /// A wait for a signal.
    Signal,
    /// A child flow.
    Child,
    /// A change of the code that the flow has taken up. No call: its path is 0.
    Patch,
    /// The records before this one are those of another flow, from which this one was forked. No call: its path is 0; its
    /// name is the id of that flow, its reference the call before which it was cut, if it was.
    Fork,
    /// The flow was cancelled, or its time is up: no code of it goes on but its clean-up, whose calls come after this
    /// record. No call: its path is 0; its name says which, [`Record::CANCELLED`] or [`Record::TIME_IS_UP`], its payload is
    /// the reason as text.
    Cancel,
}

impl CallKind {
    /// The number under which a log stores the kind. Never reused.
    pub const fn code(self) -> u8 {
        match self {
            Self::Step => 1,
            Self::Timer => 2,
            Self::Signal => 3,
            Self::Child => 4,
            Self::Patch => 5,
            Self::Fork => 7,
            Self::Cancel => 8,
        }
    }

    /// The kind stored under `code`; `None` when this program does not know it.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Step),
            2 => Some(Self::Timer),
            3 => Some(Self::Signal),
            4 => Some(Self::Child),
            5 => Some(Self::Patch),
            7 => Some(Self::Fork),
            8 => Some(Self::Cancel),
            _ => None,
        }
    }
}

impl fmt::Display for CallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Step => "step",
            Self::Timer => "timer",
            Self::Signal => "signal",
            Self::Child => "child",
            Self::Patch => "patch",
            Self::Fork => "fork",
            Self::Cancel => "cancel",
        })
    }
}

/// What happened to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The call waits for what the record names, or goes on until then at most; or an attempt begins that must not be
    /// repeated; or it has come so far.
    Pending,
    /// An attempt failed, and another one will follow.
    Attempt,
    /// The call has its outcome.
    Completed,
    /// The call failed for good.
    Failed,
}

impl Phase {
    /// The number under which a log stores the phase. Never reused.
    pub const fn code(self) -> u8 {
        match self {
            Self::Pending => 1,
            Self::Attempt => 2,
            Self::Completed => 3,
            Self::Failed => 4,
        }
    }

    /// The phase stored under `code`; `None` when this program does not know it.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Pending),
            2 => Some(Self::Attempt),
            3 => Some(Self::Completed),
            4 => Some(Self::Failed),
            _ => None,
        }
    }

    /// True when the call has ended with this record.
    pub const fn is_outcome(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// A call's place in its flow: its number within the enclosing call, after the path of that call.
///
/// # Examples
///
/// ```
/// use ergon_storage::CallPath;
///
/// let third = CallPath::top(3);
/// let nested = third.child(1);
/// assert_eq!(nested.to_string(), "3.1");
/// assert_eq!("3.1".parse(), Ok(nested.clone()));
/// assert_eq!(nested.parent(), Some(third));
/// assert!("3.".parse::<CallPath>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallPath(Repr);

// Nearly all calls are at the top, and those need no allocation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Top([u32; 1]),
    Nested(Arc<[u32]>),
}

impl CallPath {
    /// How deep calls may nest.
    pub const DEPTH_MAX: usize = 16;

    /// The path of the flow's own `position`th call.
    #[must_use]
    pub const fn top(position: u32) -> Self {
        Self(Repr::Top([position]))
    }

    /// The path of this call's own `position`th call.
    #[must_use]
    pub fn child(&self, position: u32) -> Self {
        let mut positions = self.positions().to_vec();
        positions.push(position);
        Self(Repr::Nested(positions.into()))
    }

    /// The path of the enclosing call; `None` for a call of the flow itself.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        match self.positions() {
            [] | [_] => None,
            [top, _] => Some(Self::top(*top)),
            [rest @ .., _] => Some(Self(Repr::Nested(rest.into()))),
        }
    }

    /// The numbers of the path, outermost first; never empty.
    pub fn positions(&self) -> &[u32] {
        match &self.0 {
            Repr::Top(position) => position,
            Repr::Nested(positions) => positions,
        }
    }

    /// The number of the call within its enclosing call.
    pub fn position(&self) -> u32 {
        self.positions().last().copied().unwrap_or_default()
    }
}

impl fmt::Display for CallPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, position) in self.positions().iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            write!(f, "{position}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for CallPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CallPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let invalid = || InvalidPath(text.chars().take(80).collect());
        let mut positions = Vec::with_capacity(2);
        for part in text.split('.') {
            if positions.len() == Self::DEPTH_MAX || part.starts_with('+') {
                return Err(invalid());
            }
            positions.push(part.parse::<u32>().map_err(|_| invalid())?);
        }
        Ok(match positions[..] {
            [top] => Self::top(top),
            _ => Self(Repr::Nested(positions.into())),
        })
    }
}

/// A text that is not a [`CallPath`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPath(String);

impl fmt::Display for InvalidPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a call path such as 3.1", self.0)
    }
}

impl std::error::Error for InvalidPath {}
