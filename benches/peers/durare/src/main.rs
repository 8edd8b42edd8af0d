//! The benchmark's rounds on `durare`, on SQLite and PostgreSQL.
//!
//! Its SQLite provider uses NORMAL; at FULL it gets a pool that differs in that alone.

use std::{
    process::ExitCode,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use durare::{
    DurableContext, DurableEngine, PostgresProvider, SqliteProvider, StateProvider, WorkflowOptions, WorkflowQueue,
};
use ergon_bench_round::{Alone, Backend, Drained, Durability, Failure, Measure, Round, STEPS, System, Work, answer};
use futures::{StreamExt, TryStreamExt, stream};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

const QUEUE: &str = "flows";
const FIVE: &str = "five";

#[durare::step]
async fn add(ctx: &DurableContext, total: u64, step: u64) -> durare::Result<u64> {
    Ok(total + step)
}

#[durare::workflow]
async fn five(ctx: DurableContext, number: u64) -> durare::Result<u64> {
    let mut total = number;
    for step in 1..=STEPS {
        total = add(&ctx, total, step).await?;
    }
    Ok(total)
}

fn main() -> ExitCode {
    answer(async |round| match (round.case.work, round.case.system) {
        (Work::Drain | Work::Scaling, System::Durare) => drain(round).await,
        (Work::Drain, System::DurareQueue) => drain_queue(round).await,
        (Work::Alone, System::Durare) => alone(round).await,
        _ => round.refusal(),
    })
}

async fn engine(round: &Round) -> Result<DurableEngine, Failure> {
    let provider: Arc<dyn StateProvider> = match round.case.backend {
        Backend::Sqlite => Arc::new(sqlite(round).await?),
        Backend::Postgres => Arc::new(PostgresProvider::connect(round.server()?).await?),
        _ => return round.refusal(),
    };
    Ok(DurableEngine::new(provider).await?)
}

async fn sqlite(round: &Round) -> Result<SqliteProvider, Failure> {
    let url = format!("sqlite://{}", round.dir.join("durare.db").display());
    if round.case.durability == Durability::Normal {
        return Ok(SqliteProvider::connect(&url).await?);
    }
    let options = SqliteConnectOptions::from_str(&url)?
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5));
    Ok(SqliteProvider::from_pool(SqlitePoolOptions::new().max_connections(5).connect_with(options).await?))
}

/// As many at once as the case says, each started by whoever waits for it.
async fn drain(round: &Round) -> Result<Vec<Measure>, Failure> {
    let engine = engine(round).await?;
    engine.launch().await?;
    let mut clock = Drained::start();
    stream::iter(0..round.case.size as u64)
        .map(|number| run(&engine, number))
        .buffer_unordered(round.case.concurrency)
        .try_collect::<()>()
        .await?;
    clock.end();
    clock.figures(&round.case, &round.dir, "flows")
}

async fn drain_queue(round: &Round) -> Result<Vec<Measure>, Failure> {
    let mut engine = engine(round).await?;
    let slots = round.case.concurrency;
    engine.register_queue(WorkflowQueue::new(QUEUE).worker_concurrency(slots).max_tasks_per_iteration(slots));
    let mut clock = Drained::start();
    let mut flows = Vec::with_capacity(round.case.size);
    for number in 0..round.case.size as u64 {
        let options = WorkflowOptions::default().queue(QUEUE);
        flows.push((number, engine.start::<_, u64>(FIVE, number, options).await?));
    }
    clock.enqueued();
    engine.launch().await?;
    for (number, flow) in flows {
        expect(number, flow.result().await?)?;
    }
    clock.end();
    clock.figures(&round.case, &round.dir, "flows")
}

async fn alone(round: &Round) -> Result<Vec<Measure>, Failure> {
    let engine = engine(round).await?;
    engine.launch().await?;
    let mut flows = Alone::new(5, &round.case);
    while let Some(number) = flows.number() {
        let start = Instant::now();
        run(&engine, number).await?;
        flows.took(start.elapsed());
    }
    Ok(flows.figures())
}

async fn run(engine: &DurableEngine, number: u64) -> Result<(), Failure> {
    let flow = engine.start::<_, u64>(FIVE, number, WorkflowOptions::default()).await?;
    expect(number, flow.result().await?)
}

fn expect(number: u64, result: u64) -> Result<(), Failure> {
    if result == number + 15 { Ok(()) } else { Err(format!("flow {number} resulted in {result}").into()) }
}
