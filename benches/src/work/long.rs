//! One flow of many sequential steps: live, and replayed from cold by another worker.

use std::time::Instant;

use ergon::{flow, flow_type, signal, state, step};
use ergon_bench_round::{Failure, Measure, Round, each};

use super::tally::{Marks, Tally};
use crate::log::Log;

/// How many steps at either end are looked at by themselves.
const END: usize = 1_000;

#[flow_type]
struct Long {
    steps: usize,
}

#[flow_type]
impl Long {
    #[flow]
    async fn run(&self) -> ergon::Result<usize> {
        let mut count = 0;
        for number in 0..self.steps {
            count += self.one(number).await?;
        }
        state::<Tally>().add();
        let () = signal("go").await?;
        Ok(count + self.one(self.steps).await?)
    }

    #[step]
    async fn one(&self, number: usize) -> ergon::Result<usize> {
        state::<Marks>().mark(number);
        Ok(1)
    }
}

pub(super) async fn ergon(round: &Round) -> Result<Vec<Measure>, Failure> {
    let case = &round.case;
    let log = Log::open(round).await?;
    let (marks, steps) = (Marks::default(), case.size);
    let worker = async |log: &Log, tally: &Tally| {
        log.worker().register::<Long>().with_state(tally.clone()).with_state(marks.clone()).start().await
    };

    let tally = Tally::default();
    let first = worker(&log, &tally).await?;
    let start = Instant::now();
    let id = log.scheduler().schedule(Long { steps }).await?.id().clone();
    tally.wait(1, &first).await?;
    let live = start.elapsed();
    first.shutdown().await;
    let live_marks = marks.take();
    if live_marks.len() != steps {
        return Err(format!("{} bodies ran for {steps} steps", live_marks.len()).into());
    }

    let log = log.reopen(round).await?;
    let second = worker(&log, &Tally::default()).await?;
    let flow = log.scheduler().handle::<Long>(id);
    let start = Instant::now();
    flow.signal("go", &()).await?;
    let count = flow.result().await.map_err(|error| error.to_string())?;
    let result = start.elapsed();
    second.shutdown().await;
    let replayed: [(usize, Instant); 1] =
        marks.take().try_into().map_err(|marks: Vec<_>| format!("{} bodies ran in the replay", marks.len()))?;
    if count != steps + 1 {
        return Err(format!("the flow resulted in {count}").into());
    }

    let span = |from: usize, to: usize| each(live_marks[to].1 - live_marks[from].1, to - from);
    let (head, tail) = (span(0, END), span(steps - 1 - END, steps - 1));
    Ok(vec![
        Measure::micros("per step, first 1,000", head),
        Measure::micros("per step, last 1,000", tail),
        Measure::new("last ÷ first", "×", tail.as_secs_f64() / head.as_secs_f64()),
        Measure::millis("live, 10,000 steps", live),
        Measure::millis("signal to the next step, cold replay", replayed[0].1 - start),
        Measure::millis("signal to the result, cold replay", result),
    ])
}
