//! The trait that every backend implements.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Channel, Clock, Commit, CommitNow, Committed, Count, Cursor, Database, Error, ErrorKind, Extras, Feed, Filter,
    FlowId, FlowInfo, FlowPage, FlowRecord, FlowState, Imported, Item, Message, NewFlow, NewMessage, PrunePolicy,
    Record, Reset, Result, Sent, Snapshot, Timestamp, Topic, Watch, Work, WorkResult,
};

/// The durable record of flows, their histories and their mailboxes.
///
/// Each method is one atomic transition: it happens entirely or not at all, and when it has returned `Ok` it is
/// as durable as the log was configured to be. Methods may be called from any number of tasks and, where the
/// backend allows it, processes at once.
///
/// # Errors
///
/// Beside what each method names: [`ErrorKind::Unavailable`] when the log cannot answer now (whether the call was
/// applied is then unknown, and every method may be repeated), [`ErrorKind::Corrupt`] when what is stored cannot
/// be read, and [`ErrorKind::TooLarge`] for anything over the [`limits`](Self::limits). A refused call leaves no
/// trace.
///
/// An `Arc` of a log is a log, the same one: `Arc<dyn ExecutionLog>` can be given wherever one is taken.
///
/// # Parents and children
///
/// A flow that names a [`parent`](NewFlow::parent) is a child of the flow of that id if that one was accepted before
/// it. An id can be given to another flow when its flow was deleted, and a flow may be enqueued with a parent that is
/// not there yet: such a later flow is not its parent. It neither hears of the child's end nor takes it along when it
/// is cancelled, and the child can be deleted and pruned as if it had no parent. Only
/// [`Filter::parent`] goes by the id alone.
///
/// A flow that [begins again](crate::Next::Continue) keeps its children: they are cancelled with it. But what an earlier
/// run has started is to the present one as what an earlier flow of the id has started: it neither hears of the end nor
/// waits for it.
///
/// # Cancel safety
///
/// Dropping a future of this trait leaves open whether the call is applied, exactly as a lost answer does.
#[async_trait]
pub trait ExecutionLog: Send + Sync + 'static {
    /// The clock by which this log decides, or the nearest to it that this process has. The log compares
    /// instants with its own clock; callers use this one to wait and to date records.
    fn clock(&self) -> Arc<dyn Clock>;

    /// The bounds of what this log accepts.
    fn limits(&self) -> Limits;

    /// Begins to watch for hints about a topic. See [`Watch`].
    fn watch(&self, topic: Topic) -> Watch;

    // ---- queue -------------------------------------------------------------------------------------------

    /// Accepts flows, all or none, and answers for each in the same order. An id that is taken, also within the
    /// batch, changes nothing and is answered with [`Enqueued::Existing`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] and [`ErrorKind::TooLarge`] as [`NewFlow::check`].
    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>>;

    /// Leases flows that are due: scheduled or suspended ones whose instant has come (inclusive), and running
    /// ones whose lease has ended. A suspended flow whose time limit comes before its instant is due then. Higher
    /// priorities first, within one the flow that has been due the longest, within one instant the flow accepted
    /// first. Counts one delivery for each; a flow whose deliveries would
    /// exceed `deliveries_max` is stalled instead, and is not part of the answer. Each claim raises the epoch.
    ///
    /// A row that cannot be read is stalled or passed over; it never hides the others.
    ///
    /// A flow that is bound to another worker by its [`Affinity`](crate::Affinity) is not leased, whatever the target,
    /// and takes up no place in the limit: it is kept for that worker, and is due for others when its patience or the
    /// time until the takeover has passed. The worker itself is given it at once, with priority as if it had been due
    /// all the time; of those that are kept for it, so many come back with one claim as its limit says.
    ///
    /// One claim passes over [`Affinity::PASSED_MAX`](crate::Affinity::PASSED_MAX) of them, or a few more; where there may be
    /// others behind, the next due instant lies in the past, and the next claim goes on there.
    ///
    /// The log has heard of a worker, to within a second, when it claims a flow that
    /// [requires](crate::Affinity::Require) it, when it claims at all and the log has heard of it before, or when it
    /// says that it is [there](ClaimRequest::is_place). One that was never heard of counts as heard of when it is
    /// looked for first. One that says that it is there, and asks for less than when it said so before, counts from then on as
    /// not heard of for all that it does not ask for.
    async fn claim(&self, request: ClaimRequest) -> Result<Claimed>;

    /// Renews leases to `lease` from now and answers for each in the same order. A lease that has ended but
    /// that nobody else has claimed is renewed.
    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>>;

    /// Gives a flow back: it is scheduled, claimable at once, and this claim is not counted as a delivery. A
    /// repeat is refused. One that was cancelled under this lease and waits for its clean-up is claimable at once from then
    /// on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LeaseLost`] when the lease is not the current one.
    async fn release(&self, lease: &Lease) -> Result<()>;

    // ---- run ---------------------------------------------------------------------------------------------

    /// Applies a commit, all or nothing, if its lease is the flow's current one. A lease that has ended but that
    /// nobody else has claimed is still current. Records or a suspension reset the deliveries. Heartbeats replace what
    /// their records say, and change nothing else: neither the deliveries nor the number of records, and nobody is woken.
    ///
    /// With an end, the flow's mailbox is emptied unless the flow has failed, and its parent receives a message on
    /// [`Channel::children`] and is woken if it waits for one, all in the same transition. A parent that is
    /// detached, has completed or was cancelled receives nothing; one that has failed does, for it may be retried.
    /// The message names the call and the child: a call that is made again may have started another one by then.
    ///
    /// A child whose id is taken by a flow that this call did not start is answered with such a message too
    /// ([`ChildOutcome::Refused`](crate::ChildOutcome::Refused)). One that this call did start already, with the
    /// same type, version and input, is left alone while it has not ended; if it has, and is attached, a failed one is
    /// [retried](Self::retry) and any other tells its end again, in place of what it has told before and was not
    /// taken in. One that this call did start with another type, version or input is replaced when it has ended, with
    /// what it has told, and the call is refused when it has not. So it is with one that a call at the same place of
    /// an earlier flow of the parent's id, or an earlier run of the parent, has started (it was accepted before the parent,
    /// or before the run began), whatever its value. A child is compared by the value that it was accepted with, also if it
    /// has begun again with another one since.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LeaseLost`] when the lease is not the current one: the flow was claimed by another,
    /// cancelled, ended or deleted. [`ErrorKind::Invalid`] when the commit's number is not the next one and not
    /// the last one, when the records do not follow on the history, or when a heartbeat names a record that is not
    /// in it.
    async fn commit(&self, commit: Commit) -> Result<Committed>;

    /// As [`commit`](Self::commit), by a log that answers without waiting for anything. Any other gives the commit
    /// back, with nothing done, as this does unless it is overridden.
    ///
    /// An answer is final: it is never [`ErrorKind::Unavailable`], for whoever asked no longer has the commit.
    fn commit_now(&self, commit: Commit) -> CommitNow {
        CommitNow::NotNow(commit)
    }

    /// The database whose transactions [`transact`](Self::transact) lends; `None`, the default, when it lends none.
    fn database(&self) -> Option<Database> {
        None
    }

    /// Does the user's work in a transaction of the log's own database, once for a call of the flow: the outcome is
    /// kept in the same transaction, under the name `call`, and is answered from then on without doing the work again,
    /// until the flow is forgotten. Work that returns an error or panics leaves no trace, and is done anew the next
    /// time.
    ///
    /// # Errors
    ///
    /// The inner error is that of the work. [`ErrorKind::LeaseLost`] when the lease is not the current one;
    /// [`ErrorKind::Unsupported`] when the work is for another [`database`](Self::database).
    ///
    /// # Panics
    ///
    /// When the work does.
    async fn transact(&self, lease: &Lease, call: &str, work: Work<'_>) -> Result<WorkResult> {
        let _ = call;
        Err(no_transactions(self.database(), work.database()).with_flow(&lease.flow))
    }

    // ---- outside -----------------------------------------------------------------------------------------

    /// Puts a message into a flow's mailbox and wakes the flow if it waits for that channel.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown flow, [`ErrorKind::Finished`] for one that has ended (unless a
    /// message with the same key was accepted before).
    async fn send(&self, message: NewMessage) -> Result<Sent>;

    /// Cancels a flow and all its attached descendants, whatever they are doing, and tells the parent. From then
    /// on every write under an earlier lease is refused, even the repeat of a commit. The mailboxes are emptied.
    /// A flow that has ended is left as it is, with what it has started, which is said. A flow that was accepted
    /// before the one that it names as its parent is no descendant.
    ///
    /// One of them that has something to [clean up](crate::Cleanup::Needed) does not end with this: a
    /// [record](crate::Record::cancel) of the cancellation is added to its history, and it is scheduled, with its mailbox,
    /// for its clean-up, after which [`Next::Cancel`](crate::Next::Cancel) ends it and tells its parent. It is due at once;
    /// while somebody runs it, when that one [lets go](Self::release) of it, or its lease ends. That one hears of it by
    /// [`LeaseState::Cancelled`]. Its time limit wakes it no more. A flow that is cleaning up already is left as it is, which
    /// is answered as if it were cancelled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown flow; [`ErrorKind::TooLarge`] for a reason of more than
    /// [`Limits::REASON_BYTES_MAX`] bytes.
    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled>;

    /// Cancels a flow as [`cancel`](Self::cancel) does one that has nothing to clean up, whatever it has, or is cleaning up:
    /// it ends at once. Its attached descendants are cancelled as by that one, with their clean-up.
    ///
    /// # Errors
    ///
    /// As [`cancel`](Self::cancel).
    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled>;

    /// Schedules a failed or stalled flow again, to go on where it stopped. The deliveries are reset; the time limit
    /// begins anew. What a failed flow has told its parent is withdrawn if it has not been taken in.
    ///
    /// Of a failed flow all records of the calls to be made [`again`](crate::Next::Fail::again) are removed, but not
    /// those of calls below them, and the others are renumbered without gaps. The mailbox is as it was left, but for
    /// the ends of children that the flow is to hear anew. What the children of calls to be made again have told is
    /// withdrawn: the calls will find these children or start others. Other failures that were not taken in are
    /// withdrawn too, and with the flow those attached children are scheduled again in the same way, and theirs,
    /// whose failures these are: each is the last child that its call has started, and has failed still. A failure
    /// whose child is gone stays, for nobody would tell of it again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown flow.
    async fn retry(&self, flow: &FlowId) -> Result<Retried>;

    /// Schedules the stalled flows of these types and versions that another build than `build` has stalled, and
    /// returns how many. Flows that were stalled by the log itself, for too many deliveries, are not among them.
    /// To be offered again is no progress: the deliveries stay.
    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64>;

    // ---- read --------------------------------------------------------------------------------------------

    /// A flow; `None` when the id is unknown.
    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>>;

    /// The records of a flow after number `after` (0 for the first), in order, at most `limit`.
    ///
    /// Pages of a flow that goes on meanwhile are stable: records are only added. A [`retry`](Self::retry) of a failed
    /// flow alone removes some, and gives those behind them lower numbers, and the [next run](crate::Next::Continue) of a
    /// flow begins with none, so that pages from before and after it may not fit together. Who must read it whole compares
    /// the flow's state, [`run`](crate::FlowInfo::run), epoch and [`finished_at`](crate::FlowInfo::finished_at) before the
    /// first page and after the last, and begins anew if they differ.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown flow.
    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>>;

    /// The messages in a flow's mailbox on these channels (all, when none is named) after number `after` (0 for
    /// the first), in the order of their arrival, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown flow.
    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>>;

    /// The items of one of a flow's feeds after number `after` (0 for the first), in the order of their numbers, at most
    /// `limit`. A feed to which nothing was emitted has none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown flow.
    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>>;

    /// A page of the flows that pass the filter, in the order in which they were accepted, after the cursor.
    /// Flows that change while one pages are neither skipped nor repeated for it. A limit of 0 counts as 1.
    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage>;

    /// How many flows pass the filter, by queue, type, version and state, in that order. Flows that change while a log
    /// counts in parts are counted once, as they were at one instant or another.
    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>>;

    /// What is kept of a flow beside what the other questions tell; `None` when the id is unknown. See
    /// [`Snapshot::read`].
    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>>;

    // ---- upkeep ------------------------------------------------------------------------------------------

    /// Puts a flow into the log with all that it has been through, as if it had been here all the time: with its state,
    /// its instants and its epoch, and the numbers of its messages and items. One that was running is due at once. An id
    /// that is taken changes nothing.
    ///
    /// The flow counts as accepted now where flows are listed in that order, and is the child of the parent that it names
    /// if that one was accepted before. Its present run hears of the ends of all its attached children that are accepted
    /// later. Nobody is told anything: neither is its parent of its end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] and [`ErrorKind::TooLarge`] as [`Snapshot::admit`].
    async fn import(&self, snapshot: Snapshot) -> Result<Imported>;

    /// Takes a flow back to an earlier place in its history, whatever its state: what is not to be
    /// [kept](Reset::keep) is removed, the records that stay are renumbered without gaps, and the flow is scheduled,
    /// claimable at once. From then on every write under an earlier lease is refused, even the repeat of a commit: the
    /// epoch is a new one. The deliveries and the number of items that its code has
    /// [emitted](crate::FlowInfo::emitted) are reset, the items themselves stay, and so does what
    /// [`transact`](Self::transact) has kept; the time limit begins anew.
    ///
    /// The messages that come with the reset are put back into its mailbox, and all ends of children are taken out of it.
    /// The children that it names are cancelled if they live, with their attached descendants, and forgotten, as far as the
    /// flow hears of them. What the flow has told its parent of its end is withdrawn if it has not been taken in. A flow that
    /// had something to clean up still has, and is no longer cancelled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] for an unknown flow; [`ErrorKind::Conflict`] when its run, epoch or number of records is
    /// not the one that was seen, and when one of the children lives and has something to clean up; [`ErrorKind::Invalid`] and [`ErrorKind::TooLarge`] as [`Reset::check`].
    async fn reset(&self, reset: Reset) -> Result<()>;

    /// Forgets finished flows with everything that belongs to them, the longest finished first, and returns how
    /// many. A flow stays while the parent that waits for it has not ended. Among those that
    /// [stay by their number](PrunePolicy::keep), the ones that stay for their parents count too.
    async fn prune(&self, policy: &PrunePolicy) -> Result<u64>;

    /// Forgets one flow with everything that belongs to it. False when there was no such flow.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] when the flow, or the parent that waits for it, has not ended.
    async fn delete(&self, flow: &FlowId) -> Result<bool>;
}

/// The error for work on a database that is not the log's.
pub(crate) fn no_transactions(has: Option<Database>, wanted: Option<Database>) -> Error {
    let wanted = wanted.map_or_else(|| "no database".to_owned(), |wanted| wanted.to_string());
    let has = has.map_or_else(|| "this log lends none".to_owned(), |has| format!("this log's are of {has}"));
    Error::new(ErrorKind::Unsupported, format!("the work needs a transaction of {wanted}, {has}"))
}

/// The bounds of what a log accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest payload of a flow, record or message, in bytes; by default 16 MiB.
    pub payload_bytes_max: usize,
}

impl Limits {
    /// The longest reason for which a flow is cancelled, in bytes, where payloads may be as long.
    pub const REASON_BYTES_MAX: usize = 4096;

    /// Refuses a reason for a cancellation that is too long: the engine repeats it in what the flow ends with. Every log
    /// calls this before it looks at the flow.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`].
    pub fn check_reason(&self, flow: &FlowId, reason: &str) -> Result<()> {
        let (bytes, max) = (reason.len(), Self::REASON_BYTES_MAX.min(self.payload_bytes_max));
        if bytes <= max {
            return Ok(());
        }
        let message = format!("the reason of a cancellation takes {bytes} bytes, the limit is {max}; say it shorter");
        Err(Error::new(ErrorKind::TooLarge, message).with_flow(flow))
    }

    /// Refuses a payload over the limit.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`].
    pub fn check_payload(&self, what: impl std::fmt::Display, bytes: usize) -> Result<()> {
        if bytes <= self.payload_bytes_max {
            return Ok(());
        }
        let max = self.payload_bytes_max;
        Err(Error::new(
            ErrorKind::TooLarge,
            format!("{what} takes {bytes} bytes, the limit is {max}; keep large data elsewhere and pass its address"),
        ))
    }

    /// Checks what a log checks of every commit before it looks at the flow: sizes, labels and parents.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] or [`ErrorKind::Invalid`].
    pub fn check_commit(&self, commit: &Commit) -> Result<()> {
        let flow = &commit.lease.flow;
        for record in &commit.records {
            let what = format_args!("the payload of {} {:?}", record.kind, record.name);
            self.check_payload(what, record.payload.len()).map_err(|error| error.with_flow(flow))?;
            if record.name.len() > Record::NAME_BYTES_MAX {
                let message = format!("a {} name exceeds {} bytes", record.kind, Record::NAME_BYTES_MAX);
                return Err(Error::new(ErrorKind::Invalid, message).with_flow(flow));
            }
            if record.seq > Record::SEQ_MAX {
                let message = format!("a history has at most {} records", Record::SEQ_MAX);
                return Err(Error::new(ErrorKind::TooLarge, message).with_flow(flow));
            }
        }
        for beat in &commit.beats {
            self.check_payload("the progress of a heartbeat", beat.payload.len())
                .map_err(|error| error.with_flow(flow))?;
        }
        for child in &commit.children {
            if child.parent.as_ref().is_none_or(|parent| parent.id != *flow) {
                let message = format!("the child {:?} does not name its parent", child.id);
                return Err(Error::new(ErrorKind::Invalid, message).with_flow(flow));
            }
        }
        if let Some(labels) = &commit.labels {
            labels.check().map_err(|error| error.with_flow(flow))?;
        }
        for item in &commit.items {
            let feed = item.feed.as_str();
            if feed.is_empty() || feed.len() > Feed::BYTES_MAX {
                let message = format!("a feed's name has 1 to {} bytes, this one has {}", Feed::BYTES_MAX, feed.len());
                return Err(Error::new(ErrorKind::Invalid, message).with_flow(flow));
            }
            let what = format_args!("an item of feed {feed:?}");
            self.check_payload(what, item.payload.len()).map_err(|error| error.with_flow(flow))?;
        }
        match &commit.next {
            crate::Next::Complete { result } => self.check_payload("the flow's result", result.len()),
            crate::Next::Fail { error, .. } => self.check_payload("the flow's error", error.len()),
            crate::Next::Cancel { reason } => return self.check_reason(flow, reason),
            crate::Next::Continue { input } => self.check_payload("the flow's next value", input.len()),
            _ => Ok(()),
        }
        .map_err(|error| error.with_flow(flow))
    }

    /// Refuses heartbeats of records that the history, which has so many, does not have.
    #[cfg(any(feature = "memory", feature = "postgres", feature = "redis", feature = "sqlite"))]
    pub(crate) fn check_beats(beats: &[crate::Beat], records: u32) -> Result<()> {
        match beats.iter().find(|beat| !(1..=records).contains(&beat.seq)) {
            None => Ok(()),
            Some(crate::Beat { seq, .. }) => {
                let message = format!("a heartbeat names record {seq}, the history has {records}");
                Err(Error::new(ErrorKind::Invalid, message))
            }
        }
    }

    /// Checks what a log checks of every message before it looks at the flow.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] or [`ErrorKind::Invalid`].
    pub fn check_message(&self, message: &NewMessage) -> Result<()> {
        let flow = &message.to;
        self.check_payload("the message", message.payload.len()).map_err(|error| error.with_flow(flow))?;
        for (what, text) in [("channel", Some(message.channel.as_str())), ("idempotency key", message.key.as_deref())] {
            if text.is_some_and(|text| text.is_empty() || text.len() > Channel::BYTES_MAX) {
                let message = format!("a message's {what} has 1 to {} bytes", Channel::BYTES_MAX);
                return Err(Error::new(ErrorKind::Invalid, message).with_flow(flow));
            }
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { payload_bytes_max: 16 << 20 }
    }
}

/// What became of a flow given to [`ExecutionLog::enqueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// It is new.
    Created,
    /// The id was taken; nothing was changed.
    Existing {
        /// True when that flow has the same type, of whatever version, and was accepted with the same input bytes.
        same: bool,
    },
}

/// Which flows to lease, and how.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Who asks: what people read, and to what flows are bound by their [`Affinity`](crate::Affinity).
    pub worker: Arc<str>,
    /// True when the worker is to be heard of: flows may be bound to it. A claim of no flow will do.
    pub is_place: bool,
    /// Which flows.
    pub target: ClaimTarget,
    /// How many at most.
    pub limit: usize,
    /// How long the leases last unless they are renewed. A log that knows the holder of a lease to be gone for
    /// good may end it earlier.
    pub lease: Duration,
    /// How often a flow may be claimed without making progress before it is stalled; at least 1.
    pub deliveries_max: u32,
    /// How many records of each flow's history the answer carries at most; the rest is read with
    /// [`ExecutionLog::history`].
    pub history_max: usize,
    /// How many messages of each flow's mailbox the answer carries at most; the rest is read with
    /// [`ExecutionLog::messages`].
    pub messages_max: usize,
}

impl ClaimRequest {
    /// One flow of `target`, for 30 s, with at most 10 deliveries, 1,000 records and 100 messages.
    #[must_use]
    pub fn new(worker: impl Into<Arc<str>>, target: ClaimTarget) -> Self {
        Self {
            worker: worker.into(),
            is_place: false,
            target,
            limit: 1,
            lease: Duration::from_secs(30),
            deliveries_max: 10,
            history_max: 1_000,
            messages_max: 100,
        }
    }
}

/// Which flows a [`ClaimRequest`] is about.
#[derive(Debug, Clone)]
pub enum ClaimTarget {
    /// The flows of these queues that have one of these types and versions.
    Queues {
        /// The queues.
        queues: Arc<[Arc<str>]>,
        /// The types and versions.
        types: Arc<[(Arc<str>, u32)]>,
    },
    /// This flow, whatever its queue.
    Flow(FlowId),
}

/// The answer to a [`ClaimRequest`].
#[derive(Debug, Clone, Default)]
pub struct Claimed {
    /// The leased flows, in the order of [`ExecutionLog::claim`].
    pub flows: Vec<ClaimedFlow>,
    /// When the next flow of the target becomes due if nothing else happens: a start, a timer, or the end of a
    /// lease, also of one that this answer grants. In the past when more are due than were asked for; `None` when
    /// there is none.
    pub next_due_at: Option<Timestamp>,
    /// True when the log takes note of when it hears of the worker: flows are or were bound to it. It shall be heard of
    /// every few seconds, see [`ClaimRequest::is_place`].
    pub is_place: bool,
}

/// A flow with the right to run it.
#[derive(Debug, Clone)]
pub struct ClaimedFlow {
    /// The right to run it.
    pub lease: Lease,
    /// The flow, already running under that lease.
    pub info: FlowInfo,
    /// The encoded value of the flow type.
    pub input: Bytes,
    /// The first records of its history; [`FlowInfo::records`] tells how many there are.
    pub history: Vec<Record>,
    /// The first messages of its mailbox.
    pub messages: Vec<Message>,
    /// True when the mailbox holds more messages than these.
    pub more_messages: bool,
}

/// A time-limited right to run a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The flow.
    pub flow: FlowId,
    /// The number of the claim, the fencing token: writes under an earlier one are refused.
    pub epoch: u64,
    /// The log's own number for the flow, so that it need not look up the id; no meaning to others.
    pub key: u64,
}

/// Whether a [`Lease`] still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It was renewed.
    Held,
    /// It is not the flow's current one.
    Lost,
    /// The flow was cancelled.
    Cancelled,
}

/// What became of a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The flow is cancelled now: it has ended, or is to clean up and then ends.
    Now,
    /// The flow had reached this final state before; cancelled also when it is cleaning up.
    Already(FlowState),
}

/// What became of [`ExecutionLog::retry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// The flow is scheduled again.
    Scheduled,
    /// The flow is in this state, in which there is nothing to retry.
    Not(FlowState),
}
