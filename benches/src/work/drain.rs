//! Many flows of 5 trivial steps, enqueued in batches, then worked off by one worker.

use std::{path::Path, sync::Arc, time::Instant};

use ergon::{
    FlowState, flow, flow_type, state, step,
    storage::{Count, ExecutionLog},
};
use tokio::sync::Mutex;

use super::{Failure, tally::Tally};
use crate::{
    case::{Backend, Case},
    limit::{Write, Writer},
    log::Log,
    measure::{Measure, bytes_in, cpu, cpu_since, each, number},
};

/// How many flows are scheduled in one transition.
const BATCH: usize = 1_000;
/// The steps of a flow.
pub(super) const STEPS: i64 = 5;

/// The flow that is drained, and run alone.
#[flow_type]
pub(super) struct FiveSteps {
    pub(super) number: u64,
}

#[flow_type]
impl FiveSteps {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        let mut total = self.number;
        for step in 1..=5 {
            total = self.add(total, step).await?;
        }
        state::<Tally>().add();
        Ok(total)
    }

    #[step]
    async fn add(&self, total: u64, step: u64) -> ergon::Result<u64> {
        Ok(total + step)
    }
}

pub(super) async fn ergon(case: &Case, dir: &Path) -> Result<Vec<Measure>, Failure> {
    let log = Log::open(case, dir).await?;
    let tally = Tally::default();
    let scheduler = log.scheduler();
    let (start, cpu_start) = (Instant::now(), cpu());
    for first in (0..case.size).step_by(BATCH) {
        let flows = (first..case.size.min(first + BATCH)).map(|number| FiveSteps { number: 1_000_000 + number as u64 });
        scheduler.schedule_all(flows).await?;
    }
    let enqueued = Instant::now();
    let worker = log.worker().register::<FiveSteps>().with_state(tally.clone()).slots(case.concurrency).start().await?;
    tally.wait(case.size, &worker).await?;
    let (end, used) = (Instant::now(), cpu_since(cpu_start));
    worker.shutdown().await;
    expect_completed(log.as_log(), case.size).await?;
    drop((scheduler, log));
    figures(case, dir, [start, enqueued, end], used)
}

/// Fails unless so many flows have completed, and no other is there.
async fn expect_completed(log: &dyn ExecutionLog, flows: usize) -> Result<(), Failure> {
    let counts: Vec<Count> = log.counts().await?;
    match &counts[..] {
        [count] if count.state == FlowState::Completed && count.flows == flows as u64 => Ok(()),
        _ => Err(format!("not all of {flows} flows have completed: {counts:?}").into()),
    }
}

pub(super) async fn raw(case: &Case, dir: &Path) -> Result<Vec<Measure>, Failure> {
    let (writer, closed) = Writer::start(case, dir)?;
    let flows = i64::try_from(case.size)?;
    let (start, cpu_start) = (Instant::now(), cpu());
    for first in (1..=flows).step_by(BATCH) {
        let count = (flows + 1 - first).min(i64::try_from(BATCH)?);
        writer.write(Write::Enqueue { first, count }).await?;
    }
    let enqueued = Instant::now();
    let next = Arc::new(Mutex::new(1..=flows));
    let tasks: Vec<_> = (0..case.concurrency)
        .map(|_| {
            let (writer, next) = (writer.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let Some(flow) = next.lock().await.next() else { return Ok::<_, Failure>(()) };
                    run(&writer, flow).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let (end, used) = (Instant::now(), cpu_since(cpu_start));
    drop(writer);
    closed.await?;
    figures(case, dir, [start, enqueued, end], used)
}

/// What is written of a flow after it was enqueued.
pub(super) async fn run(writer: &Writer, flow: i64) -> Result<(), Failure> {
    writer.write(Write::Claim { flow }).await?;
    for seq in 1..STEPS {
        writer.write(Write::Step { flow, seq }).await?;
    }
    writer.write(Write::End { flow, seq: STEPS }).await
}

fn figures(
    case: &Case,
    dir: &Path,
    [start, enqueued, end]: [Instant; 3],
    cpu: std::time::Duration,
) -> Result<Vec<Measure>, Failure> {
    let mut measures = vec![
        Measure::rate("enqueue to end", "flows", case.size, end - start),
        Measure::rate("enqueue", "flows", case.size, enqueued - start),
        Measure::rate("claim to end", "flows", case.size, end - enqueued),
        Measure::micros("CPU per flow", each(cpu, case.size)),
    ];
    if case.backend == Backend::Sqlite {
        let bytes = number(usize::try_from(bytes_in(dir)?)?);
        measures.push(Measure::new("file per flow", "bytes", bytes / number(case.size)));
    }
    Ok(measures)
}
