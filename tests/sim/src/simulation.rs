//! One run, from its plan to its end.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Once},
    time::Duration,
};

use ergon::{FlowId, FlowState, History, testing::Setup};
use rand::Rng;
use tokio::{runtime::Builder, task::JoinHandle};

use crate::{
    client, code,
    network::at_once,
    plan::{Faults, Plan},
    process::{Process, WorkerProcess},
    program::Program,
    world::World,
};

/// How much time everything has to come to its end once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often it is looked at what happens next.
const TICK_MS: u64 = 250;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The first law that was broken.
    pub(crate) failure: Option<String>,
    /// What happened, line by line; empty unless it was asked for.
    pub(crate) trace: String,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what panics in a run say. Planned ones say nothing.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| PANIC.with_borrow_mut(|said| *said = Some(info.to_string()))));
    });
}

/// Runs a plan.
pub(crate) fn run(plan: &Plan, traced: bool) -> Outcome {
    listen_to_panics();
    PANIC.take();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let mut trace = String::new();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let world = World::new(plan.clone(), traced);
            live(&world).await;
            trace = world.take_trace();
            world.failure()
        })
    }));
    // With everything that it still holds.
    drop(runtime);
    let failure = ran.unwrap_or_else(|_| Some("the simulation panicked".into()));
    let panicked = PANIC.take().map(|said| format!("a panic: {said}"));
    Outcome { failure: panicked.or(failure), trace }
}

async fn live(world: &Arc<World>) {
    let mut fleet = Crew { world: Arc::clone(world), started: 0, workers: Vec::new() };
    let mut clients = tokio::spawn(client::run(Arc::clone(world)));
    trouble(world, &mut fleet, &mut clients).await;
    world.heal();
    let process = Process::new("rescuer".into(), 0);
    let healed_at = world.now();
    let mut messages = 0;
    while world.failure().is_none() {
        fleet.complete().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        client::rescue(world, &process, &mut messages).await;
        if clients.is_finished() && world.laws(|laws| laws.unfinished().next().is_none()) {
            break;
        }
        if world.now().since(healed_at) > PATIENCE {
            let left = world.laws(|laws| laws.unfinished().map(|info| format!("{info:?}")).collect::<Vec<_>>());
            world.fail(format!("it does not end: {left:#?}"));
        }
    }
    if world.failure().is_none() {
        let end = world.laws(|laws| laws.finally(&world.log(), &world.plan));
        if let Err(broken) = end.and_then(|()| replay_all(world)) {
            world.fail(broken);
        }
    }
}

/// Lets go wrong what is planned to.
async fn trouble(world: &Arc<World>, fleet: &mut Crew, clients: &mut JoinHandle<()>) {
    let Faults { kill_every_ms, freeze_every_ms, shutdown_every_ms, outage_every_ms, power_cut_every_ms, .. } =
        world.plan.faults;
    let happens = |every_ms: u64| every_ms > 0 && world.draw(|rng| rng.random_range(0..every_ms) < TICK_MS);
    let tick = Duration::from_millis(TICK_MS);
    let until = Duration::from_millis(world.plan.faults.until_ms);
    let began_at = world.now();
    while world.now().since(began_at) < until && world.failure().is_none() {
        if world.draw(|rng| rng.random_bool(0.3)) || fleet.workers.is_empty() {
            fleet.complete().await;
        }
        tokio::time::sleep(tick).await;
        if happens(kill_every_ms)
            && let Some(worker) = fleet.one()
        {
            world.trace(|| format!("{} is killed", worker.process.name));
            worker.process.die();
        }
        if happens(freeze_every_ms)
            && let Some(worker) = fleet.one()
        {
            let process = Arc::clone(&worker.process);
            let millis = world.draw(|rng| rng.random_range(100..12_000));
            world.trace(|| format!("{} stops for {millis} ms", process.name));
            process.freeze();
            let world = Arc::clone(world);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                world.trace(|| format!("{} goes on", process.name));
                process.thaw();
            });
        }
        if happens(shutdown_every_ms) && !fleet.workers.is_empty() {
            let index = world.draw(|rng| rng.random_range(0..fleet.workers.len()));
            let worker = fleet.workers.remove(index);
            world.trace(|| format!("{} is shut down", worker.process.name));
            worker.shut_down();
        }
        if happens(outage_every_ms) {
            world.set_down(true);
            let millis = world.draw(|rng| rng.random_range(100..6_000));
            let world = Arc::clone(world);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                world.set_down(false);
            });
        }
        if happens(power_cut_every_ms) {
            let tail = world.draw(|rng| rng.random_range(0..=world.plan.faults.tail_max));
            clients.abort();
            world.cut_power(tail as usize);
            fleet.workers.clear();
            *clients = tokio::spawn(client::run(Arc::clone(world)));
        }
    }
}

struct Crew {
    world: Arc<World>,
    started: u32,
    workers: Vec<WorkerProcess>,
}

impl Crew {
    /// Starts processes in place of those that are gone.
    async fn complete(&mut self) {
        self.workers.retain(|worker| !worker.process.is_dead());
        while self.workers.len() < self.world.plan.fleet.processes as usize {
            self.started += 1;
            let worker = WorkerProcess::start(&self.world, self.started).await;
            self.world.trace(|| format!("{} has started", worker.process.name));
            self.workers.push(worker);
        }
    }

    fn one(&self) -> Option<&WorkerProcess> {
        let index = self.world.draw(|rng| rng.random_range(0..self.workers.len().max(1)));
        self.workers.get(index)
    }
}

/// Replays each history: the code makes the same calls, and sees the same.
fn replay_all(world: &World) -> Result<(), String> {
    let log = world.log();
    let ids: Vec<FlowId> = world.laws(|laws| laws.ids().cloned().collect());
    for id in ids {
        replay(world, &log, &id)?;
    }
    Ok(())
}

fn replay(world: &World, log: &ergon::InMemoryExecutionLog, id: &FlowId) -> Result<(), String> {
    let history: History =
        at_once(ergon::Scheduler::new(log.clone()).history(id)).map_err(|error| error.to_string())?;
    code::take_replayed();
    let replayed = Setup::new().register::<Program>().replay::<Program>(&history);
    replayed.map_err(|mismatch| format!("a replay differs: {mismatch}"))?;
    let Some(code) = code::take_replayed() else { return Ok(()) };
    let (now, then) = (code.seen(), world.laws(|laws| laws.seen(id).to_vec()));
    // The code of a flow that was cancelled or failed may not have got to what it was told.
    let same = if history.info.state == FlowState::Completed { now == then } else { now.starts_with(&then) };
    if same { Ok(()) } else { Err(format!("a replay of {id} sees {now:?}, its code saw {then:?}")) }
}
