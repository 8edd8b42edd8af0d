//! Processes that die at a write.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use ergon_storage::{
    Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, Committed, Count, Cursor, Database, Enqueued,
    ExecutionLog, Extras, Feed, Filter, FlowId, FlowPage, FlowRecord, Imported, Item, Lease, LeaseState, Limits,
    Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent, Snapshot, Topic, Watch, Work,
    WorkResult,
};
use tokio::sync::watch;

use super::{Setup, TestRuntime, observer::Observer};

/// Runs a scenario once undisturbed, and then once for every point at which the process that runs the flows could die:
/// before and after each of its writes to the log, with another process going on. Each run begins with a setup of its
/// own and an empty log, and must come to the same result.
///
/// The scenario itself does not die. Its result must not depend on what differs from run to run, such as the ids of
/// flows that were given none.
///
/// # Examples
///
/// See the [module](crate::testing).
///
/// # Panics
///
/// When a run comes to another result, or a step's body runs again though its outcome was durable; says after which
/// crash. And as [`Setup::start`].
pub async fn crash_everywhere<T: PartialEq + fmt::Debug>(
    setup: impl Fn() -> Setup,
    scenario: impl AsyncFn(&TestRuntime) -> T,
) -> CrashReport<T> {
    let runtime = setup().start().await;
    let result = scenario(&runtime).await;
    drop(runtime);
    let mut report = CrashReport { result, crashes: 0, body_runs_max: BTreeMap::new() };
    for write in 1.. {
        for moment in [Moment::Before, Moment::After] {
            let crash = Crash { write, moment };
            let _told = Told(crash);
            let runtime = TestRuntime::start(setup(), Some(crash)).await;
            let result = scenario(&runtime).await;
            if !runtime.process().has_crashed() {
                return report;
            }
            report.crashes += 1;
            assert_eq!(
                result, report.result,
                "a crash {crash} changes nothing, the undisturbed result is on the right"
            );
            if let Some(again) = runtime.observer().again() {
                panic!("a crash {crash} made {again} run, whose outcome was durable");
            }
            report.count(&runtime);
        }
    }
    report
}

/// What [`crash_everywhere`] has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CrashReport<T> {
    /// What the scenario came to, each time.
    pub result: T,
    /// How many crashes there were, one in each run but the first.
    pub crashes: u32,
    /// For each step how often the body of one attempt of one call ran at most, in any run: 2 when a crash came
    /// after it had begun and before its outcome was durable.
    pub body_runs_max: BTreeMap<String, u32>,
}

impl<T> CrashReport<T> {
    fn count(&mut self, runtime: &TestRuntime) {
        let mut runs: HashMap<_, u32> = HashMap::new();
        for run in runtime.step_runs() {
            *runs.entry(run).or_default() += 1;
        }
        for (run, times) in runs {
            let most = self.body_runs_max.entry(run.step.to_owned()).or_default();
            *most = times.max(*most);
        }
    }
}

/// When a process dies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crash {
    /// The number of the write, from 1.
    write: u32,
    moment: Moment,
}

#[derive(Debug, Clone, Copy)]
enum Moment {
    /// With the write on its lips.
    Before,
    /// Before it hears that it was applied.
    After,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = match self.moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        write!(f, "{moment} write {}", self.write)
    }
}

/// Says where it was when a panic passes by.
struct Told(Crash);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was in the run with a crash {}", self.0);
        }
    }
}

/// The log as one process sees it, which dies when it is told to: from then on nothing is answered.
#[derive(Debug, Clone)]
pub(super) struct CrashingLog {
    inner: Arc<Process>,
}

struct Process {
    log: Arc<dyn ExecutionLog>,
    observer: Arc<Observer>,
    crash: Option<Crash>,
    /// The claims that gave something, the commits and the releases so far.
    writes: AtomicU32,
    crashed: watch::Sender<bool>,
    leases: Mutex<Vec<Lease>>,
}

impl CrashingLog {
    pub(super) fn new(log: Arc<dyn ExecutionLog>, observer: Arc<Observer>, crash: Option<Crash>) -> Self {
        let crashed = watch::Sender::new(false);
        let (writes, leases) = (AtomicU32::new(0), Mutex::default());
        Self { inner: Arc::new(Process { log, observer, crash, writes, crashed, leases }) }
    }

    /// Waits until the process has died.
    pub(super) async fn crashed(&self) {
        let mut crashed = self.inner.crashed.subscribe();
        // The sender is part of `self`.
        let _ = crashed.wait_for(|crashed| *crashed).await;
    }

    pub(super) fn has_crashed(&self) -> bool {
        *self.inner.crashed.borrow()
    }

    /// Another process on the same log; the leases of the dead one have ended.
    pub(super) async fn succeed(&self) -> Self {
        let leases = std::mem::take(&mut *self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner));
        for lease in leases {
            // Those that it gave up before are refused.
            let _ = self.inner.log.release(&lease).await;
        }
        Self::new(Arc::clone(&self.inner.log), Arc::clone(&self.inner.observer), None)
    }

    /// Returns in a living process only.
    async fn alive(&self) {
        if self.has_crashed() {
            std::future::pending::<()>().await;
        }
    }

    /// What is to happen to the next write.
    fn next(&self) -> Option<Moment> {
        let write = self.inner.writes.fetch_add(1, Ordering::AcqRel) + 1;
        self.inner.crash.filter(|crash| crash.write == write).map(|crash| crash.moment)
    }

    async fn die<T>(&self) -> T {
        self.inner.crashed.send_replace(true);
        std::future::pending().await
    }

    async fn write<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.alive().await;
        match self.next() {
            Some(Moment::Before) => self.die().await,
            Some(Moment::After) => {
                call.await?;
                self.die().await
            }
            None => {
                let answer = call.await;
                self.alive().await;
                answer
            }
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("crash", &self.crash).finish_non_exhaustive()
    }
}

#[async_trait]
impl ExecutionLog for CrashingLog {
    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.log.clock()
    }

    fn limits(&self) -> Limits {
        self.inner.log.limits()
    }

    fn watch(&self, topic: Topic) -> Watch {
        self.inner.log.watch(topic)
    }

    async fn enqueue(&self, flows: Vec<NewFlow>) -> Result<Vec<Enqueued>> {
        self.inner.log.enqueue(flows).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        self.alive().await;
        let claimed = self.inner.log.claim(request).await?;
        if claimed.flows.is_empty() {
            return Ok(claimed);
        }
        for flow in claimed.flows.iter().filter(|flow| flow.lease.epoch == 1) {
            self.inner.observer.is_new(&flow.info.id);
        }
        let leases = claimed.flows.iter().map(|flow| flow.lease.clone());
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner).extend(leases);
        // What a claim gives is known only when it is too late for a crash before it, which would change nothing.
        match self.next() {
            Some(_) => self.die().await,
            None => Ok(claimed),
        }
    }

    async fn heartbeat(&self, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        self.alive().await;
        self.inner.log.heartbeat(leases, lease).await
    }

    async fn release(&self, lease: &Lease) -> Result<()> {
        self.write(self.inner.log.release(lease)).await
    }

    async fn commit(&self, commit: Commit) -> Result<Committed> {
        self.write(async {
            let copy = commit.clone();
            let committed = self.inner.log.commit(commit).await?;
            self.inner.observer.applied(&copy);
            Ok(committed)
        })
        .await
    }

    fn database(&self) -> Option<Database> {
        self.inner.log.database()
    }

    async fn transact(&self, lease: &Lease, call: &str, work: Work<'_>) -> Result<WorkResult> {
        self.write(self.inner.log.transact(lease, call, work)).await
    }

    async fn send(&self, message: NewMessage) -> Result<Sent> {
        // By a flow: what the scenario sends does not come this way.
        self.write(self.inner.log.send(message)).await
    }

    async fn cancel(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.inner.log.cancel(flow, reason).await
    }

    async fn abandon(&self, flow: &FlowId, reason: &str) -> Result<Cancelled> {
        self.inner.log.abandon(flow, reason).await
    }

    async fn retry(&self, flow: &FlowId) -> Result<Retried> {
        self.inner.log.retry(flow).await
    }

    async fn reoffer(&self, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
        self.inner.log.reoffer(types, build).await
    }

    async fn flow(&self, flow: &FlowId) -> Result<Option<FlowRecord>> {
        self.inner.log.flow(flow).await
    }

    async fn history(&self, flow: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        self.inner.log.history(flow, after, limit).await
    }

    async fn messages(&self, flow: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        self.inner.log.messages(flow, channels, after, limit).await
    }

    async fn items(&self, flow: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        self.inner.log.items(flow, feed, after, limit).await
    }

    async fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
        self.inner.log.list(filter, after, limit).await
    }

    async fn counts(&self, filter: &Filter) -> Result<Vec<Count>> {
        self.inner.log.counts(filter).await
    }

    async fn extras(&self, flow: &FlowId) -> Result<Option<Extras>> {
        self.inner.log.extras(flow).await
    }

    async fn import(&self, snapshot: Snapshot) -> Result<Imported> {
        self.inner.log.import(snapshot).await
    }

    async fn reset(&self, reset: Reset) -> Result<()> {
        self.inner.log.reset(reset).await
    }

    async fn prune(&self, policy: &PrunePolicy) -> Result<u64> {
        self.inner.log.prune(policy).await
    }

    async fn delete(&self, flow: &FlowId) -> Result<bool> {
        self.inner.log.delete(flow).await
    }
}
