//! The benchmark's rounds on `apalis-sqlite`: a job counts as one step.
//!
//! Its own set-up turns `synchronous` OFF; at FULL it gets a pool that differs in that alone.

use std::{
    process::ExitCode,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use apalis::prelude::*;
use apalis_sqlite::{Config, SqliteStorage};
use ergon_bench_round::{Alone, BATCH, Backend, Drained, Durability, Failure, Measure, Round, Work, answer};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use tokio::{sync::Notify, task::JoinHandle};

/// How long all jobs may take.
const PATIENCE: Duration = Duration::from_secs(100);
const QUEUE: &str = "jobs";

/// How many jobs have come to their last line.
#[derive(Debug, Default)]
struct Done {
    count: AtomicUsize,
    target: AtomicUsize,
    reached: Notify,
}

fn main() -> ExitCode {
    answer(async |round| match (round.case.work, round.case.backend) {
        (Work::Drain, Backend::Sqlite) => drain(round).await,
        (Work::Alone, Backend::Sqlite) if round.case.durability == Durability::None => alone(round).await,
        _ => round.refusal(),
    })
}

async fn open(round: &Round) -> Result<SqlitePool, Failure> {
    let url = format!("sqlite://{}", round.dir.join("apalis.db").display());
    let options = SqliteConnectOptions::from_str(&url)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match round.case.durability {
            Durability::None => SqliteSynchronous::Off,
            Durability::Normal => SqliteSynchronous::Normal,
            Durability::Full => SqliteSynchronous::Full,
        })
        .pragma("cache_size", "64000")
        .pragma("temp_store", "MEMORY")
        .busy_timeout(Duration::from_secs(30));
    let pool = SqlitePoolOptions::new().connect_with(options).await?;
    SqliteStorage::migrations().run(&pool).await?;
    Ok(pool)
}

fn storage(pool: &SqlitePool, slots: usize) -> SqliteStorage<u64> {
    SqliteStorage::new(pool).with_config(Config::default().queue(QUEUE).batch_size(slots))
}

async fn add(number: u64, done: Data<Arc<Done>>) -> Result<u64, BoxDynError> {
    if done.count.fetch_add(1, Ordering::AcqRel) + 1 == done.target.load(Ordering::Acquire) {
        done.reached.notify_one();
    }
    Ok(number + 1)
}

fn work(storage: SqliteStorage<u64>, done: &Arc<Done>, slots: usize) -> JoinHandle<Result<(), WorkerError>> {
    let worker = WorkerBuilder::new("bench").backend(storage).data(Arc::clone(done)).concurrency(slots).build(add);
    tokio::spawn(worker.run())
}

async fn drain(round: &Round) -> Result<Vec<Measure>, Failure> {
    let (size, slots) = (round.case.size, round.case.concurrency);
    let pool = open(round).await?;
    let mut jobs = storage(&pool, slots);
    let done = Arc::new(Done::default());
    done.target.store(size, Ordering::Release);
    let mut clock = Drained::start();
    for first in (0..size).step_by(BATCH) {
        jobs.push_bulk((first..size.min(first + BATCH)).map(|number| number as u64).collect()).await?;
    }
    clock.enqueued();
    let worker = work(jobs, &done, slots);
    tokio::time::timeout(PATIENCE, done.reached.notified()).await?;
    // The body of the last is through; its end may not be written.
    loop {
        let row: (i64,) = sqlx::query_as("SELECT count(*) FROM Jobs WHERE status <> 'Done'").fetch_one(&pool).await?;
        if row.0 == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    clock.end();
    worker.abort();
    pool.close().await;
    clock.figures(&round.case, &round.dir, "jobs")
}

/// From pushing a job to its body, with the crate's own hook that tells the worker of new jobs.
async fn alone(round: &Round) -> Result<Vec<Measure>, Failure> {
    let url = format!("sqlite://{}?mode=rwc", round.dir.join("apalis.db").display());
    let (pool, listener) = SqliteStorage::connect_with_callback(&url)?;
    SqliteStorage::setup(&pool).await?;
    let done = Arc::new(Done::default());
    let mut jobs = storage(&pool, 10).poll_with_stream(listener);
    let worker = WorkerBuilder::new("bench").backend(jobs.clone()).data(Arc::clone(&done)).build(add);
    tokio::spawn(worker.run());
    let mut flows = Alone::new(5, &round.case);
    while let Some(number) = flows.number() {
        done.target.fetch_add(1, Ordering::AcqRel);
        let start = Instant::now();
        jobs.push(number).await?;
        tokio::time::timeout(PATIENCE, done.reached.notified()).await?;
        flows.took(start.elapsed());
    }
    Ok(flows.figures())
}
