//! The log that lives in this process.

mod lanes;
mod mailbox;
mod outside;
mod places;
mod queue;
mod read;
mod run;
mod snapshot;
mod state;
mod upkeep;

use std::{
    fmt, mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use self::state::{Ending, Hints, State};
use crate::{
    Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, CommitNow, Committed, Count, Cursor, Enqueued,
    ExecutionLog, Extras, Feed, Filter, FlowId, FlowPage, FlowRecord, Imported, Item, Lease, LeaseState, Limits,
    Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent, Snapshot, SystemClock, Timestamp,
    Topic, Watch, WatchHub,
};

/// An [`ExecutionLog`] in memory: for tests, and for flows that need not outlive their process.
///
/// Clones share the same log, which is gone with the last of them. It is one lock around plain maps, and the
/// model that the other logs are compared with.
///
/// # Examples
///
/// ```
/// use ergon_storage::{Enqueued, ExecutionLog, FlowId, InMemoryExecutionLog, NewFlow};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let order = NewFlow::new(FlowId::new("order-7")?, "Order", 1, &b"{}"[..]);
/// assert_eq!(log.enqueue(vec![order.clone()]).await?, [Enqueued::Created]);
/// // An id is taken only once.
/// assert_eq!(log.clone().enqueue(vec![order]).await?, [Enqueued::Existing { same: true }]);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct InMemoryExecutionLog {
    clock: Arc<dyn Clock>,
    limits: Limits,
    hub: WatchHub,
    state: Arc<Mutex<State>>,
}

impl InMemoryExecutionLog {
    /// An empty log that goes by the machine's clock.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            limits: Limits::default(),
            hub: WatchHub::new(),
            state: Arc::new(Mutex::new(State::default())),
        }
    }

    /// The same log with another clock. Set it before the log is cloned.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The same log with other limits. Set them before the log is cloned.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Reads under the lock.
    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes one transition under the lock, at the present instant.
    fn write<T>(&self, transition: impl FnOnce(&mut State, Timestamp) -> T) -> T {
        self.transition(|state, clock| transition(state, clock.now()))
    }

    /// Makes one transition under the lock, and gives its hints once the lock is free. The clock is read under the
    /// lock, so that instants rise in the order of the transitions.
    fn transition<T>(&self, transition: impl FnOnce(&mut State, &dyn Clock) -> T) -> T {
        let (answer, hints) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = transition(&mut state, &*self.clock);
            (answer, mem::take(&mut state.hints))
        };
        let Hints { queue, flows } = hints;
        if queue {
            self.hub.notify_queue();
        }
        for flow in &flows {
            self.hub.notify_flow(flow);
        }
        answer
    }

    fn apply(&self, commit: Commit) -> Result<Committed> {
        self.limits.check_commit(&commit)?;
        self.transition(|state, clock| state.commit(commit, clock, &self.limits))
    }
}

impl Default for InMemoryExecutionLog {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InMemoryExecutionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flows = self.read(State::len);
        f.debug_struct("InMemoryExecutionLog").field("flows", &flows).finish_non_exhaustive()
    }
}

#[async_trait]
impl ExecutionLog for InMemoryExecutionLog {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.hub.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        self.write(|state, now| state.enqueue(flows, now, &self.limits))
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        Ok(self.write(|state, now| state.claim(&request, now)))
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        Ok(self.write(|state, now| state.heartbeat(leases, now.saturating_add(lease))))
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.write(|state, now| state.release(lease, now))
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        self.apply(commit)
    }

    fn commit_now(&self, commit: Commit) -> CommitNow {
        CommitNow::Answered(self.apply(commit))
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        self.limits.check_message(&message)?;
        self.write(|state, now| state.send(message, now))
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.limits.check_reason(flow, reason)?;
        self.write(|state, now| state.cancel(flow, reason, Ending::InOrder, now))
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.limits.check_reason(flow, reason)?;
        self.write(|state, now| state.cancel(flow, reason, Ending::AtOnce, now))
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        self.write(|state, now| state.retry(flow, now))
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        Ok(self.write(|state, now| state.reoffer(types, build, now)))
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        Ok(self.read(|state| state.flow(flow)))
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        self.read(|state| state.history(flow, after, limit))
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        self.read(|state| state.messages(flow, channels, after, limit))
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        self.read(|state| state.items(flow, feed, after, limit))
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        Ok(self.read(|state| state.list(filter, after, limit)))
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        Ok(self.read(|state| state.counts(filter)))
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        Ok(self.read(|state| state.extras(flow)))
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        self.write(|state, now| Ok(state.import(snapshot.admit(now, &self.limits)?)))
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        reset.check(&self.limits)?;
        self.write(|state, now| state.reset(reset, now))
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        Ok(self.write(|state, now| state.prune(policy, now)))
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        self.write(|state, _| state.delete(flow))
    }
}
