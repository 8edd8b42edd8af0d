//! The quick start: an order goes through its steps, waits for a timer and for a person, and ends.
//!
//! ```text
//! cargo run --example order
//! cargo run --example order -- orders.db
//! ```
//!
//! One sees the steps at work (two of them at once, one of them failing twice before it succeeds), then the
//! flow's history as a timeline. With a file, kill the program at any instant and give the command again: what
//! was done is not done again, and a finished order answers with its recorded receipt.

use ergon::{NextStep, StepRun, prelude::*};
use serde::{Deserialize, Serialize};

/// What is recorded when the order is scheduled: the input of its flow.
#[flow_type]
struct Order {
    item: String,
    cents: u64,
}

/// What arrives from outside.
#[derive(Serialize, Deserialize)]
struct Approval {
    by: String,
}

/// What the flow results in.
#[derive(Debug, Serialize, Deserialize)]
struct Receipt {
    payment: String,
    parcel: String,
    approved_by: String,
}

#[flow_type]
impl Order {
    /// Plain async Rust. When the process dies, the next one runs this from its beginning, and each call below
    /// that has a recorded outcome returns it at once.
    #[flow]
    async fn run(&self) -> ergon::Result<Receipt> {
        let place = self.reserve().await?;
        let (payment, label) = tokio::try_join!(self.charge(self.cents), self.print_label(&place))?;
        sleep(Duration::from_secs(1)).await; // would survive a restart, as would a sleep of a month
        let approval: Approval = signal("approval").await?;
        let parcel = self.ship(&label).await?;
        Ok(Receipt { payment, parcel, approved_by: approval.by })
    }

    #[step]
    async fn reserve(&self) -> ergon::Result<String> {
        println!("reserve: one {}", self.item);
        Ok("shelf 12".into())
    }

    /// Fails twice. The key is the same at each attempt, so that a real bank would charge once.
    #[step(retry(max_attempts = 5, backoff = "100ms..1s"), timeout = "10s")]
    async fn charge(&self, cents: u64) -> ergon::Result<String> {
        println!("charge: {cents} cents, attempt {}, key {}", attempt(), idempotency_key());
        if attempt() < 3 {
            return Err(ergon::Error::new("the bank does not answer"));
        }
        Ok("payment 4711".into())
    }

    #[step]
    async fn print_label(&self, place: &str) -> ergon::Result<String> {
        println!("print_label: {} from {place}", self.item);
        Ok("label 8".into())
    }

    #[step]
    async fn ship(&self, label: &str) -> ergon::Result<String> {
        println!("ship: with {label}");
        Ok("parcel 15".into())
    }
}

/// Says how long each attempt of a step took. What is replayed is no attempt.
struct Stopwatch;

impl Middleware for Stopwatch {
    async fn step(&self, step: &StepRun, next: NextStep<'_>) -> ergon::Result<()> {
        let began = std::time::Instant::now();
        let outcome = next.run().await;
        let how = if outcome.is_ok() { "done" } else { "failed" };
        println!("{} of {}: attempt {} {how} after {:?}", step.name, step.flow.id, step.attempt, began.elapsed());
        outcome
    }
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = match std::env::args().nth(1) {
        Some(file) => SqliteExecutionLog::open(file).await?,
        None => SqliteExecutionLog::open_in_memory().await?,
    };
    // Runs orders, in this process. Others may run in other processes on the same file.
    let worker = Worker::new(log.clone()).register::<Order>().middleware(Stopwatch).start().await?;

    // Scheduling an id again finds the first flow.
    let scheduler = Scheduler::new(log);
    let order = scheduler.schedule(Order { item: "teapot".into(), cents: 2_400 }).id("order-7").await?;

    // The signal may come before the flow waits for it. The key makes it count once.
    order.signal_once("approval", &Approval { by: "ada".into() }, "ada-1").await?;

    let receipt = order.result().await?;
    println!("\n{receipt:?}\n\n{}", order.history().await?);
    worker.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ergon::testing::{Setup, TestRuntime, check_determinism, crash_everywhere};

    use super::*;

    fn setup() -> Setup {
        Setup::new().register::<Order>()
    }

    /// What becomes of an order that ada approves.
    async fn receipt(runtime: &TestRuntime) -> Result<String, String> {
        let order = Order { item: "teapot".into(), cents: 2_400 };
        let order = runtime.scheduler().schedule(order).id("order-7").await.unwrap();
        order.signal("approval", &Approval { by: "ada".into() }).await.unwrap();
        let receipt = runtime.result(&order).await;
        receipt.map(|receipt| format!("{receipt:?}")).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn whatever_ends_first_the_receipt_is_the_same() {
        let report = check_determinism(setup, 8, receipt).await;
        assert!(report.result.is_ok_and(|receipt| receipt.contains("payment 4711")));
    }

    #[tokio::test]
    async fn a_crash_at_any_write_charges_with_the_same_key() {
        let report = crash_everywhere(setup, receipt).await;
        assert!(report.result.is_ok());
        assert_eq!(report.body_runs_max["charge"], 2, "only an attempt that died is made again");
    }

    #[tokio::test]
    async fn a_bank_that_never_answers_fails_the_order() {
        let closed = ergon::Error::new("closed for ever");
        let runtime = setup().step_fails("charge", 1..=5, &closed).start().await;
        let error = receipt(&runtime).await.unwrap_err();
        assert!(error.contains("closed for ever"), "{error}");
        assert_eq!((runtime.runs("charge"), runtime.runs("ship")), (5, 0));
    }
}
