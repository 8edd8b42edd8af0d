//! Mailboxes: an auction takes bids for a while, from outside and from other flows, and none is lost or counted twice. It
//! sells lot after lot, in one flow that begins again after each.
//!
//! ```text
//! cargo run --example auction
//! ```
//!
//! One sees bids arrive, one of them sent twice with one key, the lots as they are sold, followed live, the winner, who
//! hears of it in a mailbox of its own, a lot that nobody wants, what the auctioneer said from some place on, and the
//! timeline of the auction's last run.

use ergon::{FlowRef, prelude::*};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};

/// What is sent to an auction. Whoever sends and whoever takes share the mailbox's name and its type.
#[derive(Serialize, Deserialize)]
struct Bid {
    by: String,
    euros: u32,
    /// Where the bidder waits to hear of it.
    bidder: Option<FlowRef<bidder>>,
}

const BIDS: Mailbox<Bid> = Mailbox::new("bids");
const NEWS: Mailbox<String> = Mailbox::new("news");

/// Sells one lot after the other: takes bids until none has come for a while, says who won, and begins again with the
/// lots that are left. Its history is that of one lot, however many there are.
#[flow]
async fn auction(mut lots: Vec<String>, mut sold: Vec<String>) -> ergon::Result<Vec<String>> {
    let Some(lot) = lots.pop() else { return Ok(sold) };
    let mut best: Option<Bid> = None;
    let mut bids = 0;
    // In earnest that is a day: the flow is then but a row in the log.
    while let Some(bid) = BIDS.recv_timeout(Duration::from_secs(1)).await? {
        bids += 1;
        set_status(&format!("{lot}: {bids} bids"))?;
        if best.as_ref().is_none_or(|best| bid.euros > best.euros) {
            best = Some(bid);
        }
    }
    let news = match &best {
        Some(best) => format!("{} has the {lot} for {} euros, of {bids} bids", best.by, best.euros),
        None => format!("nobody wants the {lot}"),
    };
    strike(&lot).await?;
    if let Some(bidder) = best.and_then(|best| best.bidder) {
        // Once, whatever becomes of this process.
        send(&bidder, &NEWS, &news).await?;
    }
    emit("sold", &news)?;
    sold.push(news);
    continue_as_new(auction(lots, sold)).await
}

/// What a step tells is seen while its body still runs.
#[step]
async fn strike(lot: &str) -> ergon::Result<()> {
    for call in ["once", "twice", "gone"] {
        emit("hammer", &format!("the {lot}: {call}"))?;
    }
    Ok(())
}

/// Bids, and waits to hear of it.
#[flow]
async fn bidder(at: FlowRef<auction>, by: String, euros: u32) -> ergon::Result<Option<String>> {
    bid(at, by, euros).await?;
    NEWS.recv_timeout(Duration::from_secs(3)).await
}

/// The bid arrives once, though the body may run again.
#[step]
async fn bid(at: FlowRef<auction>, by: String, euros: u32) -> ergon::Result<()> {
    send(&at, &BIDS, &Bid { by, euros, bidder: Some(FlowRef::new(flow_id())) }).await
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker = Worker::new(log.clone()).register::<auction>().register::<bidder>().start().await?;
    let scheduler = Scheduler::new(log);

    let auction = scheduler.schedule(auction(vec!["lamp".into(), "clock".into()], Vec::new())).id("auction").await?;
    let at = FlowRef::new(auction.id().clone());
    let ada = scheduler.schedule(bidder(at, "ada".into(), 300)).id("ada").await?;

    // From outside; a sender that is not sure whether it was heard sends again with the same key.
    let bid = Bid { by: "bob".into(), euros: 250, bidder: None };
    for _ in 0..2 {
        println!("bob bids: {:?}", auction.send_once(&BIDS, &bid, "bob-1").await?);
    }

    // Live: each lot as soon as it is sold, whatever run of the flow it was in.
    let mut lots = auction.stream::<String>("sold");
    while let Some(lot) = lots.try_next().await? {
        println!("sold {}: {}", lot.offset, lot.value);
    }
    // Where somebody left off who had seen the first lot.
    let mut calls = auction.stream::<String>("hammer").after(3);
    while let Some(call) = calls.try_next().await? {
        println!("call {}: {}", call.offset, call.value);
    }
    println!("the last status: {:?}", auction.status_value::<String>().await?.map(|status| status.value));
    println!("the auction: {}", auction.result().await?.join("; "));
    println!("ada hears: {:?}", ada.result().await?);
    println!("\n{}", auction.history().await?);
    worker.shutdown().await;
    Ok(())
}
