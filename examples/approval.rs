//! Signals with a time limit: an expense waits for its approval, and goes to the next person when none comes.
//!
//! ```text
//! cargo run --example approval
//! ```
//!
//! One sees three expenses: one approved in time, one that nobody looks at and that escalates, one cancelled
//! while it waits; then the timeline of each.

use ergon::{FlowError, prelude::*};
use serde::{Deserialize, Serialize};

#[flow_type]
struct Expense {
    what: String,
    euros: u32,
}

/// What a person sends.
#[derive(Serialize, Deserialize)]
struct Decision {
    by: String,
    approved: bool,
}

/// What becomes of an expense; it is escalated when nobody answers in time.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Verdict {
    Approved { by: String },
    Refused { by: String },
    Escalated { to: String },
}

#[flow_type]
impl Expense {
    #[flow]
    async fn run(&self) -> ergon::Result<Verdict> {
        self.ask("the team lead").await?;
        // In earnest the limit is days: the flow is then but a row in the log.
        let decision: Option<Decision> = signal("decision").timeout(Duration::from_secs(1)).await?;
        Ok(match decision {
            Some(Decision { by, approved: true }) => Verdict::Approved { by },
            Some(Decision { by, approved: false }) => Verdict::Refused { by },
            None => {
                let boss = "the head of finance";
                self.ask(boss).await?;
                Verdict::Escalated { to: boss.into() }
            }
        })
    }

    #[step]
    async fn ask(&self, whom: &str) -> ergon::Result<()> {
        println!("mail to {whom}: {} for {} euros?", self.what, self.euros);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker = Worker::new(log.clone()).register::<Expense>().start().await?;
    let scheduler = Scheduler::new(log);
    let expense = |what: &str, euros| scheduler.schedule(Expense { what: what.into(), euros }).id(what);

    let train = expense("train", 80).await?;
    let hotel = expense("hotel", 420).await?;
    let yacht = expense("yacht", 90_000).await?;

    tokio::time::sleep(Duration::from_millis(300)).await; // people take their time
    train.signal("decision", &Decision { by: "ada".into(), approved: true }).await?;
    yacht.cancel("bought by mistake").await?;

    println!("train: {:?}", train.result().await?);
    match yacht.result().await {
        Err(FlowError::Cancelled(reason)) => println!("yacht: cancelled, {reason}"),
        other => println!("yacht: {other:?}"),
    }
    println!("hotel: {:?}", hotel.result().await?);

    // Whoever comes too late is told.
    let late = hotel.signal("decision", &Decision { by: "bob".into(), approved: true }).await;
    println!("a late answer: {}\n", late.err().map_or("accepted".into(), |error| error.to_string()));

    for flow in [train, hotel, yacht] {
        println!("{}\n", flow.history().await?);
    }
    worker.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ergon::testing::{Setup, crash_everywhere};

    use super::*;

    fn setup() -> Setup {
        Setup::new().register::<Expense>()
    }

    fn hotel() -> Expense {
        Expense { what: "hotel".into(), euros: 420 }
    }

    #[tokio::test]
    async fn the_next_person_is_asked_when_nobody_answers() {
        let runtime = setup().start().await;
        let verdict = runtime.run(hotel()).await.unwrap();
        assert_eq!(verdict, Verdict::Escalated { to: "the head of finance".into() });
        assert_eq!(runtime.runs("ask"), 2);
    }

    #[tokio::test]
    async fn no_crash_loses_an_answer() {
        let report = crash_everywhere(setup, async |runtime| {
            let hotel = runtime.scheduler().schedule(hotel()).id("hotel").await.unwrap();
            hotel.signal("decision", &Decision { by: "ada".into(), approved: true }).await.unwrap();
            runtime.result(&hotel).await.unwrap()
        })
        .await;
        assert_eq!(report.result, Verdict::Approved { by: "ada".into() });
    }
}
