//! The benchmark's rounds on `duroxide` and its SQLite provider.
//!
//! The provider sets `synchronous=WAL`, which SQLite does not know and reads as NORMAL.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use duroxide::{
    ActivityContext, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
    providers::sqlite::SqliteProvider,
    runtime::{Runtime, registry::ActivityRegistry},
};
use ergon_bench_round::{Alone, Backend, Drained, Durability, Failure, Measure, Round, STEPS, Work, answer};

/// How long a flow may take.
const PATIENCE: Duration = Duration::from_secs(100);

fn main() -> ExitCode {
    answer(async |round| match (round.case.work, round.case.backend, round.case.durability) {
        (Work::Drain | Work::Scaling, Backend::Sqlite, Durability::Normal) => drain(round).await,
        (Work::Alone, Backend::Sqlite, Durability::Normal) => alone(round).await,
        _ => round.refusal(),
    })
}

async fn open(round: &Round) -> Result<Arc<SqliteProvider>, Failure> {
    // It does not make the file.
    let path = round.dir.join("duroxide.db");
    std::fs::File::create(&path)?;
    Ok(Arc::new(SqliteProvider::new(&format!("sqlite:{}", path.display()), None).await?))
}

async fn runtime(store: &Arc<SqliteProvider>) -> Arc<Runtime> {
    let activities = ActivityRegistry::builder().register("Add", |_: ActivityContext, input: String| async move {
        let (total, step) = input.split_once(' ').ok_or("no two numbers")?;
        let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
        Ok((number(total)? + number(step)?).to_string())
    });
    let flows =
        OrchestrationRegistry::builder().register("Five", |ctx: OrchestrationContext, input: String| async move {
            let mut total = input;
            for step in 1..=STEPS {
                total = ctx.schedule_activity("Add", format!("{total} {step}")).await?;
            }
            Ok(total)
        });
    Runtime::start_with_store(store.clone(), activities.build(), flows.build()).await
}

async fn drain(round: &Round) -> Result<Vec<Measure>, Failure> {
    let store = open(round).await?;
    let client = Client::new(store.clone());
    let mut clock = Drained::start();
    for number in 0..round.case.size {
        client.start_orchestration(format!("flow-{number}"), "Five", number.to_string()).await?;
    }
    clock.enqueued();
    let runtime = runtime(&store).await;
    for number in 0..round.case.size {
        expect(&client, number as u64).await?;
    }
    clock.end();
    runtime.shutdown(None).await;
    store.get_pool().close().await;
    clock.figures(&round.case, &round.dir, "flows")
}

async fn alone(round: &Round) -> Result<Vec<Measure>, Failure> {
    let store = open(round).await?;
    let client = Client::new(store.clone());
    let _runtime = runtime(&store).await;
    let mut flows = Alone::new(1, &round.case);
    while let Some(number) = flows.number() {
        let start = Instant::now();
        client.start_orchestration(format!("flow-{number}"), "Five", number.to_string()).await?;
        expect(&client, number).await?;
        flows.took(start.elapsed());
    }
    Ok(flows.figures())
}

async fn expect(client: &Client, number: u64) -> Result<(), Failure> {
    let status = client.wait_for_orchestration(&format!("flow-{number}"), PATIENCE).await;
    match status.map_err(|error| format!("{error:?}"))? {
        OrchestrationStatus::Completed { output, .. } if output == (number + 15).to_string() => Ok(()),
        other => Err(format!("flow {number} ended as {other:?}").into()),
    }
}
