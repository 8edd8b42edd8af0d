//! Repair: a flow that has failed is forked with a corrected value, and one that completed is taken back.
//!
//! ```text
//! cargo run --example repair
//! ```
//!
//! One sees an order fail because of its address, a fork of it that is delivered without being charged again, and the
//! fork taken back to the delivery, which is made once more: by itself, and with all others that were delivered.

use ergon::{Admin, Filter, FlowState, admin::Cut, prelude::*};

#[flow]
async fn order(address: String, cents: u32) -> ergon::Result<String> {
    let payment = charge(cents).await?;
    deliver(&address, &payment).await
}

#[step]
async fn charge(cents: u32) -> ergon::Result<String> {
    println!("charge: {cents} cents");
    Ok(format!("payment of {cents}"))
}

#[step(retry = none)]
async fn deliver(address: &str, payment: &str) -> ergon::Result<String> {
    println!("deliver: to {address}");
    if address.is_empty() { Err(ergon::Error::new("no address")) } else { Ok(format!("{payment}, sent to {address}")) }
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker = Worker::new(log.clone()).register::<order>().start().await?;
    let scheduler = Scheduler::new(log.clone());
    let admin = Admin::new(log);

    let failed = scheduler.schedule(order(String::new(), 4200)).id("order-7").await?;
    if let Err(error) = failed.result().await {
        println!("order-7: {error}");
    }
    println!("{}\n", admin.attention(&Filter::all(), None, 10).await?);

    // What was charged is taken over; the delivery is made with the right address.
    let corrected = order("12 Rue Cler, Paris".into(), 4200);
    let fork = admin.fork(failed.id()).at(Cut::first("deliver")).input(corrected).id("order-7b").await?;
    let fork = scheduler.handle::<order>(fork);
    println!("order-7b: {}\n", fork.result().await?);
    println!("{}\n", fork.history().await?);

    // The parcel was lost: back to where it was delivered.
    admin.reset(fork.id(), Cut::first("deliver")).await?;
    println!("order-7b once more: {}", fork.result().await?);

    // The whole van was lost.
    let delivered = Filter::all().with_state(FlowState::Completed);
    println!("to take back: {}", admin.reset_all(&delivered, Cut::first("deliver")).dry_run().await?);
    println!("taken back: {}", admin.reset_all(&delivered, Cut::first("deliver")).await?);
    println!("order-7b again: {}", fork.result().await?);

    // Many at once; first, how many.
    let of_today = Filter::all().with_state(FlowState::Failed);
    println!("to fork: {}", admin.fork_all(&of_today, Cut::Start).dry_run().await?);
    worker.shutdown().await;
    Ok(())
}
