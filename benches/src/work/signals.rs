//! From a signal to the step that waits for it, and to the flow's result.

use std::time::Instant;

use ergon::{FlowHandle, flow, flow_type, signal, state, step};
use ergon_bench_round::{Failure, Measure, Round, Times};

use super::tally::{Marks, Tally};
use crate::log::Log;

#[flow_type]
struct Waiter {
    number: usize,
}

#[flow_type]
impl Waiter {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        state::<Tally>().add();
        let value: u64 = signal("ping").await?;
        self.pong(value).await
    }

    #[step]
    async fn pong(&self, value: u64) -> ergon::Result<u64> {
        state::<Marks>().mark(self.number);
        Ok(value + 1)
    }
}

pub(super) async fn ergon(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let log = Log::open(round).await?;
    let (tally, marks) = (Tally::default(), Marks::default());
    let worker = log.worker().register::<Waiter>().with_state(tally.clone()).with_state(marks.clone()).start().await?;
    let flows = log.scheduler().schedule_all((0..case.size).map(|number| Waiter { number })).await?;
    tally.wait(case.size, &worker).await?;

    let start = Instant::now();
    let senders: Vec<_> = (0..case.concurrency)
        .map(|sender| {
            let flows = flows.iter().enumerate().skip(sender).step_by(case.concurrency);
            tokio::spawn(send(flows.map(|(number, flow)| (number, flow.clone())).collect()))
        })
        .collect();
    let mut sent = Vec::with_capacity(case.size);
    for sender in senders {
        sent.extend(sender.await??);
    }
    let took = start.elapsed();
    worker.shutdown().await;

    sent.sort_unstable();
    let arrived = marks.take();
    if arrived.len() != sent.len() {
        return Err(format!("{} steps ran for {} signals", arrived.len(), sent.len()).into());
    }
    let times = Times::new(sent.iter().zip(&arrived).map(|((_, sent), (_, arrived))| *arrived - *sent).collect());
    Ok(vec![
        Measure::micros("signal to step p50", times.p50()),
        Measure::micros("signal to step p99", times.p99()),
        Measure::rate("signal, step, result", "round trips", case.size, took),
    ])
}

/// Signals one flow after the other, each after the result of the one before; when each was signalled.
async fn send(flows: Vec<(usize, FlowHandle<u64, ergon::Error>)>) -> Result<Vec<(usize, Instant)>, Failure> {
    let mut sent = Vec::with_capacity(flows.len());
    for (number, flow) in flows {
        sent.push((number, Instant::now()));
        flow.signal("ping", &41_u64).await?;
        let result = flow.result().await.map_err(|error| error.to_string())?;
        if result != 42 {
            return Err(format!("flow {number} resulted in {result}").into());
        }
    }
    Ok(sent)
}
