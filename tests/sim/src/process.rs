//! Processes that run flows, stop for a while, and die.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{self, Poll, Waker},
    time::Duration,
};

use ergon::{
    FlowId, FlowInfo, Middleware, NextFlow, NextStep, RunEnd, StepRun, Timestamp, Worker, WorkerHandle,
    storage::{Clock, Lease, Topic, Watch, WatchHub},
};
use futures::future::BoxFuture;

use crate::{
    code::{self, Code, Turn},
    network::Network,
    program::Program,
    world::World,
};

/// A process: a worker, or the clients.
pub(crate) struct Process {
    pub(crate) name: Arc<str>,
    /// By how much its clock is ahead, in microseconds.
    skew: i64,
    gate: Mutex<Gate>,
    /// One hub for each watch: who is woken first is not left to chance.
    hubs: Mutex<Vec<(Topic, WatchHub)>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The code of each flow that began here under its latest lease, with when the flow was created and that lease's
    /// epoch: what was claimed before a process stopped may begin after what it has claimed since.
    codes: BTreeMap<FlowId, (Timestamp, u64, Arc<Code>)>,
    /// How much the code had seen when a commit was first tried: by the log's number of the flow, epoch and number.
    tried: BTreeMap<(u64, u64, u32), usize>,
    /// How many turns each flow has here at this moment.
    turns: BTreeMap<FlowId, u32>,
}

#[derive(Default)]
struct Gate {
    state: State,
    waiting: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Alive,
    Frozen,
    Dead,
}

impl Process {
    pub(crate) fn new(name: String, skew: i64) -> Arc<Self> {
        let (gate, hubs, inner) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { name: name.into(), skew, gate, hubs, inner })
    }

    fn state(&self) -> State {
        lock(&self.gate).state
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state() == State::Dead
    }

    /// Dies: nothing of it goes on.
    pub(crate) fn die(&self) {
        self.turn(State::Dead);
    }

    /// Stops as if it were not there.
    pub(crate) fn freeze(&self) {
        self.turn(State::Frozen);
    }

    /// Goes on as if nothing had been.
    pub(crate) fn thaw(&self) {
        self.turn(State::Alive);
    }

    fn turn(&self, state: State) {
        let waiting = {
            let mut gate = lock(&self.gate);
            if gate.state == State::Dead {
                return;
            }
            gate.state = state;
            std::mem::take(&mut gate.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }

    fn poll_state(&self, cx: &mut task::Context<'_>) -> State {
        let mut gate = lock(&self.gate);
        if gate.state == State::Frozen && !gate.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            gate.waiting.push(cx.waker().clone());
        }
        gate.state
    }

    /// Waits until the process goes on; for ever in a dead one.
    pub(crate) async fn awake(&self) {
        poll_fn(|cx| if self.poll_state(cx) == State::Alive { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    pub(crate) fn watch(&self, topic: Topic) -> Watch {
        let hub = WatchHub::new();
        let watch = hub.watch(topic.clone());
        let mut hubs = lock(&self.hubs);
        // The hubs of watches that are gone.
        hubs.retain(|(topic, hub)| match topic {
            Topic::Flow(flow) => hub.is_watched(flow),
            _ => true,
        });
        hubs.push((topic, hub));
        watch
    }

    /// A hint reaches the process.
    pub(crate) fn hint(&self, topic: &Topic) {
        for (watched, hub) in lock(&self.hubs).iter() {
            match (watched, topic) {
                (Topic::Flow(watched), Topic::Flow(flow)) if watched == flow => hub.notify_flow(flow),
                (Topic::Queue, Topic::Queue) => hub.notify_queue(),
                _ => {}
            }
        }
    }

    pub(crate) fn begins(&self, turn: &Turn, code: &Arc<Code>) {
        let codes = &mut lock(&self.inner).codes;
        let known = codes.get(&turn.flow);
        if known.is_none_or(|(created_at, epoch, _)| (*created_at, *epoch) <= (turn.created_at, turn.epoch)) {
            codes.insert(turn.flow.clone(), (turn.created_at, turn.epoch, Arc::clone(code)));
        }
    }

    /// What the code of a flow had seen when this commit was first tried.
    pub(crate) fn seen_at(&self, Lease { flow, epoch, key }: &Lease, number: u32) -> Option<Vec<code::Item>> {
        let mut inner = lock(&self.inner);
        let code = Arc::clone(&inner.codes.get(flow)?.2);
        let length = *inner.tried.entry((*key, *epoch, number)).or_insert_with(|| code.seen_len());
        let mut seen = code.seen();
        seen.truncate(length);
        Some(seen)
    }

    /// What the code of a flow saw so far.
    pub(crate) fn seen(&self, flow: &FlowId) -> Vec<code::Item> {
        lock(&self.inner).codes.get(flow).map(|(_, _, code)| code.seen()).unwrap_or_default()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time as a process knows it.
#[derive(Clone)]
pub(crate) struct ProcessClock {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
}

impl std::fmt::Debug for ProcessClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessClock").field("process", &self.process.name).finish_non_exhaustive()
    }
}

impl Clock for ProcessClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.world.now().as_micros() + self.process.skew)
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            loop {
                clock.process.awake().await;
                let left = at.since(clock.now());
                if left.is_zero() {
                    return;
                }
                // Longer than any run.
                tokio::time::sleep(left.min(Duration::from_secs(30 * 24 * 3_600))).await;
            }
        })
    }
}

/// A worker in a process of its own.
pub(crate) struct WorkerProcess {
    pub(crate) process: Arc<Process>,
    worker: Option<WorkerHandle>,
}

impl WorkerProcess {
    pub(crate) async fn start(world: &Arc<World>, number: u32) -> Self {
        let process = Process::new(format!("worker-{number}"), world.draw_skew());
        world.adds(&process);
        let fleet = &world.plan.fleet;
        let log = Network::new(Arc::clone(world), Arc::clone(&process));
        let millis = Duration::from_millis;
        let start = || {
            Worker::new(log.clone())
                .name(Arc::clone(&process.name))
                .build("sim")
                .register::<Program>()
                .middleware(Surroundings { world: Arc::clone(world), process: Arc::clone(&process) })
                .slots(fleet.slots)
                .lease(millis(fleet.lease_ms))
                .moment(millis(fleet.moment_ms))
                .parked_max(fleet.parked_max)
                .grace(millis(fleet.grace_ms))
                .deliveries_max(u32::MAX)
                .start()
        };
        // The log may not answer at first, and a process may die of that too.
        let worker = loop {
            if process.is_dead() || world.failure().is_some() {
                break None;
            }
            match tokio::time::timeout(Duration::from_secs(20), start()).await {
                Ok(Ok(worker)) => break Some(worker),
                _ => tokio::time::sleep(millis(200)).await,
            }
        };
        Self { process, worker }
    }

    /// Stops as one should.
    pub(crate) fn shut_down(mut self) {
        if let Some(worker) = self.worker.take() {
            tokio::spawn(worker.shutdown());
        }
    }
}

/// What surrounds the flows and steps of a process: they stop and die with it.
struct Surroundings {
    world: Arc<World>,
    process: Arc<Process>,
}

impl Middleware for Surroundings {
    async fn flow(&self, flow: &FlowInfo, next: NextFlow<'_>) -> ergon::Result<RunEnd> {
        let turn = Arc::new(Turn {
            world: Arc::clone(&self.world),
            process: Arc::clone(&self.process),
            flow: flow.id.clone(),
            created_at: flow.created_at,
            run: flow.run,
            epoch: flow.epoch,
        });
        let _slot = Slot::take(&turn);
        Ok(Guarded { turn, inner: Some(Box::pin(next.run())) }.await)
    }

    async fn step(&self, step: &StepRun, next: NextStep<'_>) -> ergon::Result<()> {
        if let Some(turn) = code::turn() {
            turn.world.body_begins(&turn, step);
            code::begins(&step.path, step.attempt);
        }
        next.run().await
    }
}

struct Slot(Arc<Turn>);

impl Slot {
    fn take(turn: &Arc<Turn>) -> Self {
        let taken = {
            let mut inner = lock(&turn.process.inner);
            *inner.turns.entry(turn.flow.clone()).or_default() += 1;
            inner.turns.len()
        };
        let slots = turn.world.plan.fleet.slots;
        if taken > slots {
            turn.world.fail(format!("{} runs {taken} flows and has {slots} slots", turn.process.name));
        }
        Self(Arc::clone(turn))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = lock(&self.0.process.inner);
        if let Some(turns) = inner.turns.get_mut(&self.0.flow) {
            *turns -= 1;
            if *turns == 0 {
                inner.turns.remove(&self.0.flow);
            }
        }
    }
}

/// A flow's time in its slot, which stands still with its process.
struct Guarded<'a> {
    turn: Arc<Turn>,
    inner: Option<Pin<Box<dyn Future<Output = RunEnd> + Send + 'a>>>,
}

impl Future for Guarded<'_> {
    type Output = RunEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<RunEnd> {
        match self.turn.process.poll_state(cx) {
            State::Alive => {}
            State::Frozen => return Poll::Pending,
            State::Dead => {
                // What dropping does is done by a dead process: nobody notices.
                self.inner = None;
                return Poll::Pending;
            }
        }
        let Self { turn, inner } = &mut *self;
        let Some(inner) = inner else { return Poll::Pending };
        code::within(turn, || inner.as_mut().poll(cx))
    }
}
