//! The benchmark's rounds on `dbos`, on PostgreSQL.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use dbos::{Config, DBOS, Enqueue, QueueConflict, QueueOptions, StartOptions, WorkflowRef};
use ergon_bench_round::{Alone, Backend, Drained, Failure, Measure, Round, STEPS, System, Work, answer};
use futures::{StreamExt, TryStreamExt, stream};

const QUEUE: &str = "flows";
/// The default, of 1 s, would be all that is measured.
const POLL: Duration = Duration::from_millis(100);

async fn five(number: u64) -> dbos::Result<u64> {
    let mut total = number;
    for step in 1..=STEPS {
        total = dbos::step("add", || async move { dbos::Result::Ok(total + step) }).await?;
    }
    Ok(total)
}

fn main() -> ExitCode {
    answer(async |round| match (round.case.work, round.case.system, round.case.backend) {
        (Work::Drain | Work::Scaling, System::Dbos, Backend::Postgres) => drain(round).await,
        (Work::Drain, System::DbosQueue, Backend::Postgres) => drain_queue(round).await,
        (Work::Alone, System::Dbos, Backend::Postgres) => alone(round).await,
        _ => round.refusal(),
    })
}

async fn launch(round: &Round) -> Result<(DBOS, WorkflowRef<u64, u64>), Failure> {
    let config = Config {
        app_version: Some("1".into()),
        outcome_poll_interval: Some(POLL),
        ..Config::new("bench", round.server()?)
    };
    let dbos = DBOS::new(config);
    let flow = dbos.register_workflow("five", five)?;
    dbos.launch().await?;
    Ok((dbos, flow))
}

/// As many at once as the case says, each started by whoever waits for it.
async fn drain(round: &Round) -> Result<Vec<Measure>, Failure> {
    let (dbos, flow) = launch(round).await?;
    let mut clock = Drained::start();
    stream::iter(0..round.case.size as u64)
        .map(|number| {
            let flow = &flow;
            async move { expect(number, flow.run(number).await?) }
        })
        .buffer_unordered(round.case.concurrency)
        .try_collect::<()>()
        .await?;
    clock.end();
    dbos.shutdown().await;
    clock.figures(&round.case, &round.dir, "flows")
}

async fn drain_queue(round: &Round) -> Result<Vec<Measure>, Failure> {
    let (dbos, flow) = launch(round).await?;
    let mut clock = Drained::start();
    let mut flows = Vec::with_capacity(round.case.size);
    for number in 0..round.case.size as u64 {
        let options = StartOptions { queue: Some(Enqueue::new(QUEUE)), ..StartOptions::default() };
        flows.push((number, flow.start_with(number, options).await?));
    }
    clock.enqueued();
    // Its queue is taken from as soon as it is there.
    let slots = Some(i32::try_from(round.case.concurrency)?);
    let options = QueueOptions { worker_concurrency: slots, polling_interval: POLL, ..QueueOptions::default() };
    dbos.register_queue(QUEUE, options, QueueConflict::UpdateIfLatestVersion).await?;
    for (number, flow) in flows {
        expect(number, flow.result().await?)?;
    }
    clock.end();
    dbos.shutdown().await;
    clock.figures(&round.case, &round.dir, "flows")
}

async fn alone(round: &Round) -> Result<Vec<Measure>, Failure> {
    let (_dbos, flow) = launch(round).await?;
    let mut flows = Alone::new(5, &round.case);
    while let Some(number) = flows.number() {
        let start = Instant::now();
        expect(number, flow.run(number).await?)?;
        flows.took(start.elapsed());
    }
    Ok(flows.figures())
}

fn expect(number: u64, result: u64) -> Result<(), Failure> {
    if result == number + 15 { Ok(()) } else { Err(format!("flow {number} resulted in {result}").into()) }
}
