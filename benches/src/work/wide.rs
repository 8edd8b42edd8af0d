//! One flow that joins many steps, beside as many flows of one step.

use std::time::Instant;

use ergon::{flow, flow_type, state, step};
use ergon_bench_round::{Failure, Measure, Round, Times};
use futures::future::try_join_all;

use super::tally::Tally;
use crate::log::Log;

/// How often each is done in a round; the median counts.
const REPEATS: usize = 5;

#[flow_type]
struct Wide {
    steps: u64,
}

#[flow_type]
impl Wide {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        let outcomes = try_join_all((0..self.steps).map(|number| self.double(number))).await?;
        Ok(outcomes.iter().sum())
    }

    #[step]
    async fn double(&self, number: u64) -> ergon::Result<u64> {
        Ok(2 * number)
    }
}

#[flow_type]
struct One {
    number: u64,
}

#[flow_type]
impl One {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        let outcome = self.double(self.number).await?;
        state::<Tally>().add();
        Ok(outcome)
    }

    #[step]
    async fn double(&self, number: u64) -> ergon::Result<u64> {
        Ok(2 * number)
    }
}

pub(super) async fn ergon(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let log = Log::open(round).await?;
    let (scheduler, tally, steps) = (log.scheduler(), Tally::default(), case.size as u64);
    let worker = log.worker().register::<Wide>().register::<One>().with_state(tally.clone()).slots(case.concurrency);
    let worker = worker.start().await?;
    let (mut joined, mut apart) = (Vec::new(), Vec::new());
    for repeat in 1..=REPEATS {
        let start = Instant::now();
        let flow = scheduler.schedule(Wide { steps }).await?;
        let sum = flow.result().await.map_err(|error| error.to_string())?;
        joined.push(start.elapsed());
        if sum != steps * (steps - 1) {
            return Err(format!("the join resulted in {sum}").into());
        }
        let start = Instant::now();
        scheduler.schedule_all((0..steps).map(|number| One { number })).await?;
        tally.wait(repeat * case.size, &worker).await?;
        apart.push(start.elapsed());
    }
    worker.shutdown().await;
    let (joined, apart) = (Times::new(joined).p50(), Times::new(apart).p50());
    Ok(vec![
        Measure::millis("one flow, 1,000 steps", joined),
        Measure::millis("1,000 flows, one step", apart),
        Measure::new("one flow ÷ many", "×", joined.as_secs_f64() / apart.as_secs_f64()),
    ])
}
