//! One step forward in the life of a running flow.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Beat, CallPath, Channel, Cleanup, Labels, Lease, NewFlow, NewItem, Record, Result, Timestamp};

/// What a worker writes about a flow that it holds: all of it or nothing.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The right to write.
    pub lease: Lease,
    /// The number of this commit under its lease, from 1. A repeat of the last applied number is recognised and
    /// answered as the first time, until the flow is claimed again, cancelled or deleted; nothing is applied twice.
    pub number: u32,
    /// New lines of the history; their `seq`s follow on those that are there.
    pub records: Vec<Record>,
    /// How far calls have come that are under way: what their records say of it from now on. Each names a
    /// [pending](crate::Phase::Pending) record that was there before this commit.
    pub beats: Vec<Beat>,
    /// Messages that the records have taken in; they leave the mailbox. A number that is not there is passed over.
    pub consumed: Vec<u32>,
    /// Child flows that the records start. Each must name the flow as its [`parent`](NewFlow::parent). A call that is
    /// made again finds the child that it has started, if it wants the same type, version and input.
    pub children: Vec<NewFlow>,
    /// All the labels that the flow has from now on; `None` leaves them as they are.
    pub labels: Option<Labels>,
    /// What the flow and its steps tell meanwhile, in the order in which they do. Items stay when the flow begins again.
    pub items: Vec<NewItem>,
    /// How many items the flow's own code has emitted in this run, if that has changed; see
    /// [`FlowInfo::emitted`](crate::FlowInfo::emitted).
    pub emitted: Option<u32>,
    /// What the flow has to clean up from now on, where that is more than before: [`Cleanup::None`] leaves it as it is. With
    /// [`Cleanup::Underway`] comes a record of the kind [`CallKind::Cancel`](crate::CallKind::Cancel).
    pub cleanup: Cleanup,
    /// Where the flow goes from here.
    pub next: Next,
}

impl Commit {
    /// A commit that changes nothing and keeps the flow running.
    #[must_use]
    pub fn new(lease: Lease, number: u32) -> Self {
        Self {
            lease,
            number,
            records: Vec::new(),
            beats: Vec::new(),
            consumed: Vec::new(),
            children: Vec::new(),
            labels: None,
            items: Vec::new(),
            emitted: None,
            cleanup: Cleanup::None,
            next: Next::Run,
        }
    }
}

/// Where a flow goes with a [`Commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next {
    /// On, under the same lease.
    Run,
    /// To sleep until it is woken; the lease ends. If something that wakes it is there already, the lease goes
    /// on instead, and [`Committed::Awake`] says so. The flow's time limit wakes it like an
    /// instant, unless it is cleaning up.
    Suspend {
        /// What wakes it.
        wake: Wake,
        /// For each channel of `wake`, in their order, the number of the last message on it that the flow knows: it has
        /// no use for this one and those before it now, and they do not keep it awake. 0, or nothing, where any does.
        /// Numbers beyond the channels mean nothing; a channel that is named twice is passed over only as far as by the
        /// lower number.
        heard: Vec<u32>,
    },
    /// To its end, with this encoded result.
    Complete {
        /// The encoded result.
        result: Bytes,
    },
    /// To its end, with this error.
    Fail {
        /// The encoded error.
        error: Bytes,
        /// The error as one line of text.
        reason: Arc<str>,
        /// The calls that [`retry`](crate::ExecutionLog::retry) makes again: those whose failure the flow ended
        /// with. Nothing that the flow has done since may hang on their outcomes. What their children have told by
        /// then is withdrawn.
        again: Vec<CallPath>,
    },
    /// To its end, as cancelled: its clean-up is done.
    Cancel {
        /// Why it was cancelled.
        reason: Arc<str>,
    },
    /// Back to its beginning, with another value: its next run. The flow is scheduled, claimable at once, and the lease
    /// ends.
    ///
    /// The history is emptied, with the records of this commit, and so is what [`transact`](crate::ExecutionLog::transact)
    /// has kept. The flow keeps its id, type, version, queue, priority, parent and time limit, which goes on, and its
    /// mailbox with the messages that this commit does not consume, their numbers and the senders' keys. Its children go
    /// on as they are; the ends that they have told are taken out of the mailbox, and later runs hear of none.
    Continue {
        /// The encoded value of the next run.
        input: Bytes,
    },
    /// To a standstill that a person or another build must look at.
    Stall {
        /// What is wrong and what to do, as text.
        reason: Arc<str>,
        /// The build that could not go on; a worker with another one may be offered the flow.
        build: Arc<str>,
    },
}

impl Next {
    /// To sleep until it is woken, by any message that is there too.
    #[must_use]
    pub fn suspend(wake: Wake) -> Self {
        Self::Suspend { wake, heard: Vec::new() }
    }
}

/// What wakes a suspended flow: an instant, or a message on one of some channels, whichever comes first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wake {
    /// The instant; `None` when no instant wakes it.
    pub at: Option<Timestamp>,
    /// The channels; a message that waits on one of them already counts, unless the flow says that it knows it.
    pub channels: Vec<Channel>,
}

/// What became of a [`Commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// Applied; for [`Next::Run`], for an end, and for the beginning of the next run.
    Applied,
    /// Applied, and the flow is suspended; the lease has ended.
    Suspended,
    /// Applied but for the suspension: a message or the instant is there already, and the lease goes on.
    Awake,
}

/// What a log does with a [`Commit`] that it may answer only [at once](crate::ExecutionLog::commit_now).
#[derive(Debug)]
// A box would cost each commit that waits an allocation, to spare a move.
#[allow(clippy::large_enum_variant)]
pub enum CommitNow {
    /// It has answered.
    Answered(Result<Committed>),
    /// It would have to wait, and has done nothing. The commit comes back.
    NotNow(Commit),
}
