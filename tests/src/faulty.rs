//! A log between an engine and its log that breaks what is asked of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    ops::Range,
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
        CallKind, Cancelled, Channel, ClaimRequest, Claimed, ClaimedFlow, Clock, Commit, CommitNow, Committed, Count,
        Cursor, Database, Enqueued, ErrorKind, ExecutionLog, Extras, Feed, Filter, FlowPage, FlowRecord, Imported,
        Item, Lease, LeaseState, Limits, Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried,
        Sent, Snapshot, Topic, Watch, Work, WorkResult,
    },
};
use tokio::sync::watch;

use crate::{
    job::{self, Diary},
    soon,
};

/// How often everything else has a turn before a process counts as being at rest.
const TURNS: u32 = 1_000;

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
    /// The write is refused for good.
    Reject,
}

/// A log as one process sees it, with faults to order. Clones are the same process;
/// [`another`](Self::another) is another one on the same log.
#[derive(Clone)]
pub struct FaultyLog {
    inner: Arc<dyn ExecutionLog>,
    faults: Arc<Faults>,
    diary: Option<Arc<Diary>>,
}

struct Faults {
    /// Successful claims, commits, transactions and releases.
    writes: AtomicU64,
    plan: Mutex<BTreeMap<u64, Fault>>,
    outage: AtomicBool,
    /// Outages by the numbers of the calls.
    outages: Mutex<Vec<Range<u64>>>,
    crashed: watch::Sender<bool>,
    /// A claim has given something that the process does not know of.
    claim_lost: watch::Sender<bool>,
    /// Methods whose calls wait.
    held: watch::Sender<BTreeSet<&'static str>>,
    /// Methods whose calls fail.
    broken: Mutex<BTreeSet<&'static str>>,
    /// Methods whose calls are refused for good.
    rejected: Mutex<BTreeSet<&'static str>>,
    calls: Mutex<BTreeMap<&'static str, u64>>,
    traffic: watch::Sender<Traffic>,
}

/// What goes on between a process and its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Traffic {
    /// Calls that have been made, let through or answered.
    moves: u64,
    /// Calls that the log has yet to answer; those that are held are not among them.
    under_way: u64,
}

/// A call that is under way, until it is answered or dropped.
struct UnderWay<'a>(&'a watch::Sender<Traffic>);

impl<'a> UnderWay<'a> {
    fn new(traffic: &'a watch::Sender<Traffic>) -> Self {
        traffic.send_modify(|traffic| {
            traffic.moves += 1;
            traffic.under_way += 1;
        });
        Self(traffic)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|traffic| {
            traffic.moves += 1;
            traffic.under_way -= 1;
        });
    }
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
            outages: Mutex::default(),
            crashed: watch::Sender::new(false),
            claim_lost: watch::Sender::new(false),
            held: watch::Sender::default(),
            broken: Mutex::default(),
            rejected: Mutex::default(),
            calls: Mutex::default(),
            traffic: watch::Sender::default(),
        };
        Self { inner, faults: Arc::new(faults), diary: None }
    }

    /// Notes what the log has given and taken: each claim with its epoch, and each outcome of a step of a job when
    /// the log has answered that it is written.
    #[must_use]
    pub fn with_diary(mut self, diary: Arc<Diary>) -> Self {
        self.diary = Some(diary);
        self
    }

    fn note_claimed(&self, claimed: &Claimed) {
        let Some(diary) = &self.diary else { return };
        for ClaimedFlow { lease, .. } in &claimed.flows {
            diary.note(&lease.flow, "claim", &lease.epoch.to_string(), self.clock().now());
        }
    }

    /// Orders a fault for the `write`th write of an engine, counted from 1: its claims that gave something, its
    /// commits, its transactions and its releases.
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

    /// Lets every call fail that is made or answered in one of these outages: the number of its first call, counted
    /// from 1 over all methods, and of the first call after it.
    pub fn outages(&self, outages: impl IntoIterator<Item = Range<u64>>) {
        lock(&self.faults.outages).extend(outages);
    }

    /// Lets the calls of a method wait, from now on.
    pub fn hold(&self, method: &'static str) {
        self.faults.held.send_modify(|held| _ = held.insert(method));
    }

    /// Lets the calls of a method go on.
    pub fn free(&self, method: &'static str) {
        self.faults.held.send_modify(|held| _ = held.remove(method));
    }

    /// Lets the calls of a method fail for now, or no longer; or, by a channel's name, those that read its messages.
    pub fn break_down(&self, method: &'static str, broken: bool) {
        let mut methods = lock(&self.faults.broken);
        if broken {
            methods.insert(method)
        } else {
            methods.remove(method)
        };
    }

    /// Refuses the calls of a method for good, from now on.
    pub fn reject(&self, method: &'static str) {
        lock(&self.faults.rejected).insert(method);
    }

    /// Lets the process die now: nothing is answered any more. Waits until the log is through with what it had been asked,
    /// which would else be done later, perhaps at an instant at which the process was dead for long.
    pub async fn crash(&self) {
        self.faults.crashed.send_replace(true);
        self.crashed().await;
    }

    /// Waits until the process has died, and the log is through with what it had been asked.
    pub async fn crashed(&self) {
        let (mut crashed, mut traffic) = (self.faults.crashed.subscribe(), self.faults.traffic.subscribe());
        // The senders are part of `self`.
        let _ = crashed.wait_for(|crashed| *crashed).await;
        let _ = traffic.wait_for(|traffic| traffic.under_way == 0).await;
    }

    /// Waits until the answer of a claim is lost: what it gave stays leased until the lease ends. Each loss is told once.
    pub async fn claim_lost(&self) {
        // The sender is part of `self`.
        let _ = self.faults.claim_lost.subscribe().wait_for(|lost| *lost).await;
        self.faults.claim_lost.send_replace(false);
    }

    /// True once the process has died.
    pub fn has_crashed(&self) -> bool {
        *self.faults.crashed.borrow()
    }

    /// Waits until the process does nothing more by itself: no call is under way but those that are held, and though
    /// all others have their turn again and again, none is made. Whatever wakes a process wakes it before the call
    /// that gave the reason is answered, so it stays at rest until another one gives it a reason, or time passes.
    ///
    /// What goes on without the log is not seen, such as a pause before a call is repeated.
    ///
    /// # Panics
    ///
    /// When it never rests.
    pub async fn at_rest(&self) {
        let mut traffic = self.faults.traffic.subscribe();
        soon("the process to be at rest", async {
            loop {
                // The sender is part of `self`.
                let before = traffic.wait_for(|traffic| traffic.under_way == 0).await.map(|traffic| *traffic);
                let mut turns = 0;
                while turns < TURNS && before.as_ref().is_ok_and(|before| *traffic.borrow() == *before) {
                    tokio::task::yield_now().await;
                    turns += 1;
                }
                if turns == TURNS {
                    return;
                }
            }
        })
        .await;
    }

    /// Lets so much of tokio's time pass at once, and then the process come to rest. Whatever the process waits for
    /// with the machine's clock instead does not come earlier.
    ///
    /// # Panics
    ///
    /// In a runtime with several threads, and when the process never rests.
    pub async fn pass(&self, time: Duration) {
        self.at_rest().await;
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
        self.at_rest().await;
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
        self.faults.traffic.send_modify(|traffic| traffic.moves += 1);
        self.alive().await?;
        let mut held = self.faults.held.subscribe();
        // The sender is part of `self`.
        let _ = held.wait_for(|held| !held.contains(method)).await;
        if lock(&self.faults.broken).contains(method) {
            return Err(refused());
        }
        if lock(&self.faults.rejected).contains(method) {
            return Err(rejected());
        }
        let answer = {
            let _under_way = UnderWay::new(&self.faults.traffic);
            call.await
        };
        self.alive().await?;
        answer
    }

    /// Never returns in a dead process.
    async fn alive(&self) -> Result<()> {
        if self.has_crashed() {
            std::future::pending::<()>().await;
        }
        let calls = self.calls_in_all();
        let planned = lock(&self.faults.outages).iter().any(|outage| outage.contains(&calls));
        if planned || self.faults.outage.load(Ordering::Acquire) {
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
            Some(fault @ Fault::CrashBefore) => self.lose(fault),
            Some(Fault::Refuse) => Err(refused()),
            Some(Fault::Reject) => Err(rejected()),
            Some(fault) => {
                call.await?;
                self.lose(fault)
            }
        }
    }

    /// Loses the answer of a call; a dead process is not even told that.
    fn lose<T>(&self, fault: Fault) -> Result<T> {
        if fault != Fault::LoseAnswer {
            self.faults.crashed.send_replace(true);
        }
        Err(refused())
    }
}

/// The outcomes of steps: the number and the step of each.
fn outcomes(commit: &Commit) -> Vec<String> {
    let outcomes = commit.records.iter().filter(|record| record.kind == CallKind::Step && record.phase.is_outcome());
    outcomes.map(|record| format!("{}:{}", record.seq, job::step_of(&record.payload))).collect()
}

fn refused() -> StorageError {
    StorageError::new(ErrorKind::Unavailable, "the log does not answer, as ordered")
}

fn rejected() -> StorageError {
    StorageError::new(ErrorKind::Invalid, "it cannot be, as ordered")
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
        self.note_claimed(&claimed);
        if claimed.flows.is_empty() {
            return Ok(claimed);
        }
        // A claim counts only if it gave something, which is known only now.
        match self.next() {
            None | Some(Fault::Refuse | Fault::Reject) => Ok(claimed),
            Some(fault) => {
                let lost = self.lose(fault);
                self.alive().await?;
                self.faults.claim_lost.send_replace(true);
                lost
            }
        }
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        self.ask("heartbeat", self.inner.heartbeat(leases, lease)).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.ask("release", self.write(self.inner.release(lease))).await
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let written = self.diary.as_ref().map(|diary| (Arc::clone(diary), commit.lease.clone(), outcomes(&commit)));
        let committed = self.ask("commit", self.write(self.inner.commit(commit))).await?;
        if let Some((diary, lease, outcomes)) = written {
            for what in outcomes {
                diary.note(&lease.flow, "written", &what, self.clock().now());
            }
        }
        Ok(committed)
    }

    /// What is answered at once could not be broken.
    fn commit_now(&self, commit: Commit) -> CommitNow {
        CommitNow::NotNow(commit)
    }

    fn database(&self) -> Option<Database> {
        self.inner.database()
    }

    async fn transact(&self, lease: &Lease, call: &str, work: Work<'_>) -> Result<WorkResult> {
        self.ask("transact", self.write(self.inner.transact(lease, call, work))).await
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        self.ask("send", self.inner.send(message)).await
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.ask("cancel", self.inner.cancel(flow, reason)).await
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.ask("abandon", self.inner.abandon(flow, reason)).await
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
        let is_broken = channels.iter().any(|channel| lock(&self.faults.broken).contains(&*channel.to_string()));
        let answer = self.ask("messages", self.inner.messages(flow, channels, after, limit)).await;
        if is_broken { Err(refused()) } else { answer }
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        self.ask("items", self.inner.items(flow, feed, after, limit)).await
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        self.ask("list", self.inner.list(filter, after, limit)).await
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        self.ask("counts", self.inner.counts(filter)).await
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        self.ask("extras", self.inner.extras(flow)).await
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        self.ask("import", self.inner.import(snapshot)).await
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        self.ask("reset", self.inner.reset(reset)).await
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        self.ask("prune", self.inner.prune(policy)).await
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        self.ask("delete", self.inner.delete(flow)).await
    }
}
