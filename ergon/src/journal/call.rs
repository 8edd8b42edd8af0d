//! What a journal knows of a call, and what it says about it.

use std::{fmt, panic::Location, sync::Arc, task::Waker, time::Duration};

use bytes::Bytes;
use ergon_storage::{Beat, CallKind, CallPath, Cleanup, Message, NewFlow, NewItem, Phase, Record, Timestamp};

use super::beat::Pulse;

/// What makes two calls the same call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CallKey {
    pub(crate) kind: CallKind,
    pub(crate) name: Arc<str>,
    pub(crate) args_hash: u64,
}

/// A call made by the flow or by one of its steps, as long as its future lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallId(pub(super) usize);

/// Where a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the flow's own code.
    Flow,
    /// In the body of this step.
    Step(CallId),
}

/// What a call wants, beside its key.
#[derive(Debug)]
pub(crate) enum Spec {
    Step {
        limit: Option<Duration>,
        /// How long a body may go without a heartbeat.
        silence: Option<Duration>,
        repeat: Repeat,
    },
    Timer(Due),
    Signal {
        limit: Option<Duration>,
    },
    Child {
        flow: Box<NewFlow>,
        detached: bool,
    },
}

/// Whether the body of a step may run again that may have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Allowed,
    /// At most once: that an attempt begins is durable before it does, and one that was lost is not made again.
    Never,
}

/// When a timer is due.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    After(Duration),
    At(Timestamp),
}

/// What a call's future gets when it is polled.
#[derive(Debug)]
pub(crate) enum CallPoll {
    /// Nothing yet; the waker will be woken.
    Pending,
    /// The body of a step may run, as this attempt, unless its time is up.
    Run { attempt: u32, time_is_up: Option<TimeUp> },
    /// This attempt of a step that runs at most once may have run, and its outcome is lost.
    Lost { attempt: u32 },
    /// The outcome. The call has ended.
    Ready(Outcome),
}

/// Which time of an attempt is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeUp {
    /// Its time limit has passed.
    Limit,
    /// It has sent no heartbeat for too long.
    Silence,
}

/// A released outcome.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) phase: Phase,
    pub(crate) payload: Bytes,
}

/// What must become durable together, and before the next effect.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Record>,
    /// How far bodies have come, of which there are records.
    pub(crate) beats: Vec<Beat>,
    pub(crate) consumed: Vec<u32>,
    pub(crate) children: Vec<NewFlow>,
    /// The calls that wait only for these children to be accepted.
    pub(crate) starts: Vec<CallPath>,
    /// What the flow and its steps tell.
    pub(crate) items: Vec<NewItem>,
    /// How many items the flow's own code has emitted, if some of these are its.
    pub(crate) emitted: Option<u32>,
    /// What the flow has to clean up from now on.
    pub(crate) cleanup: Cleanup,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.beats.is_empty()
            && self.consumed.is_empty()
            && self.children.is_empty()
            && self.items.is_empty()
            && self.cleanup == Cleanup::None
    }
}

/// Where the code of a flow and its history part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Divergence {
    /// The place in question.
    pub(crate) path: CallPath,
    /// What the history holds there; `None` when it holds nothing.
    pub(crate) recorded: Option<CallKey>,
    /// What the code called there; `None` when it called nothing.
    pub(crate) called: Option<CallKey>,
}

/// Why a call cannot be made at all. The flow fails with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) call: CallKey,
    pub(crate) message: String,
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) place: Place,
    pub(super) key: CallKey,
    pub(super) spec: Spec,
    pub(super) location: &'static Location<'static>,
    /// Rises with every call; orders those who wait for the same thing.
    pub(super) made: u64,
    pub(super) path: Option<CallPath>,
    pub(super) state: State,
    pub(super) polled: bool,
    /// What a cancellation of the flow makes of it.
    pub(super) when_cancelled: WhenCancelled,
    /// Its future is gone, but it takes effect all the same: a child that was started.
    pub(super) orphan: bool,
    /// Its body runs, but waits for nothing other than calls of its own.
    pub(super) quiet: bool,
    /// Failed attempts so far.
    pub(super) attempts: u32,
    /// The number of the last failed attempt's record; 0 when there is none.
    pub(super) attempt_seq: u32,
    /// The last attempt of which the history tells that it has begun; 0 when there is none.
    pub(super) begun: u32,
    pub(super) started_at: Timestamp,
    /// For a step with a time limit, that of the attempt under way.
    pub(super) limit: Option<TimeLimit>,
    /// For a step that sends heartbeats, or should: the last one, and when the next must come.
    pub(super) pulse: Option<Box<Pulse>>,
    /// The number of the record that tells of the attempt under way, where this journal has made it; else 0.
    pub(super) begun_seq: u32,
    pub(super) waker: Option<Waker>,
    /// For a child its flow id; for a signal that came the number of its message; for a step called by a step its number
    /// among equal calls, unless it is the first; [`UNCERTAIN`] for a failure of which the body did not tell.
    pub(super) reference: Option<Arc<str>>,
}

/// What a cancellation of its flow makes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenCancelled {
    Ends,
    /// It belongs to a clean-up.
    GoesOn,
}

/// What refers to a failure of a step that runs at most once when it is uncertain what the body has done: such a call is
/// not made again, whoever asks for it.
pub(super) const UNCERTAIN: &str = "uncertain";

impl Call {
    /// True for a step that runs at most once and has begun in an earlier life: its outcome is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.never_repeats() && self.begun > self.attempts
    }

    /// True for a step that runs at most once.
    pub(super) fn never_repeats(&self) -> bool {
        matches!(self.spec, Spec::Step { repeat: Repeat::Never, .. })
    }
}

/// When the time of an attempt is up.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeLimit {
    pub(super) at: Timestamp,
    /// The instant is in the history, or about to be.
    pub(super) recorded: bool,
    /// The instant has passed.
    pub(super) passed: bool,
}

#[derive(Debug)]
pub(super) enum State {
    /// Made in this pass; its place is not known yet.
    Made,
    /// Made and dropped in one pass; keeps its place until the seal.
    Abandoned,
    /// Its outcome is recorded and waits for its turn in the replay.
    Replaying { at: Timestamp, outcome: Outcome },
    /// Sealed during the replay without a record; takes effect when the replay is over.
    Unrecorded,
    /// A step whose body may start once it is polled and everything before it is durable.
    Idle,
    /// A step that waits for its next attempt.
    Backoff(Timestamp),
    /// A step whose body runs.
    Running,
    /// A wait, perhaps with an instant at which it ends.
    Waiting { due: Option<Timestamp> },
    /// The outcome is recorded under this number and waits for its release.
    Recorded { seq: u32, at: Timestamp, outcome: Outcome },
    /// The outcome may be taken. A signal taken from the mailbox in this pass is kept until then.
    Released { outcome: Outcome, message: Option<Box<Message>> },
    /// The flow was cancelled: no outcome comes, whoever holds the future.
    Over,
}

impl fmt::Display for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} (arguments {:016x})", self.kind, self.name, self.args_hash)
    }
}

impl fmt::Display for Divergence {
    /// Both sides, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the code and the history part at call {}: ", self.path)?;
        match (&self.recorded, &self.called) {
            (Some(recorded), Some(called)) if recorded.kind == called.kind && recorded.name == called.name => {
                write!(f, "the history has {recorded}, the code made the same call with other arguments, {called}")?;
                if called.kind == CallKind::Child {
                    f.write_str(" (if its value holds a HashSet: that has another order each time, take a BTreeSet)")?;
                }
            }
            (Some(recorded), Some(called)) => write!(f, "the history has {recorded}, the code called {called}")?,
            (Some(recorded), None) => write!(f, "the history has {recorded}, the code does not make that call")?,
            (None, called) => match called {
                Some(called) => write!(f, "the history has nothing, the code called {called}")?,
                None => write!(f, "neither has a call")?,
            },
        }
        f.write_str(
            "; nothing is lost: undo the change, or put it behind ergon::patched(), or give the flow a new version \
             for the changed code and let a worker with the old code finish this one, then retry the flow",
        )
    }
}
