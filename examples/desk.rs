//! An operator's desk: what waits, what failed and why, many repaired or cancelled at once, moved to another log, forgotten.
//!
//! ```text
//! cargo run --example desk
//! ```
//!
//! One sees invoices of two customers go through a worker with one slot: the urgent ones first, those that are due later
//! not at all. The bank is down, and what failed is listed, explained and retried in one go, after a dry run says how many
//! that would be; what is not wanted any more is cancelled. Then the log moves: all flows are written as lines, and read
//! into another log. There the worker forgets those that have ended.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ergon::{Admin, Filter, FlowState, prelude::*, storage::PrunePolicy};
use futures::TryStreamExt;

/// Whether the bank answers.
type Bank = Arc<AtomicBool>;

/// Forgotten a month after its end, unless a worker is told otherwise.
#[flow(retention = "30d")]
async fn invoice(number: u32) -> ergon::Result<String> {
    collect(number).await?;
    Ok(format!("{number} is paid"))
}

#[step(retry = none)]
async fn collect(number: u32) -> ergon::Result<()> {
    println!("  collect {number}");
    if state::<Bank>().load(Ordering::Acquire) { Ok(()) } else { Err(ergon::Error::new("the bank does not answer")) }
}

fn of(customer: &str) -> Filter {
    Filter::all().with_label("customer", customer)
}

/// Waits until so many of these flows are left.
async fn down_to(admin: &Admin, left: u64, filter: &Filter) -> ergon::Result<()> {
    while admin.count(filter).await? > left {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn counts(admin: &Admin) -> ergon::Result<()> {
    for count in admin.counts(&Filter::all()).await? {
        println!("  {} {} in queue {}: {}", count.flow_type, count.state, count.queue, count.flows);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let (scheduler, admin, bank) = (Scheduler::new(log.clone()), Admin::new(log.clone()), Bank::default());

    for number in 1..=6 {
        let customer = if number % 2 == 1 { "Ada" } else { "Bob" };
        let scheduling =
            scheduler.schedule(invoice(number)).id(format!("invoice-{number}")).label("customer", customer);
        // The last one is urgent, and the fifth is not due before tomorrow.
        let scheduling = match number {
            6 => scheduling.priority(10),
            5 => scheduling.delay(Duration::from_secs(24 * 3600)),
            _ => scheduling,
        };
        scheduling.queue("bank").await?;
    }
    println!("six invoices");
    counts(&admin).await?;

    println!("the worker");
    let worker = Worker::new(log).register::<invoice>().with_state(Bank::clone(&bank));
    let worker = worker.queues(["bank"]).slots(1).start().await?;
    down_to(&admin, 1, &Filter::all().with_state(FlowState::Scheduled)).await?;
    down_to(&admin, 0, &Filter::all().with_state(FlowState::Running)).await?;

    let failed = Filter::all().with_state(FlowState::Failed).with_reason("bank");
    let page = admin.list(&failed, None, 10).await?;
    for flow in &page.flows {
        println!("  {}: {}", flow.id, flow.reason.as_deref().unwrap_or_default());
    }
    println!("{}\n", admin.describe(&page.flows[0].id).await?);

    println!("to retry: {}", admin.retry_all(&failed).dry_run().await?);
    bank.store(true, Ordering::Release);
    println!("retried:  {}", admin.retry_all(&failed).await?);
    down_to(&admin, 1, &Filter::all().with_state(FlowState::Scheduled)).await?;
    down_to(&admin, 0, &Filter::all().with_state(FlowState::Running)).await?;
    println!("to cancel: {}", admin.cancel_all(&of("Ada"), "closed the account").dry_run().await?);
    println!("cancelled: {}", admin.cancel_all(&of("Ada"), "closed the account").await?);
    println!("to delete: {}", admin.delete_all(&of("Bob")).limit(1).dry_run().await?);
    println!("deleted:   {}", admin.delete_all(&of("Bob")).limit(1).await?);
    worker.shutdown().await;
    counts(&admin).await?;

    println!("another log");
    let lines: Vec<String> = admin.export(Filter::all()).try_collect().await?;
    let other = InMemoryExecutionLog::new();
    let there = Admin::new(other.clone());
    there.import(lines.iter().map(Ok)).await?;
    println!("  flows there: {}", there.count(&Filter::all()).await?);
    // In place of what their type says.
    let retention = PrunePolicy::older_than(Duration::ZERO).with_flow_type("invoice").with_state(FlowState::Completed);
    let retention = retention.with_keep(1);
    let worker = Worker::new(other).register::<invoice>().with_state(bank).retention(retention);
    let worker = worker.retention_interval(Duration::from_millis(20)).start().await?;
    down_to(&there, 1, &Filter::all().with_state(FlowState::Completed)).await?;
    println!("  flows there when all but the last completed one are forgotten: {}", there.count(&Filter::all()).await?);
    worker.shutdown().await;
    Ok(())
}
