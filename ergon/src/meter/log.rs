//! A log whose answers are timed.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ergon_storage::{
    Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, CommitNow, Committed, Count, Cursor, Database, Enqueued,
    Error, ErrorKind, ExecutionLog, Extras, Feed, Filter, FlowId, FlowPage, FlowRecord, FlowState, Imported, Item,
    Lease, LeaseState, Limits, Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent,
    Snapshot, Topic, Watch, Work, WorkResult,
};
use metrics::{Counter, Histogram, counter, histogram};

use super::{names, on::ended};

/// The same log, timed. What is measured of one handle is added to what is measured of others.
pub(crate) fn metered(log: Arc<dyn ExecutionLog>) -> Arc<dyn ExecutionLog> {
    Arc::new(Metered { log, timers: [const { OnceLock::new() }; OPERATIONS.len()], scheduled: Mutex::default() })
}

struct Metered {
    log: Arc<dyn ExecutionLog>,
    timers: [OnceLock<Histogram>; OPERATIONS.len()],
    /// By type: the types that the program's own code schedules, or its flows start.
    scheduled: Mutex<HashMap<Arc<str>, Counter>>,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Enqueue,
    Claim,
    Heartbeat,
    Release,
    Commit,
    Transact,
    Send,
    Cancel,
    Retry,
    Reoffer,
    Read,
    List,
    Counts,
    Import,
    Reset,
    Prune,
    Delete,
}

/// What the operations are called, in the order of [`Operation`].
const OPERATIONS: [&str; 17] = [
    "enqueue",
    "claim",
    "heartbeat",
    "release",
    "commit",
    "transact",
    "send",
    "cancel",
    "retry",
    "reoffer",
    "read",
    "list",
    "counts",
    "import",
    "reset",
    "prune",
    "delete",
];

impl Metered {
    async fn timed<T>(&self, operation: Operation, call: impl Future<Output = Result<T>>) -> Result<T> {
        let mut timing = Timing::begin(self, operation);
        let answer = call.await;
        timing.answered(answer.as_ref().err());
        answer
    }

    fn scheduled<'a>(&self, flow_types: impl Iterator<Item = &'a Arc<str>>) {
        let mut scheduled = self.scheduled.lock().unwrap_or_else(PoisonError::into_inner);
        for flow_type in flow_types {
            let new = || counter!(names::FLOWS_SCHEDULED, "flow_type" => Arc::clone(flow_type));
            match scheduled.get(flow_type) {
                Some(known) => known.increment(1),
                None => scheduled.entry(Arc::clone(flow_type)).or_insert_with(new).increment(1),
            }
        }
    }

    /// A cancellation was answered.
    async fn cancelled(&self, flow: &FlowId, answer: Cancelled) {
        // Whoever cancels a flow knows its id alone. One that cleans up first is counted when it ends.
        if answer == Cancelled::Now
            && let Ok(Some(record)) = self.log.flow(flow).await
            && record.info.state.is_final()
        {
            ended(&record.info.flow_type, FlowState::Cancelled);
        }
    }

    /// A commit was answered.
    fn committed(&self, children: &[Arc<str>], answer: &Result<Committed>) {
        if answer.is_ok() && !children.is_empty() {
            self.scheduled(children.iter());
        }
    }
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").finish_non_exhaustive()
    }
}

/// A call that is under way. Dropped without an answer, it counts as one that was given up.
struct Timing<'a> {
    log: &'a Metered,
    operation: Operation,
    began_at: Option<Instant>,
}

impl<'a> Timing<'a> {
    fn begin(log: &'a Metered, operation: Operation) -> Self {
        Self { log, operation, began_at: Some(Instant::now()) }
    }

    fn answered(&mut self, error: Option<&Error>) {
        if let Some(error) = error {
            self.error(kind(error));
        }
        self.stop();
    }

    fn stop(&mut self) -> bool {
        let Some(began_at) = self.began_at.take() else { return false };
        let operation = OPERATIONS[self.operation as usize];
        let timer = self.log.timers[self.operation as usize]
            .get_or_init(|| histogram!(names::LOG_DURATION, "operation" => operation));
        timer.record(began_at.elapsed().as_secs_f64());
        true
    }

    fn error(&self, kind: &'static str) {
        counter!(names::LOG_ERRORS, "operation" => OPERATIONS[self.operation as usize], "kind" => kind).increment(1);
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        if self.stop() {
            self.error("unanswered");
        }
    }
}

fn kind(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "not_found",
        ErrorKind::Conflict => "conflict",
        ErrorKind::LeaseLost => "lease_lost",
        ErrorKind::Finished => "finished",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::TooLarge => "too_large",
        ErrorKind::Invalid => "invalid",
        _ => "other",
    }
}

fn types_of(children: &[NewFlow]) -> Vec<Arc<str>> {
    children.iter().map(|child| Arc::clone(&child.flow_type)).collect()
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ExecutionLog for Metered {
    fn clock(&self) -> Arc<dyn Clock> {
        self.log.clock()
    }

    fn limits(&self) -> Limits {
        self.log.limits()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.log.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        let types = types_of(&flows);
        let answers = self.timed(Operation::Enqueue, self.log.enqueue(flows)).await?;
        let new = types.iter().zip(&answers).filter(|(_, answer)| **answer == Enqueued::Created);
        self.scheduled(new.map(|(flow_type, _)| flow_type));
        Ok(answers)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        self.timed(Operation::Claim, self.log.claim(request)).await
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        self.timed(Operation::Heartbeat, self.log.heartbeat(leases, lease)).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.timed(Operation::Release, self.log.release(lease)).await
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let children = types_of(&commit.children);
        let answer = self.timed(Operation::Commit, self.log.commit(commit)).await;
        self.committed(&children, &answer);
        answer
    }

    fn commit_now(&self, commit: Commit) -> CommitNow {
        let children = types_of(&commit.children);
        let mut timing = Timing::begin(self, Operation::Commit);
        match self.log.commit_now(commit) {
            CommitNow::Answered(answer) => {
                timing.answered(answer.as_ref().err());
                self.committed(&children, &answer);
                CommitNow::Answered(answer)
            }
            CommitNow::NotNow(commit) => {
                timing.began_at = None;
                CommitNow::NotNow(commit)
            }
        }
    }

    fn database(&self) -> Option<Database> {
        self.log.database()
    }

    async fn transact(&self, lease: &Lease, call: &str, work: Work<'_>) -> Result<WorkResult> {
        self.timed(Operation::Transact, self.log.transact(lease, call, work)).await
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        self.timed(Operation::Send, self.log.send(message)).await
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        let answer = self.timed(Operation::Cancel, self.log.cancel(flow, reason)).await?;
        self.cancelled(flow, answer).await;
        Ok(answer)
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        let answer = self.timed(Operation::Cancel, self.log.abandon(flow, reason)).await?;
        self.cancelled(flow, answer).await;
        Ok(answer)
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        self.timed(Operation::Retry, self.log.retry(flow)).await
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        self.timed(Operation::Reoffer, self.log.reoffer(types, build)).await
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        self.timed(Operation::Read, self.log.flow(flow)).await
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        self.timed(Operation::Read, self.log.history(flow, after, limit)).await
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        self.timed(Operation::Read, self.log.messages(flow, channels, after, limit)).await
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        self.timed(Operation::Read, self.log.items(flow, feed, after, limit)).await
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        self.timed(Operation::List, self.log.list(filter, after, limit)).await
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        self.timed(Operation::Counts, self.log.counts(filter)).await
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        self.timed(Operation::Read, self.log.extras(flow)).await
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        self.timed(Operation::Import, self.log.import(snapshot)).await
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        self.timed(Operation::Reset, self.log.reset(reset)).await
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        self.timed(Operation::Prune, self.log.prune(policy)).await
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        self.timed(Operation::Delete, self.log.delete(flow)).await
    }
}
