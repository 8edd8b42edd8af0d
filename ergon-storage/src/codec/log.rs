//! A log whose payloads are encoded.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    future::try_join_all,
    stream::{self, StreamExt},
};

use super::{Codecs, PayloadCodec, PayloadKind};
use crate::{
    CallKind, Cancelled, Channel, ChildOutcome, ClaimRequest, Claimed, ClaimedFlow, Clock, Commit, CommitNow,
    Committed, Count, Cursor, Database, Enqueued, Error, ExecutionLog, Extras, Feed, Filter, FlowId, FlowPage,
    FlowRecord, FlowState, Imported, Item, Lease, LeaseState, Limits, Message, NewFlow, NewMessage, Next, PrunePolicy,
    Record, Reset, Result, Retried, Sent, Snapshot, Topic, Watch, Work, WorkResult,
};

/// A log that encodes the payloads of the user's before another log gets them, and decodes what that one has. The other
/// log sees nothing else of them, whichever it is; workers, schedulers, executors, handles and whoever else is given this
/// log see nothing of the codec.
///
/// Encoded are the values of flows, the outcomes and errors of calls, the results and errors of flows, messages, statuses,
/// items of streams, and the outcomes of transactions.
///
/// # What stays clear
///
/// What a log must know, or what people find flows by: ids, types, queues, labels, the names of steps, signals, streams
/// and timers, all instants, the keys of messages, a hash of the arguments of each call, how long payloads are, and the
/// reasons for which flows failed, were cancelled or are stalled. **The reason of a failed flow is the text of its error,**
/// as `Debug` shows it, with its fields: [`hiding_reasons`](Self::hiding_reasons) keeps that out of the log. Labels, the
/// reasons of cancellations and what is said in panics and of stalled flows are as they were written. The user's own SQL in
/// transactions is the user's own.
///
/// # Other payloads in the log
///
/// What is encoded says by which codec. Payloads from before the log had one are read as they are, unless
/// [`refusing_plain`](Self::refusing_plain), and those of other codecs, such as earlier keys, by the codecs given to
/// [`reading`](Self::reading). To change a key while several workers run, first give all of them the new one to read, then
/// all of them to write. A program on the log that has no codec at all can read nothing that is encoded, and its flows
/// fail: give all of them the codec to read, before any of them writes by it.
///
/// A payload that cannot be decoded is never taken for the failure of a flow: the flow that needs it is stalled, with a
/// reason that names the codec, and goes on when it is retried; or when a worker starts, which hopefully has the key: each
/// such start counts as a delivery, so that after as many as a worker allows the flow has to be retried by hand.
/// Everybody else is told with an error of the kind [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt).
/// [`flow`](ExecutionLog::flow) alone leaves a value that it cannot decode as it is stored, so that one can ask what has
/// become of a flow that has not ended.
///
/// When the key has changed, a child that has begun again (continue-as-new) is not found by a parent that is retried and
/// makes the call again: to the log it has another value than the one it was accepted with.
///
/// # Costs
///
/// Those of the codec; and a look for each child that a flow starts after it was claimed a second time.
///
/// # Examples
///
/// See [`PayloadCodec`], and the example `vault`, which encrypts.
#[derive(Clone)]
pub struct CodecExecutionLog {
    log: Arc<dyn ExecutionLog>,
    codecs: Arc<Codecs>,
    /// The other log does not answer commits at once.
    takes_its_time: Arc<AtomicBool>,
}

impl CodecExecutionLog {
    /// The log behind this codec.
    #[must_use]
    pub fn new(log: impl ExecutionLog, codec: impl PayloadCodec) -> Self {
        let codecs = Arc::new(Codecs::new(Arc::new(codec)));
        Self { log: Arc::new(log), codecs, takes_its_time: Arc::default() }
    }

    /// The same log, which reads what this codec has written too: an earlier key, or the next one.
    #[must_use]
    pub fn reading(self, codec: impl PayloadCodec) -> Self {
        self.with(|codecs| codecs.reads.push(Arc::new(codec)))
    }

    /// The same log, which takes payloads that are not encoded for unreadable. With a cipher that authenticates, nobody
    /// who can write into the database, but has no key, can put values of their own into it.
    #[must_use]
    pub fn refusing_plain(self) -> Self {
        self.with(|codecs| codecs.refuses_plain = true)
    }

    /// The same log, which does not write the reasons for which flows fail, but [`HIDDEN_REASON`](Self::HIDDEN_REASON).
    /// [`flow`](ExecutionLog::flow) and whatever asks by it, a flow's history for instance, then has the flow's encoded
    /// error as its reason, as JSON; lists and filters have nothing of it.
    #[must_use]
    pub fn hiding_reasons(self) -> Self {
        self.with(|codecs| codecs.hides_reasons = true)
    }

    /// What is written in place of a [hidden](Self::hiding_reasons) reason.
    pub const HIDDEN_REASON: &'static str = "the reason is encoded, with the error";

    fn with(mut self, change: impl FnOnce(&mut Codecs)) -> Self {
        let mut codecs = Codecs::clone(&self.codecs);
        change(&mut codecs);
        self.codecs = Arc::new(codecs);
        self
    }

    fn encode_flow(&self, flow: &NewFlow) -> Result<NewFlow> {
        let input = self.codecs.encode(&flow.id, PayloadKind::Input, &flow.input)?;
        Ok(NewFlow { input, ..flow.clone() })
    }

    fn encode_commit(&self, commit: &Commit) -> Result<Commit> {
        self.limits().check_commit(commit)?;
        let flow = &commit.lease.flow;
        let mut encoded = commit.clone();
        for record in encoded.records.iter_mut().filter(|record| is_encoded(record)) {
            record.payload = self.codecs.encode(flow, PayloadKind::of(record), &record.payload)?;
        }
        for beat in &mut encoded.beats {
            // That of a record which is pending.
            beat.payload = self.codecs.encode(flow, PayloadKind::Outcome, &beat.payload)?;
        }
        for item in &mut encoded.items {
            item.payload = self.codecs.encode(flow, PayloadKind::Item, &item.payload)?;
        }
        for child in &mut encoded.children {
            child.input = self.codecs.encode(&child.id, PayloadKind::Input, &child.input)?;
        }
        match &mut encoded.next {
            Next::Complete { result } => *result = self.codecs.encode(flow, PayloadKind::Result, result)?,
            Next::Fail { error, reason, .. } => {
                *error = self.codecs.encode(flow, PayloadKind::Error, error)?;
                if self.codecs.hides_reasons {
                    *reason = Self::HIDDEN_REASON.into();
                }
            }
            Next::Continue { input } => *input = self.codecs.encode(flow, PayloadKind::Input, input)?,
            Next::Run | Next::Suspend { .. } | Next::Cancel { .. } | Next::Stall { .. } => {}
        }
        Ok(encoded)
    }

    /// True when children of the commit may be there already, started by a call that is made again: no flow's first claim
    /// is that of a retry. The log finds them by their values, byte by byte.
    fn may_find_children(commit: &Commit) -> bool {
        commit.lease.epoch > 1 && !commit.children.is_empty()
    }

    /// Gives the children that are there already, with the same value, that value as it is stored.
    async fn find_children(&self, plain: &Commit, encoded: &mut Commit) -> Result<()> {
        let known = try_join_all(plain.children.iter().map(|child| self.log.flow(&child.id))).await?;
        for ((plain, encoded), known) in plain.children.iter().zip(&mut encoded.children).zip(known) {
            if let Some(known) = known
                && known.info.run == 1
                && self.codecs.decode(&plain.id, PayloadKind::Input, &known.input).is_ok_and(|it| it == plain.input)
            {
                encoded.input = known.input;
            }
        }
        Ok(())
    }

    /// What is to be said of a flow whose id is taken, and whose value came out as other bytes than what is there.
    async fn compare(&self, flow: &NewFlow) -> Result<Enqueued> {
        let other = Enqueued::Existing { same: false };
        let Some(known) = self.log.flow(&flow.id).await? else { return Ok(other) };
        if known.info.flow_type != flow.flow_type {
            return Ok(other);
        }
        if known.info.run == 1 {
            let value = self.codecs.decode(&flow.id, PayloadKind::Input, &known.input)?;
            return Ok(Enqueued::Existing { same: value == flow.input });
        }
        // What it was accepted with is known to the log alone, which compares it with other ways of writing this value.
        let mut written = Vec::new();
        for codec in &self.codecs.reads {
            written.push(Codecs::new(Arc::clone(codec)).encode(&flow.id, PayloadKind::Input, &flow.input)?);
        }
        if !self.codecs.refuses_plain {
            written.push(flow.input.clone());
        }
        for input in written {
            // Should the flow have been deleted by now, what takes its place is encoded as it is to be.
            let both = vec![self.encode_flow(flow)?, NewFlow { input, ..flow.clone() }];
            if let Some(answer) = self.log.enqueue(both).await?.into_iter().find(|answer| *answer != other) {
                return Ok(answer);
            }
        }
        Ok(other)
    }

    fn decode_claimed(&self, flow: &mut ClaimedFlow) -> Result<()> {
        let id = &flow.info.id;
        flow.input = self.codecs.decode(id, PayloadKind::Input, &flow.input)?;
        self.decode_history(id, &mut flow.history)?;
        self.decode_messages(id, &mut flow.messages)
    }

    fn decode_history(&self, flow: &FlowId, history: &mut [Record]) -> Result<()> {
        for record in history.iter_mut().filter(|record| is_encoded(record)) {
            record.payload = self.codecs.decode(flow, PayloadKind::of(record), &record.payload)?;
        }
        Ok(())
    }

    fn decode_messages(&self, flow: &FlowId, messages: &mut [Message]) -> Result<()> {
        for message in messages {
            if let Some((owner, kind)) = kind_of(message, flow) {
                message.payload = self.codecs.decode(owner, kind, &message.payload)?;
            }
        }
        Ok(())
    }

    /// A flow as it is to be put in.
    fn encode_snapshot(&self, mut snapshot: Snapshot) -> Result<Snapshot> {
        let Snapshot { flow, extras, records, messages, items } = &mut snapshot;
        let id = &flow.info.id;
        let state = flow.info.state;
        flow.input = self.codecs.encode(id, PayloadKind::Input, &flow.input)?;
        if let Some(accepted) = &extras.accepted {
            extras.accepted = Some(self.codecs.encode(id, PayloadKind::Input, accepted)?);
        }
        let kind = if state == FlowState::Completed { PayloadKind::Result } else { PayloadKind::Error };
        flow.result = self.codecs.encode(id, kind, &flow.result)?;
        for record in records.iter_mut().filter(|record| is_encoded(record)) {
            record.payload = self.codecs.encode(id, PayloadKind::of(record), &record.payload)?;
        }
        self.encode_messages(id, messages)?;
        for item in items.values_mut().flatten() {
            item.payload = self.codecs.encode(id, PayloadKind::Item, &item.payload)?;
        }
        if self.codecs.hides_reasons && state == FlowState::Failed {
            flow.info.reason = Some(Self::HIDDEN_REASON.into());
        }
        Ok(snapshot)
    }

    fn encode_messages(&self, flow: &FlowId, messages: &mut [Message]) -> Result<()> {
        for message in messages {
            if let Some((owner, kind)) = kind_of(message, flow) {
                message.payload = self.codecs.encode(owner, kind, &message.payload)?;
            }
        }
        Ok(())
    }

    /// Puts a claimed flow aside that cannot be read.
    async fn stall(&self, lease: Lease, error: &Error) {
        /// No worker's build, so that each one which starts is offered the flow.
        const BUILD: &str = "codec";
        let flow = lease.flow.clone();
        tracing::error!(%flow, error = ?error, "the flow is stalled, for it cannot be decoded");
        let mut commit = Commit::new(lease, 1);
        let reason =
            format!("what is stored of it cannot be decoded: {error}; give the log that codec, then retry the flow");
        commit.next = Next::Stall { reason: reason.into(), build: BUILD.into() };
        if let Err(error) = self.log.commit(commit).await {
            tracing::error!(%flow, error = ?error, "the flow could not be stalled; its lease ends by itself");
        }
    }

    /// The same work, whose outcome is encoded; what goes wrong with that is left in `trouble`.
    #[cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(clippy::needless_pass_by_value))]
    fn encode_work<'w>(&self, flow: &FlowId, work: Work<'w>, trouble: &Trouble) -> Work<'w> {
        let (codecs, flow, trouble) = (Arc::clone(&self.codecs), flow.clone(), Arc::clone(trouble));
        let encode = move |done: WorkResult| -> WorkResult {
            codecs.encode(&flow, PayloadKind::Outcome, &done?).map_err(|error| {
                *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Box::new(()) as Box<_>
            })
        };
        match work {
            #[cfg(feature = "sqlite")]
            Work::Sqlite(work) => Work::Sqlite(Box::new(move |tx| encode(work(tx)))),
            #[cfg(feature = "postgres")]
            Work::Postgres(work) => {
                let encode = Arc::new(encode);
                Work::Postgres(Box::new(move |tx, within| {
                    let (done, encode) = (work(tx, within), Arc::clone(&encode));
                    Box::pin(async move { encode(done.await) })
                }))
            }
            Work::None(none) => {
                drop(encode);
                Work::None(none)
            }
        }
    }
}

/// What the payload of a message to a flow is encoded as; `None` for texts of the log's own.
fn kind_of<'m>(message: &'m Message, flow: &'m FlowId) -> Option<(&'m FlowId, PayloadKind)> {
    let kind = match message.child {
        None => PayloadKind::Message,
        Some(ChildOutcome::Completed) => PayloadKind::Result,
        Some(ChildOutcome::Failed) => PayloadKind::Error,
        Some(ChildOutcome::Cancelled | ChildOutcome::Refused) => return None,
    };
    // What a child ends with is encoded once, as its own.
    Some((message.ended.as_ref().unwrap_or(flow), kind))
}

/// Why the outcome of some work could not be encoded.
type Trouble = Arc<Mutex<Option<Error>>>;

impl fmt::Debug for CodecExecutionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads: Vec<_> = self.codecs.reads.iter().map(PayloadCodec::id).collect();
        f.debug_struct("CodecExecutionLog")
            .field("writes", &self.codecs.writes.id())
            .field("reads", &reads)
            .finish_non_exhaustive()
    }
}

/// Whether the payload of a record is one: the log itself writes why a flow was cancelled.
fn is_encoded(record: &Record) -> bool {
    record.kind != CallKind::Cancel
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ExecutionLog for CodecExecutionLog {
    fn clock(&self) -> Arc<dyn Clock> {
        self.log.clock()
    }

    /// Those of the other log, less what the codec may add to a payload.
    fn limits(&self) -> Limits {
        self.codecs.limits(self.log.limits())
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.log.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        let limits = self.limits();
        let mut encoded = Vec::with_capacity(flows.len());
        for flow in &flows {
            let checked = limits.check_payload("the flow's value", flow.input.len());
            checked.map_err(|error| error.with_flow(&flow.id))?;
            encoded.push(self.encode_flow(flow)?);
        }
        let mut answers = self.log.enqueue(encoded).await?;
        for (flow, answer) in flows.iter().zip(&mut answers) {
            if *answer == (Enqueued::Existing { same: false }) {
                *answer = self.compare(flow).await?;
            }
        }
        Ok(answers)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        let mut claimed = self.log.claim(request).await?;
        let mut unreadable = Vec::new();
        claimed.flows.retain_mut(|flow| match self.decode_claimed(flow) {
            Ok(()) => true,
            Err(error) => {
                unreadable.push((flow.lease.clone(), error));
                false
            }
        });
        // The leases of the others run already.
        let stalls = stream::iter(unreadable);
        stalls.for_each_concurrent(64, async |(lease, error)| self.stall(lease, &error).await).await;
        Ok(claimed)
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        self.log.heartbeat(leases, lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.log.release(lease).await
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let mut encoded = self.encode_commit(&commit)?;
        if Self::may_find_children(&commit) {
            self.find_children(&commit, &mut encoded).await?;
        }
        self.log.commit(encoded).await
    }

    fn commit_now(&self, commit: Commit) -> CommitNow {
        if self.takes_its_time.load(Ordering::Relaxed) || Self::may_find_children(&commit) {
            return CommitNow::NotNow(commit);
        }
        let encoded = match self.encode_commit(&commit) {
            Ok(encoded) => encoded,
            Err(error) => return CommitNow::Answered(Err(error)),
        };
        match self.log.commit_now(encoded) {
            CommitNow::NotNow(_) => {
                self.takes_its_time.store(true, Ordering::Relaxed);
                CommitNow::NotNow(commit)
            }
            answered @ CommitNow::Answered(_) => answered,
        }
    }

    fn database(&self) -> Option<Database> {
        self.log.database()
    }

    async fn transact(&self, lease: &Lease, call: &str, work: Work<'_>) -> Result<WorkResult> {
        let trouble = Trouble::default();
        let work = self.encode_work(&lease.flow, work, &trouble);
        let done = self.log.transact(lease, call, work).await?;
        if let Some(error) = trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
            && done.is_err()
        {
            return Err(error);
        }
        match done {
            Ok(payload) => self.codecs.decode(&lease.flow, PayloadKind::Outcome, &payload).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn send(&self, mut message: NewMessage) -> Result<Sent> {
        self.limits().check_message(&message)?;
        message.payload = self.codecs.encode(&message.to, PayloadKind::Message, &message.payload)?;
        self.log.send(message).await
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.limits().check_reason(flow, reason)?;
        self.log.cancel(flow, reason).await
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.limits().check_reason(flow, reason)?;
        self.log.abandon(flow, reason).await
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        self.log.retry(flow).await
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        self.log.reoffer(types, build).await
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        let Some(mut record) = self.log.flow(flow).await? else { return Ok(None) };
        match self.codecs.decode(flow, PayloadKind::Input, &record.input) {
            Ok(input) => record.input = input,
            // One can ask for its state all the same; whoever claims it hears of this.
            Err(error) => tracing::debug!(%flow, error = ?error, "the flow's value stays as it is stored"),
        }
        let kind = if record.info.state == FlowState::Completed { PayloadKind::Result } else { PayloadKind::Error };
        record.result = self.codecs.decode(flow, kind, &record.result)?;
        let FlowRecord { info, result, .. } = &mut record;
        if info.state == FlowState::Failed && info.reason.as_deref() == Some(Self::HIDDEN_REASON) {
            info.reason = Some(String::from_utf8_lossy(result).into());
        }
        Ok(Some(record))
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        let mut history = self.log.history(flow, after, limit).await?;
        self.decode_history(flow, &mut history)?;
        Ok(history)
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        let mut messages = self.log.messages(flow, channels, after, limit).await?;
        self.decode_messages(flow, &mut messages)?;
        Ok(messages)
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        let mut items = self.log.items(flow, feed, after, limit).await?;
        for item in &mut items {
            item.payload = self.codecs.decode(flow, PayloadKind::Item, &item.payload)?;
        }
        Ok(items)
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        self.log.list(filter, after, limit).await
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        self.log.counts(filter).await
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        let Some(mut extras) = self.log.extras(flow).await? else { return Ok(None) };
        if let Some(accepted) = &extras.accepted {
            extras.accepted = Some(self.codecs.decode(flow, PayloadKind::Input, accepted)?);
        }
        // A value that is left as it is stored would be encoded twice where it is put in.
        if let Some(record) = self.log.flow(flow).await? {
            self.codecs.decode(flow, PayloadKind::Input, &record.input)?;
        }
        Ok(Some(extras))
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        let snapshot = snapshot.admit(self.clock().now(), &self.limits())?;
        self.log.import(self.encode_snapshot(snapshot)?).await
    }

    async fn reset(&self, mut reset: Reset) -> Result<()> {
        reset.check(&self.limits())?;
        self.encode_messages(&reset.flow, &mut reset.messages)?;
        self.log.reset(reset).await
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        self.log.prune(policy).await
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        self.log.delete(flow).await
    }
}
