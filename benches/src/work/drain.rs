//! Many flows of 5 trivial steps, enqueued in batches, then worked off by one worker.

use std::sync::Arc;

use ergon::{
    FlowState, flow, flow_type, state, step,
    storage::{Count, ExecutionLog, Filter},
};
use ergon_bench_round::{BATCH, Drained, Failure, Measure, Round};
use tokio::sync::Mutex;

use super::tally::Tally;
use crate::{
    limit::{Limit, Write},
    log::Log,
};

/// The steps of a flow.
const STEPS: i64 = ergon_bench_round::STEPS.cast_signed();

/// The flow that is drained, and run alone.
#[flow_type]
pub(crate) struct FiveSteps {
    pub(crate) number: u64,
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

pub(super) async fn ergon(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let log = Log::open(round).await?;
    let tally = Tally::default();
    let scheduler = log.scheduler();
    let mut clock = Drained::start();
    for first in (0..case.size).step_by(BATCH) {
        let flows = (first..case.size.min(first + BATCH)).map(|number| FiveSteps { number: 1_000_000 + number as u64 });
        scheduler.schedule_all(flows).await?;
    }
    clock.enqueued();
    let worker = log.worker().register::<FiveSteps>().with_state(tally.clone()).slots(case.concurrency).start().await?;
    tally.wait(case.size, &worker).await?;
    clock.end();
    worker.shutdown().await;
    expect_completed(log.as_log(), case.size).await?;
    drop((scheduler, log));
    clock.figures(case, &round.dir, "flows")
}

/// Fails unless so many flows have completed, and no other is there.
async fn expect_completed(log: &dyn ExecutionLog, flows: usize) -> Result<(), Failure> {
    let counts: Vec<Count> = log.counts(&Filter::all()).await?;
    match &counts[..] {
        [count] if count.state == FlowState::Completed && count.flows == flows as u64 => Ok(()),
        _ => Err(format!("not all of {flows} flows have completed: {counts:?}").into()),
    }
}

pub(super) async fn raw(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let limit = Limit::start(round).await?;
    let size = i64::try_from(case.size)?;
    let mut clock = Drained::start();
    for first in (1..=size).step_by(BATCH) {
        let count = (size + 1 - first).min(i64::try_from(BATCH)?);
        limit.write(Write::Enqueue { first, count }).await?;
    }
    clock.enqueued();
    let next = Arc::new(Mutex::new(1..=size));
    let tasks: Vec<_> = (0..case.concurrency)
        .map(|_| {
            let (limit, next) = (limit.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let Some(flow) = next.lock().await.next() else { return Ok::<_, Failure>(()) };
                    run(&limit, flow).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    clock.end();
    limit.close().await?;
    clock.figures(case, &round.dir, "flows")
}

/// What is written of a flow after it was enqueued.
pub(super) async fn run(limit: &Limit, flow: i64) -> Result<(), Failure> {
    limit.write(Write::Claim { flow }).await?;
    for seq in 1..STEPS {
        limit.write(Write::Step { flow, seq }).await?;
    }
    limit.write(Write::End { flow, seq: STEPS }).await
}
