//! The benchmark's rounds on `effectum`: jobs that write a checkpoint after each of 5 steps.
//!
//! It sets NORMAL, and means to set WAL but does not (`PRAGMA journal=wal` is none that SQLite knows): as it is shipped
//! the file keeps a rollback journal. The system `effectum-wal` is the same on a file that was set to WAL beforehand.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use effectum::{Job, JobRunner, Queue, RunningJob, Worker};
use ergon_bench_round::{
    Alone, BATCH, Backend, Drained, Durability, Failure, Measure, Round, STEPS, System, Work, answer,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// How long all jobs may take.
const PATIENCE: Duration = Duration::from_secs(100);

#[derive(Debug, Serialize, Deserialize)]
struct Five {
    total: u64,
    steps: u64,
}

/// How many jobs have come to their last line.
#[derive(Debug, Default)]
struct Done {
    count: AtomicUsize,
    target: AtomicUsize,
    reached: Notify,
}

fn main() -> ExitCode {
    answer(async |round| match (round.case.work, round.case.backend, round.case.durability) {
        (Work::Drain | Work::Scaling, Backend::Sqlite, Durability::Normal) => drain(round).await,
        (Work::Alone, Backend::Sqlite, Durability::Normal) => alone(round).await,
        _ => round.refusal(),
    })
}

async fn five(job: RunningJob, done: Arc<Done>) -> Result<u64, effectum::Error> {
    let mut five: Five = job.json_payload()?;
    while five.steps < STEPS {
        five.steps += 1;
        five.total += five.steps;
        job.checkpoint_json(&five).await?;
    }
    if done.count.fetch_add(1, Ordering::AcqRel) + 1 == done.target.load(Ordering::Acquire) {
        done.reached.notify_one();
    }
    Ok(five.total)
}

async fn open(round: &Round) -> Result<Queue, Failure> {
    let path = round.dir.join("effectum.db");
    if round.case.system == System::EffectumWal {
        rusqlite::Connection::open(&path)?.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    }
    Ok(Queue::new(&path).await?)
}

async fn worker(queue: &Queue, done: &Arc<Done>, slots: usize) -> Result<Worker, Failure> {
    let slots = u16::try_from(slots)?;
    let worker = Worker::builder(queue, Arc::clone(done)).jobs([JobRunner::builder("five", five).build()]);
    // It fetches again when half of them are done.
    Ok(worker.max_concurrency(slots).min_concurrency((slots / 2).max(1)).build().await?)
}

fn job(number: u64) -> Result<Job, Failure> {
    Ok(Job::builder("five").json_payload(&Five { total: number, steps: 0 })?.build())
}

async fn drain(round: &Round) -> Result<Vec<Measure>, Failure> {
    let queue = open(round).await?;
    let size = round.case.size;
    let done = Arc::new(Done::default());
    done.target.store(size, Ordering::Release);
    let mut clock = Drained::start();
    for first in (0..size).step_by(BATCH) {
        let jobs = (first..size.min(first + BATCH)).map(|number| job(number as u64));
        queue.add_jobs(jobs.collect::<Result<_, _>>()?).await?;
    }
    clock.enqueued();
    let worker = worker(&queue, &done, round.case.concurrency).await?;
    tokio::time::timeout(PATIENCE, done.reached.notified()).await?;
    // The body of the last is through; its end may not be written.
    while worker.counts().finished < size as u64 {
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    clock.end();
    queue.close(PATIENCE).await?;
    clock.figures(&round.case, &round.dir, "flows")
}

/// From adding a job to the last line of its body: it tells nobody of the end of a job.
async fn alone(round: &Round) -> Result<Vec<Measure>, Failure> {
    let queue = open(round).await?;
    let done = Arc::new(Done::default());
    let _worker = worker(&queue, &done, 16).await?;
    let mut flows = Alone::new(5, &round.case);
    while let Some(number) = flows.number() {
        let job = job(number)?;
        done.target.fetch_add(1, Ordering::AcqRel);
        let start = Instant::now();
        queue.add_job(job).await?;
        tokio::time::timeout(PATIENCE, done.reached.notified()).await?;
        flows.took(start.elapsed());
    }
    Ok(flows.figures())
}
