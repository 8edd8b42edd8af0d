//! One flow of 5 steps at a time on an idle worker, from scheduling it to its result.

use std::{path::Path, time::Instant};

use super::{
    Failure,
    drain::{self, FiveSteps},
    tally::Tally,
};
use crate::{
    case::Case,
    limit::{Write, Writer},
    log::Log,
    measure::{Measure, cpu, cpu_since, each},
    stats::Times,
};

/// Flows before the first that counts.
const WARM_UP: usize = 20;

pub(super) async fn ergon(case: &Case, dir: &Path) -> Result<Vec<Measure>, Failure> {
    let log = Log::open(case, dir).await?;
    let scheduler = log.scheduler();
    let worker = log.worker().register::<FiveSteps>().with_state(Tally::default()).start().await?;
    let mut times = Vec::with_capacity(case.size);
    let mut cpu_start = cpu();
    for number in 0..WARM_UP + case.size {
        if number == WARM_UP {
            cpu_start = cpu();
            times.clear();
        }
        let start = Instant::now();
        let flow = scheduler.schedule(FiveSteps { number: number as u64 }).await?;
        let total = flow.result().await.map_err(|error| error.to_string())?;
        times.push(start.elapsed());
        if total != number as u64 + 15 {
            return Err(format!("flow {number} resulted in {total}").into());
        }
    }
    let used = cpu_since(cpu_start);
    worker.shutdown().await;
    Ok(figures(case, times, used))
}

pub(super) async fn raw(case: &Case, dir: &Path) -> Result<Vec<Measure>, Failure> {
    let (writer, _) = Writer::start(case, dir)?;
    let size = case.size;
    // On a worker thread of the runtime, as ergon's flows are.
    let measured = tokio::spawn(async move {
        let mut times = Vec::with_capacity(size);
        let mut cpu_start = cpu();
        for number in 0..WARM_UP + size {
            if number == WARM_UP {
                cpu_start = cpu();
                times.clear();
            }
            let flow = i64::try_from(number)? + 1;
            let start = Instant::now();
            writer.write(Write::Enqueue { first: flow, count: 1 }).await?;
            drain::run(&writer, flow).await?;
            times.push(start.elapsed());
        }
        Ok::<_, Failure>((times, cpu_since(cpu_start)))
    });
    let (times, used) = measured.await??;
    Ok(figures(case, times, used))
}

fn figures(case: &Case, times: Vec<std::time::Duration>, used: std::time::Duration) -> Vec<Measure> {
    let times = Times::new(times);
    vec![
        Measure::micros("p50", times.p50()),
        Measure::micros("p99", times.p99()),
        Measure::micros("CPU per flow", each(used, case.size)),
    ]
}
