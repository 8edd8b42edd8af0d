//! Works whose instructions are counted: `cargo xtask guard`.
//!
//! Each is done twice, in different sizes, by a process that valgrind watches: the difference is what the engine costs,
//! without what the process costs to start. One thread runs the flows and the engine; SQLite has its own.

use std::time::Duration;

use clap::ValueEnum;
use ergon::{InMemoryExecutionLog, Scheduler, SqliteExecutionLog, Worker, flow, flow_type, signal, state, step};
use ergon_bench_round::Failure;
use tokio::runtime;

use crate::work::{FiveSteps, Tally};

/// Nothing that goes by the clock is counted: under valgrind it comes 50 times as often.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// The outcomes that are replayed.
const HISTORY: usize = 1_000;

/// What is counted.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Counted {
    /// Flows of 5 steps on the in-memory log, scheduled at once and then worked off.
    DrainMemory,
    /// The same on SQLite.
    DrainSqlite,
    /// One such flow after the other, to its result, on the in-memory log.
    AloneMemory,
    /// The same on SQLite.
    AloneSqlite,
    /// Replays of a history of 1,000 steps by new workers on the in-memory log.
    ReplayMemory,
    /// The same on SQLite.
    ReplaySqlite,
}

/// Does it so many times, in this process.
pub(crate) fn run(what: Counted, size: usize) -> Result<(), Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dir = tempfile::tempdir()?;
        let open = async || SqliteExecutionLog::open(dir.path().join("log.db")).await;
        match what {
            Counted::DrainMemory => {
                let log = InMemoryExecutionLog::new();
                drain(&Scheduler::new(log.clone()), Worker::new(log), size).await
            }
            Counted::DrainSqlite => {
                let log = open().await?;
                drain(&Scheduler::new(log.clone()), Worker::new(log), size).await
            }
            Counted::AloneMemory => {
                let log = InMemoryExecutionLog::new();
                alone(&Scheduler::new(log.clone()), Worker::new(log), size).await
            }
            Counted::AloneSqlite => {
                let log = open().await?;
                alone(&Scheduler::new(log.clone()), Worker::new(log), size).await
            }
            Counted::ReplayMemory => {
                let log = InMemoryExecutionLog::new();
                replay(&Scheduler::new(log.clone()), || Worker::new(log.clone()), size).await
            }
            Counted::ReplaySqlite => {
                let log = open().await?;
                replay(&Scheduler::new(log.clone()), || Worker::new(log.clone()), size).await
            }
        }
    })
}

async fn drain(scheduler: &Scheduler, worker: Worker, flows: usize) -> Result<(), Failure> {
    let tally = Tally::default();
    scheduler.schedule_all((0..flows as u64).map(|number| FiveSteps { number })).await?;
    let worker = worker.register::<FiveSteps>().with_state(tally.clone()).lease(NEVER).fallback(NEVER).start().await?;
    tally.wait(flows, &worker).await?;
    worker.shutdown().await;
    Ok(())
}

async fn alone(scheduler: &Scheduler, worker: Worker, flows: usize) -> Result<(), Failure> {
    let worker = worker.register::<FiveSteps>().with_state(Tally::default());
    let worker = worker.lease(NEVER).fallback(NEVER).start().await?;
    for number in 0..flows as u64 {
        let total =
            scheduler.schedule(FiveSteps { number }).await?.result().await.map_err(|error| error.to_string())?;
        if total != number + 15 {
            return Err(format!("flow {number} resulted in {total}").into());
        }
    }
    worker.shutdown().await;
    Ok(())
}

#[flow_type]
struct Resumed {
    times: usize,
}

#[flow_type]
impl Resumed {
    #[flow]
    async fn run(&self) -> ergon::Result<usize> {
        let mut total = 0;
        for _ in 0..HISTORY {
            total = self.add(total).await?;
        }
        for _ in 0..=self.times {
            self.arrive().await?;
            let () = signal("go").await?;
        }
        Ok(total)
    }

    #[step]
    async fn add(&self, total: usize) -> ergon::Result<usize> {
        Ok(total + 1)
    }

    #[step]
    async fn arrive(&self) -> ergon::Result<()> {
        state::<Tally>().add();
        Ok(())
    }
}

async fn replay(scheduler: &Scheduler, worker: impl Fn() -> Worker, times: usize) -> Result<(), Failure> {
    let tally = Tally::default();
    let start = async || {
        let worker = worker().register::<Resumed>().with_state(tally.clone()).lease(NEVER).fallback(NEVER);
        worker.start().await
    };
    let flow = scheduler.schedule(Resumed { times }).await?;
    for time in 0..=times {
        let worker = start().await?;
        if time > 0 {
            flow.signal("go", &()).await?;
        }
        tally.wait(time + 1, &worker).await?;
        worker.shutdown().await;
    }
    Ok(())
}
