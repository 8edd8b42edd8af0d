//! A log, a worker and a clock for one test.

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use ergon_storage::{
    Clock, CodecExecutionLog, ExecutionLog, Filter, FlowId, FlowInfo, FlowState, InMemoryExecutionLog, Timestamp,
};
use futures::future::{Either, select};
use tokio::{task::JoinHandle, time::Instant};

use super::{
    Setup, StepRun,
    clock::TestClock,
    crash::{Crash, CrashingLog},
    observer::Observer,
};
use crate::{Flow, FlowError, FlowHandle, Scheduler, Worker};

/// How long nothing may happen before a test that waits is told that nothing will.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where code runs, which may only be slow.
const PATIENCE_WITH_CODE: Duration = Duration::from_secs(30);
/// After this long it is looked at at longer intervals.
const SOON: Duration = Duration::from_millis(100);

/// An empty log in memory with a worker on it, and a clock that a test moves. Made by [`Setup::start`].
///
/// The clock stands at the start of the year 2025. It moves in [`result`](Self::result), [`run`](Self::run) and
/// [`advance`](Self::advance), and nowhere else: from one instant for which a flow waits to the next, and only while
/// no flow has anything to do. A body that has neither ended nor called anything for five real seconds is taken to wait
/// for something: the time goes on without it, to its time limit for instance. Dropping the runtime stops the worker.
#[must_use = "the worker stops when the runtime is dropped"]
pub struct TestRuntime {
    scheduler: Scheduler,
    log: Arc<dyn ExecutionLog>,
    clock: TestClock,
    observer: Arc<Observer>,
    process: CrashingLog,
    setup: Setup,
    supervisor: JoinHandle<()>,
}

impl TestRuntime {
    pub(super) async fn start(setup: Setup, crash: Option<Crash>) -> Self {
        let clock = TestClock::default();
        let log = InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone()));
        let log: Arc<dyn ExecutionLog> = match &setup.codec {
            Some(codec) => Arc::new(CodecExecutionLog::new(log, Arc::clone(codec))),
            None => Arc::new(log),
        };
        let observer = setup.observer();
        let process = CrashingLog::new(Arc::clone(&log), Arc::clone(&observer), crash);
        let worker = worker(&setup, &process, &observer);
        let worker = worker.start().await.unwrap_or_else(|error| panic!("the test runtime cannot start: {error}"));
        let supervisor = tokio::spawn({
            let (setup, process, observer) = (setup.clone(), process.clone(), Arc::clone(&observer));
            async move {
                process.crashed().await;
                drop(worker);
                let next = process.succeed().await;
                // There is no other crash, so this one stays.
                let _worker = self::worker(&setup, &next, &observer).start().await;
                std::future::pending::<()>().await;
            }
        });
        let scheduler = Scheduler::new(Arc::clone(&log));
        Self { scheduler, log, clock, observer, process, setup, supervisor }
    }

    /// Puts flows on the queue.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The log, to look into it or to send what a test sends.
    pub fn log(&self) -> &Arc<dyn ExecutionLog> {
        &self.log
    }

    /// The present time of the log.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Schedules a flow and waits for its end, as [`result`](Self::result).
    ///
    /// # Errors
    ///
    /// As [`FlowHandle::result`].
    ///
    /// # Panics
    ///
    /// As [`result`](Self::result), and when the flow cannot be scheduled.
    pub async fn run<F: Flow>(&self, flow: F) -> Result<F::Output, FlowError<F::Error>> {
        let handle = self.scheduler.schedule(flow).await;
        let handle = handle.unwrap_or_else(|error| panic!("the flow cannot be scheduled: {error}"));
        self.result(&handle).await
    }

    /// Waits for the end of a flow. Whenever no flow has anything to do, the time skips to the next instant for
    /// which one waits.
    ///
    /// # Errors
    ///
    /// As [`FlowHandle::result`].
    ///
    /// # Panics
    ///
    /// When the flow waits for something that never comes, or a body hangs that nothing ends, which is said after some
    /// seconds.
    ///
    /// # Cancel safety
    ///
    /// As [`FlowHandle::result`]; the time stays where it has come to.
    pub async fn result<T, E>(&self, flow: &FlowHandle<T, E>) -> Result<T, FlowError<E>>
    where
        T: serde::de::DeserializeOwned,
        E: serde::de::DeserializeOwned,
    {
        self.skip_until(flow.id(), flow.result()).await
    }

    /// Waits until no flow has anything to do at the present time: each has ended, waits for a later instant, a
    /// message or a child, or hangs. The time stands still.
    pub async fn idle(&self) {
        self.settled().await;
    }

    /// Moves the time forward by this much, not faster than the flows can follow: it halts at each instant for
    /// which one waits until it has done what there was to do.
    pub async fn advance(&self, by: Duration) {
        let until = self.clock.now().saturating_add(by);
        while let Some(due_at) = self.settled().await.next.filter(|due_at| *due_at <= until) {
            self.clock.move_to(due_at);
        }
        self.clock.move_to(until);
        self.settled().await;
    }

    /// The bodies of steps that ran so far, or their doubles, in the order in which they began.
    pub fn step_runs(&self) -> Vec<StepRun> {
        self.observer.runs()
    }

    /// How often the bodies of the steps of this name ran so far, or their doubles.
    pub fn runs(&self, step: &str) -> usize {
        self.observer.runs().iter().filter(|run| run.step == step).count()
    }

    pub(super) fn observer(&self) -> &Observer {
        &self.observer
    }

    pub(super) fn process(&self) -> &CrashingLog {
        &self.process
    }

    async fn skip_until<T>(&self, flow: &FlowId, end: impl Future<Output = T>) -> T {
        match select(pin!(end), pin!(self.skip(flow))).await {
            Either::Left((end, _)) => end,
            Either::Right((never, _)) => match never {},
        }
    }

    /// Lets the time skip for as long as the flow has not ended.
    async fn skip(&self, flow: &FlowId) -> std::convert::Infallible {
        loop {
            let Rest { next, running } = self.settled().await;
            let Some(info) = self.log.flow(flow).await.ok().flatten().map(|flow| flow.info) else {
                return std::future::pending().await;
            };
            if info.state.is_final() || info.state == FlowState::Stalled {
                return std::future::pending().await;
            }
            match next {
                Some(due_at) => self.clock.move_to(due_at),
                None if running.is_empty() => self.expect_something(&info).await,
                None => self.expect_an_end(&info, &running).await,
            }
        }
    }

    /// Nothing will happen by itself; whoever tests may be about to do something.
    async fn expect_something(&self, info: &FlowInfo) {
        let waits = || async {
            loop {
                let now = self.log.flow(&info.id).await.ok().flatten().map(|flow| flow.info);
                if now.is_none_or(|now| now != *info) || self.look().await != Look::Settled(None) {
                    return;
                }
                pause().await;
            }
        };
        if tokio::time::timeout(PATIENCE, waits()).await.is_err() {
            let channels: Vec<_> = info.wake.channels.iter().map(ToString::to_string).collect();
            let what = if channels.is_empty() { "nothing".to_owned() } else { channels.join(", ") };
            let FlowInfo { id, state, queue, flow_type, .. } = info;
            panic!(
                "flow {id:?} never ends: it is {state}, waits for {what}, and no flow has anything to do; send what it \
                 waits for, or register its type {flow_type:?} and its queue {queue:?}"
            );
        }
    }

    /// Code runs that waits for no instant; it may still end by itself.
    async fn expect_an_end(&self, info: &FlowInfo, running: &[Running]) {
        let ends = async {
            while matches!(self.look().await, Look::Busy(now) if now == running) {
                tokio::time::sleep(SOON / 10).await;
            }
        };
        if tokio::time::timeout(PATIENCE_WITH_CODE, ends).await.is_err() {
            let hangs: Vec<_> = running.iter().map(|running| self.describe(&running.flow)).collect();
            panic!(
                "flow {:?} never ends: {}; give the step a time limit, or let what it waits for come",
                info.id,
                hangs.join(", and ")
            );
        }
    }

    /// What a flow that runs is at.
    fn describe(&self, flow: &FlowId) -> String {
        match self.observer.runs().iter().rev().find(|run| run.flow == *flow) {
            Some(run) => format!("{run} has neither ended nor called anything"),
            None => format!("the code of flow {flow:?} runs, and has not begun a step"),
        }
    }

    /// Waits until no flow has anything to do at the present time, or those that run hang.
    async fn settled(&self) -> Rest {
        let (mut last, mut since) = (Vec::new(), Instant::now());
        loop {
            match self.look().await {
                Look::Settled(next) => return Rest { next, running: Vec::new() },
                Look::Busy(running) if running.is_empty() || running != last => {
                    (last, since) = (running, Instant::now());
                }
                Look::Busy(running) if since.elapsed() >= PATIENCE => {
                    return Rest { next: self.clock.next_wait(), running };
                }
                Look::Busy(_) if since.elapsed() >= SOON => tokio::time::sleep(SOON / 10).await,
                Look::Busy(_) => {}
            }
            pause().await;
        }
    }

    async fn look(&self) -> Look {
        let now = self.clock.now();
        let live = [FlowState::Scheduled, FlowState::Running, FlowState::Suspended];
        let filter = live.into_iter().fold(Filter::all(), Filter::with_state);
        let (mut cursor, mut next, mut running) = (None, None, Vec::new());
        let bodies = self.observer.runs_begun();
        loop {
            let Ok(page) = self.log.list(&filter, cursor, 1_000).await else { return Look::Busy(Vec::new()) };
            for info in page.flows.iter().filter(|info| self.runs_flow(info)) {
                if info.state == FlowState::Running {
                    let FlowInfo { id, epoch, records, .. } = info;
                    running.push(Running { flow: id.clone(), epoch: *epoch, records: *records, bodies });
                } else if info.due_at.is_some_and(|due_at| due_at <= now) {
                    // The worker is about to claim it.
                    return Look::Busy(Vec::new());
                }
                next = next.into_iter().chain(info.due_at).min();
            }
            match page.next {
                Some(more) => cursor = Some(more),
                None if running.is_empty() => return Look::Settled(next),
                None => return Look::Busy(running),
            }
        }
    }

    /// True for a flow that the worker has the code and the queue for.
    fn runs_flow(&self, info: &FlowInfo) -> bool {
        let Setup { flows, queues, .. } = &self.setup;
        flows.iter().any(|def| *def.name == *info.flow_type && def.version == info.version)
            && queues.contains(&info.queue)
    }
}

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// These run; empty when it is soon to be known what does.
    Busy(Vec<Running>),
    /// Nothing before this instant, if ever.
    Settled(Option<Timestamp>),
}

/// A flow that runs, and how far it has come.
#[derive(Debug, PartialEq, Eq)]
struct Running {
    flow: FlowId,
    epoch: u64,
    records: u32,
    /// How many bodies have begun, in any flow.
    bodies: usize,
}

/// When nothing more happens by itself.
struct Rest {
    /// When something will, if ever.
    next: Option<Timestamp>,
    /// The flows that run all the same: their code waits for something that the runtime does not know.
    running: Vec<Running>,
}

/// Lets others have a turn.
async fn pause() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_micros(100)).await;
}

fn worker(setup: &Setup, process: &CrashingLog, observer: &Arc<Observer>) -> Worker {
    // Every wait is one that gives up the lease and is followed by a replay; a crash leaves no time for anything.
    let observer: Arc<Observer> = Arc::clone(observer);
    Worker::new(process.clone())
        .observed(setup.flows.clone(), setup.states.clone(), setup.layers.clone(), observer)
        .queues(setup.queues.iter().cloned())
        .moment(Duration::ZERO)
        .parked_max(0)
        .grace(Duration::ZERO)
        // Its leases hold for ever, so that time can pass while a flow runs; those of a dead process are given back.
        .lease(Duration::MAX)
        .deliveries_max(u32::MAX)
        .name("test")
}

impl Drop for TestRuntime {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl fmt::Debug for TestRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestRuntime").field("now", &self.now()).field("setup", &self.setup).finish_non_exhaustive()
    }
}
