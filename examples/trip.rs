//! A saga: a trip is a flight, a hotel and a car, or nothing. What was booked is released when the rest fails.
//!
//! ```text
//! cargo run --example trip
//! ```
//!
//! One sees five trips: one that is booked, one whose car is not to be had and whose hotel and flight are released again,
//! in reverse order, and one whose hotel cannot be released at first: it fails, and goes on with that release when it is
//! retried. Two wait for a visa. One of them is cancelled: what was booked by then is released before it has ended. The
//! other one is abandoned: it ends at once, and nothing is released. The timelines show it all. What must not be
//! repeated, the payment, is a step that runs at most once.

use std::sync::atomic::{AtomicBool, Ordering};

use ergon::{Admin, ErrorKind, prelude::*, saga};
use futures::StreamExt;

#[flow_type]
struct Trip {
    to: String,
}

/// Whether the hotel answers its phone.
struct Phone(AtomicBool);

#[flow_type]
impl Trip {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let booked = saga(async |saga| {
            let flight = self.book("flight").await?;
            saga.undo(move || self.release("flight", flight));
            let hotel = self.book("hotel").await?;
            saga.undo(move || self.release("hotel", hotel));
            let car = self.book("car").await?;
            saga.undo(move || self.release("car", car));
            if ["Lima", "Cusco"].contains(&&*self.to) {
                set_status("waits for the visa")?;
                signal::<String>("visa").await?;
            }
            match self.pay(flight + hotel + car).await {
                Err(error) if error.kind() == ErrorKind::UnknownOutcome => self.look_into_the_account().await?,
                paid => paid?,
            }
            Ok(format!("flight {flight}, hotel {hotel}, car {car}"))
        });
        Ok(booked.await?)
    }

    #[step]
    async fn book(&self, what: &str) -> ergon::Result<u32> {
        if what == "car" && !["Rome", "Lima", "Cusco"].contains(&&*self.to) {
            return Err(ergon::Error::permanent(format!("there is no car in {}", self.to)));
        }
        println!("{}: the {what} is booked", self.to);
        Ok(u32::try_from(self.to.len() * 100 + what.len())?)
    }

    /// The bank knows no idempotency keys: told twice, it pays twice.
    #[step(at_most_once)]
    async fn pay(&self, euros: u32) -> ergon::Result<()> {
        println!("{}: {euros} euros are paid", self.to);
        Ok(())
    }

    /// When a process has died between the payment and its record.
    #[step]
    async fn look_into_the_account(&self) -> ergon::Result<()> {
        println!("{}: is the trip paid?", self.to);
        Ok(())
    }

    /// In earnest this is `retry = persistent`: it must succeed in the end.
    #[step(retry(max_attempts = 2, backoff = "10ms"))]
    async fn release(&self, what: &str, number: u32) -> ergon::Result<()> {
        if what == "hotel" && self.to == "Bergen" && !state::<Phone>().0.load(Ordering::SeqCst) {
            return Err(ergon::Error::new("the hotel does not answer"));
        }
        println!("{}: the {what} {number} is released", self.to);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker = Worker::new(log.clone()).register::<Trip>().with_state(Phone(AtomicBool::new(false)));
    let worker = worker.start().await?;
    let scheduler = Scheduler::new(log.clone());
    let mut trips = Vec::new();
    for to in ["Rome", "Oslo", "Bergen"] {
        let trip = scheduler.schedule(Trip { to: to.into() }).id(to).await?;
        match trip.result().await {
            Ok(booked) => println!("{to}: {booked}\n"),
            Err(error) => println!("{to}: {error}\n"),
        }
        trips.push(trip);
    }

    for to in ["Lima", "Cusco"] {
        let trip = scheduler.schedule(Trip { to: to.into() }).id(to).await?;
        if let Some(status) = trip.watch_status::<String>().next().await {
            println!("{to}: {}", status?.value);
        }
        if to == "Lima" {
            trip.cancel("the visa was refused").await?;
        } else {
            // There is nobody left who would take anything back.
            Admin::new(log.clone()).abandon(trip.id(), "the agency is bankrupt").await?;
        }
        if let Err(error) = trip.result().await {
            println!("{to}: {error}\n");
        }
        trips.push(trip);
    }
    worker.shutdown().await;

    // The next morning somebody is there.
    let worker = Worker::new(log).register::<Trip>().with_state(Phone(AtomicBool::new(true))).start().await?;
    let bergen = &trips[2];
    bergen.retry().await?;
    if let Err(error) = bergen.result().await {
        println!("Bergen, retried: {error}\n");
    }
    for trip in trips {
        println!("{}\n", trip.history().await?);
    }
    worker.shutdown().await;
    Ok(())
}
