//! Couriers: the first that has time, a confirmation that may not come, and deliveries that take too long.
//!
//! ```text
//! cargo run --example courier
//! ```
//!
//! One sees two deliveries say what they are at. Of three couriers the first that is free takes each of them. The first
//! delivery is confirmed, heeds the notes that came with it, and leaves at the next full moment; nobody confirms the second,
//! which asks for a while, waits on, and is ended by its time limit: the courier is called back before that.

use ergon::{Admin, Filter, first_ok, now, on_cancel, prelude::*, set_label, timeout};
use futures::StreamExt;

const NOTES: Mailbox<String> = Mailbox::new("notes");

/// Takes a second at most, whatever it waits for, unless it is scheduled with another limit.
#[flow(timeout = "1s")]
async fn deliver(what: String) -> ergon::Result<String> {
    set_status("looking for a courier")?;
    let asked = first_ok([ask("Ann"), ask("Bob"), ask("Cleo")]);
    let courier = asked.await.map_err(|mut refusals| refusals.remove(0))?;
    set_label("courier", courier.clone());
    let way = async {
        set_status(&format!("{courier} waits to be confirmed"))?;
        let confirmed = timeout(Duration::from_millis(200), signal::<String>("confirmed"));
        let by = match confirmed.await {
            Ok(by) => by?,
            Err(late) => {
                set_status(&format!("{courier} waits on: {late}"))?;
                signal("confirmed").await?
            }
        };
        // Those that are there by now.
        let mut notes = Vec::new();
        while let Some(note) = NOTES.try_recv().await? {
            notes.push(note);
        }
        let leaves_at = now().saturating_add(Duration::from_millis(100));
        set_status(&format!("{courier} is about to leave"))?;
        sleep_until(leaves_at).await;
        set_status("on its way")?;
        Ok(format!("{what}, by {courier}, confirmed by {by}, notes: {}", notes.join(" and ")))
    };
    on_cancel(way, async |reason| call_back(&courier, &reason).await).await
}

/// Only one of them has time.
#[step(retry = none)]
async fn ask(courier: &str) -> ergon::Result<String> {
    if courier == "Bob" { Ok(courier.into()) } else { Err(ergon::Error::new(format!("{courier} is busy"))) }
}

#[step]
async fn call_back(courier: &str, reason: &str) -> ergon::Result<()> {
    set_status(&format!("{courier} comes home"))?;
    println!("{courier} is called back: {reason}");
    Ok(())
}

/// Prints what a flow says it is at, until it ends.
async fn follow(name: &str, flow: &FlowHandle<String, ergon::Error>) {
    let mut statuses = flow.watch_status::<String>();
    while let Some(Ok(status)) = statuses.next().await {
        println!("{name}: {}", status.value);
    }
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker = Worker::new(log.clone()).register::<deliver>().start().await?;
    let scheduler = Scheduler::new(log.clone());

    let cake = scheduler.schedule(deliver("a cake".into())).id("cake").await?;
    cake.send(&NOTES, &"ring twice".into()).await?;
    cake.send(&NOTES, &"mind the dog".into()).await?;
    cake.signal("confirmed", "Ada").await?;
    let (result, ()) = tokio::join!(cake.result(), follow("cake", &cake));
    println!("cake: delivered {}\n", result?);

    let piano = scheduler.schedule(deliver("a piano".into())).id("piano").timeout(Duration::from_millis(900)).await?;
    let (result, ()) = tokio::join!(piano.result(), follow("piano", &piano));
    if let Err(error) = result {
        println!("piano: {error}\n");
    }

    let of_bob = Admin::new(log).list(&Filter::all().with_label("courier", "Bob"), None, 10).await?;
    for flow in of_bob.flows {
        println!("Bob had: {} ({})", flow.id, flow.state);
    }
    worker.shutdown().await;
    Ok(())
}
