//! Claiming while ever more flows wait.

use std::time::Instant;

use ergon::{
    FlowId, StorageError,
    storage::{ClaimRequest, ClaimTarget, Commit, ExecutionLog, NewFlow, Next},
};
use ergon_bench_round::{Failure, Measure, Round, Times};

use crate::log::Log;

/// How many flows wait, in turn.
const BACKLOGS: [(usize, &str); 3] = [(1_000, "1 k"), (100_000, "100 k"), (1_000_000, "1 M")];
/// How many claims are timed at each.
const CLAIMS: usize = 300;
/// Claims before the first that counts.
const WARM_UP: usize = 100;
/// How many flows are accepted at once, with few bytes in flight.
const BATCH: usize = 5_000;

pub(super) async fn ergon(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let log = Log::open(round).await?;
    let log = log.as_log();
    let mut made = WARM_UP;
    log.enqueue((0..WARM_UP).map(flow).collect::<Result<_, _>>()?).await?;
    claims(log, WARM_UP).await?;
    let mut measures = Vec::new();
    let mut medians = Vec::new();
    for (backlog, name) in BACKLOGS.into_iter().filter(|(backlog, _)| *backlog <= case.size) {
        // What was claimed at the backlog before is gone.
        let total = WARM_UP + backlog + medians.len() * CLAIMS;
        while made < total {
            let numbers = made..total.min(made + BATCH);
            made = numbers.end;
            log.enqueue(numbers.map(flow).collect::<Result<_, _>>()?).await?;
        }
        let times = Times::new(claims(log, CLAIMS).await?);
        measures.push(Measure::micros(format!("claim p50, {name} wait"), times.p50()));
        measures.push(Measure::micros(format!("claim p99, {name} wait"), times.p99()));
        medians.push(times.p50().as_secs_f64());
    }
    if let [first, .., last] = &medians[..] {
        measures.push(Measure::new("most ÷ fewest", "×", last / first));
    }
    Ok(measures)
}

fn flow(number: usize) -> Result<NewFlow, Failure> {
    let id = FlowId::new(format!("backlog-{number:012}"))?;
    Ok(NewFlow::new(id, "Backlog", 1, &br#"{"number":1234567}"#[..]))
}

/// Claims flows one by one, and ends each, which is not timed.
async fn claims(log: &dyn ExecutionLog, count: usize) -> Result<Vec<std::time::Duration>, StorageError> {
    let types = [("Backlog".into(), 1)].into();
    let queues = [NewFlow::DEFAULT_QUEUE.into()].into();
    let request = ClaimRequest::new("bench", ClaimTarget::Queues { queues, types });
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        let claimed = log.claim(request.clone()).await?;
        times.push(start.elapsed());
        for flow in claimed.flows {
            let mut end = Commit::new(flow.lease, 1);
            end.next = Next::Complete { result: "null".into() };
            log.commit(end).await?;
        }
    }
    Ok(times)
}
