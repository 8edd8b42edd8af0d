//! One flow of 5 steps at a time on an idle worker, from scheduling it to its result.

use std::time::Instant;

use ergon_bench_round::{Alone, Failure, Measure, Round};

use super::{
    drain::{self, FiveSteps},
    tally::Tally,
};
use crate::{
    limit::{Limit, Write},
    log::Log,
};

/// Flows before the first that counts.
const WARM_UP: usize = 20;

pub(super) async fn ergon(round: &Round) -> Result<Vec<Measure>, Failure> {
    let log = Log::open(round).await?;
    let scheduler = log.scheduler();
    let worker = log.worker().register::<FiveSteps>().with_state(Tally::default()).start().await?;
    let mut flows = Alone::new(WARM_UP, &round.case);
    while let Some(number) = flows.number() {
        let start = Instant::now();
        let flow = scheduler.schedule(FiveSteps { number }).await?;
        let total = flow.result().await.map_err(|error| error.to_string())?;
        flows.took(start.elapsed());
        if total != number + 15 {
            return Err(format!("flow {number} resulted in {total}").into());
        }
    }
    let figures = flows.figures();
    worker.shutdown().await;
    Ok(figures)
}

pub(super) async fn raw(round: &Round) -> Result<Vec<Measure>, Failure> {
    let limit = Limit::start(round).await?;
    let mut flows = Alone::new(WARM_UP, &round.case);
    // On a worker thread of the runtime, as ergon's flows are.
    let measured = tokio::spawn(async move {
        while let Some(number) = flows.number() {
            let flow = i64::try_from(number)? + 1;
            let start = Instant::now();
            limit.write(Write::Enqueue { first: flow, count: 1 }).await?;
            drain::run(&limit, flow).await?;
            flows.took(start.elapsed());
        }
        Ok::<_, Failure>(flows.figures())
    });
    measured.await?
}
