//! A flow, before and after the log has accepted it.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{Affinity, CallPath, Error, ErrorKind, FlowId, Labels, Limits, Result, Timestamp, Wake};

/// A flow to be put on a queue.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ergon_storage::{FlowId, NewFlow, Start};
///
/// let flow = NewFlow::new(FlowId::new("order-7")?, "Order", 1, &b"{}"[..])
///     .with_queue("billing")
///     .with_priority(5)
///     .with_start(Start::After(Duration::from_secs(60)));
/// assert_eq!(&*flow.queue, "billing");
/// # Ok::<(), ergon_storage::InvalidId>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewFlow {
    /// Its id, unique within the log.
    pub id: FlowId,
    /// The name of its type; 1 to [`NewFlow::NAME_BYTES_MAX`] bytes.
    pub flow_type: Arc<str>,
    /// The version of its type, from 1.
    pub version: u32,
    /// The queue it waits in; 1 to [`NewFlow::NAME_BYTES_MAX`] bytes.
    pub queue: Arc<str>,
    /// Higher goes first. Meant for a handful of distinct values.
    pub priority: i16,
    /// The encoded value of the flow type.
    pub input: Bytes,
    /// When it may first be claimed.
    pub start: Start,
    /// Its time limit, counted from the start; `None` for no limit.
    pub timeout: Option<Duration>,
    /// The flow and call that started it.
    pub parent: Option<Parent>,
    /// What it is listed by.
    pub labels: Labels,
}

impl NewFlow {
    /// The queue of flows that name none.
    pub const DEFAULT_QUEUE: &'static str = "default";
    /// The longest type or queue name, in bytes.
    pub const NAME_BYTES_MAX: usize = 128;

    /// A flow that starts now, in the default queue, with priority 0 and no time limit.
    #[must_use]
    pub fn new(id: FlowId, flow_type: impl Into<Arc<str>>, version: u32, input: impl Into<Bytes>) -> Self {
        Self {
            id,
            flow_type: flow_type.into(),
            version,
            queue: Self::DEFAULT_QUEUE.into(),
            priority: 0,
            input: input.into(),
            start: Start::Now,
            timeout: None,
            parent: None,
            labels: Labels::new(),
        }
    }

    /// The same flow in another queue.
    #[must_use]
    pub fn with_queue(mut self, queue: impl Into<Arc<str>>) -> Self {
        self.queue = queue.into();
        self
    }

    /// The same flow with another priority.
    #[must_use]
    pub fn with_priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// The same flow with another start.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// The same flow with a time limit.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same flow as the child of a call.
    #[must_use]
    pub fn with_parent(mut self, parent: Parent) -> Self {
        self.parent = Some(parent);
        self
    }

    /// The same flow with a label more, or another value for one that it has.
    #[must_use]
    pub fn with_label(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.labels.set(name, value);
        self
    }

    /// The same flow with these labels and no others.
    #[must_use]
    pub fn with_labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }

    /// The same flow with this affinity, in place of the one that it has.
    #[must_use]
    pub fn with_affinity(mut self, affinity: Affinity) -> Self {
        match affinity.to_label() {
            Some(label) => self.labels.set(Affinity::LABEL, label),
            None => _ = self.labels.remove(Affinity::LABEL),
        }
        self
    }

    /// Checks the fields against their bounds and the log's limits, and returns the instants of the start and
    /// of the time limit. Every log calls this before it changes anything.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for an empty or over-long name, version 0, a start or limit out of range, or
    /// labels out of [bounds](Labels::check);
    /// [`ErrorKind::TooLarge`] for an input over the limit.
    pub fn check(&self, now: Timestamp, limits: &Limits) -> Result<(Timestamp, Option<Timestamp>)> {
        let invalid = |message: String| Error::new(ErrorKind::Invalid, message).with_flow(&self.id);
        for (what, name) in [("flow type", &self.flow_type), ("queue", &self.queue)] {
            if name.is_empty() || name.len() > Self::NAME_BYTES_MAX {
                let (len, max) = (name.len(), Self::NAME_BYTES_MAX);
                return Err(invalid(format!("a {what} name has 1 to {max} bytes, this one has {len}")));
            }
        }
        if self.version == 0 {
            return Err(invalid("versions count from 1".into()));
        }
        limits.check_payload("the flow's value", self.input.len()).map_err(|error| error.with_flow(&self.id))?;
        self.labels.check().map_err(|error| error.with_flow(&self.id))?;
        let start_at = match self.start {
            Start::Now => now,
            Start::At(at) => at,
            Start::After(delay) => now
                .checked_add(delay)
                .ok_or_else(|| invalid(format!("a start in {delay:?} is past the end of time")))?,
        };
        let deadline_at = match self.timeout {
            None => None,
            Some(timeout) => Some(
                start_at
                    .max(now)
                    .checked_add(timeout)
                    .ok_or_else(|| invalid(format!("a time limit of {timeout:?} is past the end of time")))?,
            ),
        };
        Ok((start_at, deadline_at))
    }
}

/// When a new flow may first be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At once.
    #[default]
    Now,
    /// That long after the log has accepted it.
    After(Duration),
    /// At this instant; at once when it has passed.
    At(Timestamp),
}

/// The flow and call that started a child. A flow of this id that was accepted after the child is not its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The parent.
    pub id: FlowId,
    /// The call of the parent that started the child.
    pub path: CallPath,
    /// True when the child lives on its own: its parent neither hears of its end nor takes it along when it is
    /// cancelled.
    pub detached: bool,
}

/// Where a flow is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowState {
    /// In its queue: waiting for a worker, or for its start time.
    Scheduled,
    /// A worker has it.
    Running,
    /// Waiting for time, a message or a child; no worker has it.
    Suspended,
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended by a cancellation.
    Cancelled,
    /// Stopped with a reason that a person or another build must look at; nothing is lost.
    Stalled,
}

impl FlowState {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Scheduled,
        Self::Running,
        Self::Suspended,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Stalled,
    ];

    /// The number under which a log stores the state. Never reused.
    pub const fn code(self) -> u8 {
        match self {
            Self::Scheduled => 1,
            Self::Running => 2,
            Self::Suspended => 3,
            Self::Completed => 4,
            Self::Failed => 5,
            Self::Cancelled => 6,
            Self::Stalled => 7,
        }
    }

    /// The state stored under `code`; `None` when this program does not know it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }

    /// True for completed, failed and cancelled: the state never changes again, unless the flow is retried.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Stalled => "stalled",
        })
    }
}

/// Whether a flow has something to clean up when it is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Cleanup {
    /// Nothing that the log knows of: a cancellation ends the flow at once.
    #[default]
    None,
    /// Its code has asked to be heard before a cancellation ends the flow.
    Needed,
    /// It was cancelled, or its time is up, and its clean-up is to run, or runs, or has ended with the flow: its history has a
    /// record of the kind [`CallKind::Cancel`](crate::CallKind::Cancel).
    Underway,
}

impl Cleanup {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Needed, Self::Underway];

    /// The number under which a log stores it. Never reused.
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Needed => 1,
            Self::Underway => 2,
        }
    }

    /// The one stored under `code`; `None` when this program does not know it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|cleanup| cleanup.code() == code)
    }
}

impl fmt::Display for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Needed => "needed",
            Self::Underway => "underway",
        })
    }
}

/// What the log knows about a flow, without its payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowInfo {
    /// Its id.
    pub id: FlowId,
    /// The name of its type.
    pub flow_type: Arc<str>,
    /// The version of its type.
    pub version: u32,
    /// Its queue.
    pub queue: Arc<str>,
    /// Its priority; higher goes first.
    pub priority: i16,
    /// Where it is in its life.
    pub state: FlowState,
    /// Why it failed, was cancelled or is stalled; `None` in the other states.
    pub reason: Option<Arc<str>>,
    /// What it waits for while it is suspended; empty in the other states.
    pub wake: Wake,
    /// The flow and call that started it.
    pub parent: Option<Parent>,
    /// What it is listed by.
    pub labels: Labels,
    /// When the log accepted it.
    pub created_at: Timestamp,
    /// When it may first be, or might first have been, claimed.
    pub start_at: Timestamp,
    /// The number of its run, from 1: it rises each time that the flow [begins again](crate::Next::Continue).
    pub run: u32,
    /// When its present run was first claimed.
    pub started_at: Option<Timestamp>,
    /// When it reached its final state.
    pub finished_at: Option<Timestamp>,
    /// When its time is up.
    pub deadline_at: Option<Timestamp>,
    /// While running, when its lease ends; while scheduled, when it may be claimed; while suspended, when it
    /// wakes by itself, if ever: at its instant or when its time is up, whichever comes first. While it is due and kept for
    /// its worker (see [`Affinity`]), when others may have it.
    pub due_at: Option<Timestamp>,
    /// How often it has been claimed: the fencing token of its latest lease.
    pub epoch: u64,
    /// How often it has been claimed since it last made progress.
    pub deliveries: u32,
    /// How many records the history of its present run has.
    pub records: u32,
    /// How many items its own code has emitted in its present run, as the engine says: when the code is replayed, so many
    /// are not emitted again.
    pub emitted: u32,
    /// Whether it has something to clean up when it is cancelled, or is being cancelled.
    pub cleanup: Cleanup,
    /// The worker that has it, or had its present run last.
    pub worker: Option<Arc<str>>,
}

impl FlowInfo {
    /// True for a flow that is due and never moves, whose worker has not been heard of for
    /// [a minute](Affinity::ABANDONED_AFTER): it waits until a worker of that name is there again.
    pub fn is_abandoned(&self) -> bool {
        self.due_at == Some(Timestamp::MAX)
            && Affinity::binding(&self.labels) == Affinity::Require { takeover: crate::Takeover::Never }
    }

    /// True when the flow was cancelled, or its time is up, and it has not ended yet: its clean-up is to run, or runs.
    pub fn is_cleaning_up(&self) -> bool {
        self.cleanup == Cleanup::Underway && !self.state.is_final()
    }
}

/// All that the log knows about a flow but its history and mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRecord {
    /// Everything but the payloads.
    pub info: FlowInfo,
    /// The encoded value of the flow type, that of its present run.
    pub input: Bytes,
    /// The encoded result of a completed flow, the encoded error of a failed one, else empty.
    pub result: Bytes,
}
