//! A log between an engine and its log that breaks what is asked of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use ergon::{
    FlowId, StorageError,
    storage::{
        Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, Committed, Count, Cursor, Enqueued, ErrorKind,
        ExecutionLog, Filter, FlowPage, FlowRecord, Lease, LeaseState, Limits, Message, NewFlow, NewMessage,
        PrunePolicy, Record, Result, Retried, Sent, Topic, Watch,
    },
};
use tokio::sync::watch;

/// What happens to a write of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies with the write on its lips: it is not applied, and nothing is answered from then on.
    CrashBefore,
    /// The write is applied; the process dies before it hears of it.
    CrashAfter,
    /// The write is applied, the answer is lost.
    LoseAnswer,
    /// The write is refused for now.
    Refuse,
}

/// A log as one process sees it, with faults to order. Clones are the same process;
/// [`another`](Self::another) is another one on the same log.
#[derive(Clone)]
pub struct FaultyLog {
    inner: Arc<dyn ExecutionLog>,
    faults: Arc<Faults>,
}

struct Faults {
    /// Successful claims, commits and releases.
    writes: AtomicU64,
    plan: Mutex<BTreeMap<u64, Fault>>,
    outage: AtomicBool,
    crashed: watch::Sender<bool>,
    /// Methods whose calls wait.
    held: watch::Sender<BTreeSet<&'static str>>,
    calls: Mutex<BTreeMap<&'static str, u64>>,
}

impl FaultyLog {
    /// A process on this log.
    pub fn new(inner: impl ExecutionLog) -> Self {
        Self::over(Arc::new(inner))
    }

    /// Another process on the same log, without faults.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::over(Arc::clone(&self.inner))
    }

    fn over(inner: Arc<dyn ExecutionLog>) -> Self {
        let faults = Faults {
            writes: AtomicU64::new(0),
            plan: Mutex::default(),
            outage: AtomicBool::new(false),
            crashed: watch::Sender::new(false),
            held: watch::Sender::default(),
            calls: Mutex::default(),
        };
        Self { inner, faults: Arc::new(faults) }
    }

    /// Orders a fault for the `write`th write of an engine, counted from 1: its claims that gave something, its
    /// commits and its releases.
    pub fn order(&self, write: u64, fault: Fault) {
        lock(&self.faults.plan).insert(write, fault);
    }

    /// How many such writes there were.
    pub fn writes(&self) -> u64 {
        self.faults.writes.load(Ordering::Acquire)
    }

    /// Lets every call fail for a while, or no longer.
    pub fn outage(&self, outage: bool) {
        self.faults.outage.store(outage, Ordering::Release);
    }

    /// Lets the calls of a method wait, from now on.
    pub fn hold(&self, method: &'static str) {
        self.faults.held.send_modify(|held| _ = held.insert(method));
    }

    /// Lets the calls of a method go on.
    pub fn free(&self, method: &'static str) {
        self.faults.held.send_modify(|held| _ = held.remove(method));
    }

    /// Lets the process die now: nothing is answered any more.
    pub fn crash(&self) {
        self.faults.crashed.send_replace(true);
    }

    /// Waits until the process has died.
    pub async fn crashed(&self) {
        let mut crashed = self.faults.crashed.subscribe();
        // The sender is part of `self`.
        let _ = crashed.wait_for(|crashed| *crashed).await;
    }

    /// How often each method was called.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.faults.calls).clone()
    }

    /// How often any method was called that asks or changes something.
    pub fn calls_in_all(&self) -> u64 {
        lock(&self.faults.calls).values().sum()
    }

    async fn ask<T>(&self, method: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        *lock(&self.faults.calls).entry(method).or_default() += 1;
        self.alive().await?;
        let mut held = self.faults.held.subscribe();
        // The sender is part of `self`.
        let _ = held.wait_for(|held| !held.contains(method)).await;
        let answer = call.await;
        self.alive().await?;
        answer
    }

    /// Never returns in a dead process.
    async fn alive(&self) -> Result<()> {
        if *self.faults.crashed.borrow() {
            std::future::pending::<()>().await;
        }
        if self.faults.outage.load(Ordering::Acquire) {
            return Err(StorageError::new(ErrorKind::Unavailable, "the log is out of order"));
        }
        Ok(())
    }

    /// The fault for the next write.
    fn next(&self) -> Option<Fault> {
        let write = self.faults.writes.fetch_add(1, Ordering::AcqRel) + 1;
        lock(&self.faults.plan).remove(&write)
    }

    async fn write<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        match self.next() {
            None => call.await,
            Some(Fault::CrashBefore) => {
                self.crash();
                std::future::pending().await
            }
            Some(Fault::Refuse) => Err(refused()),
            Some(fault) => {
                call.await?;
                self.lose(fault).await
            }
        }
    }

    async fn lose<T>(&self, fault: Fault) -> Result<T> {
        if fault == Fault::LoseAnswer {
            return Err(refused());
        }
        self.crash();
        std::future::pending().await
    }
}

fn refused() -> StorageError {
    StorageError::new(ErrorKind::Unavailable, "the log does not answer, as ordered")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for FaultyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyLog").field("writes", &self.writes()).field("calls", &self.calls()).finish()
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl ExecutionLog for FaultyLog {
    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.inner.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        self.ask("enqueue", self.inner.enqueue(flows)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        let claimed = self.ask("claim", self.inner.claim(request)).await?;
        if claimed.flows.is_empty() {
            return Ok(claimed);
        }
        // A claim counts only if it gave something, which is known only now.
        match self.next() {
            None | Some(Fault::Refuse) => Ok(claimed),
            Some(fault) => self.lose(fault).await,
        }
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        self.ask("heartbeat", self.inner.heartbeat(leases, lease)).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.ask("release", self.write(self.inner.release(lease))).await
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        self.ask("commit", self.write(self.inner.commit(commit))).await
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        self.ask("send", self.inner.send(message)).await
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.ask("cancel", self.inner.cancel(flow, reason)).await
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        self.ask("retry", self.inner.retry(flow)).await
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        self.ask("reoffer", self.inner.reoffer(types, build)).await
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        self.ask("flow", self.inner.flow(flow)).await
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        self.ask("history", self.inner.history(flow, after, limit)).await
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        self.ask("messages", self.inner.messages(flow, channels, after, limit)).await
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        self.ask("list", self.inner.list(filter, after, limit)).await
    }

    async fn counts(&self) -> Result<Vec<Count>> {
        self.ask("counts", self.inner.counts()).await
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        self.ask("prune", self.inner.prune(policy)).await
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        self.ask("delete", self.inner.delete(flow)).await
    }
}
