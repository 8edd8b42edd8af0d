//! A bounded number at once, the first that succeeds, time limits on blocks: the same way in every replay.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use ergon::{
    ErrorKind, first_ok, map_concurrent,
    prelude::*,
    testing::{Setup, TestRuntime, crash_everywhere},
    timeout, try_map_concurrent,
};

const MINUTE: Duration = Duration::from_secs(60);
const NEWS: Mailbox<String> = Mailbox::new("news");

/// Takes so many minutes, and fails for an odd number.
#[step(retry = none)]
async fn work(minutes: u32) -> ergon::Result<u32> {
    sleep(minutes * MINUTE).await;
    if minutes % 2 == 1 { Err(ergon::Error::new(format!("{minutes} is odd"))) } else { Ok(minutes * 10) }
}

#[step]
async fn note(text: String) -> ergon::Result<String> {
    Ok(text)
}

#[flow]
async fn mapped(items: Vec<u32>, limit: usize) -> ergon::Result<String> {
    let mut order = Vec::new();
    let outcomes = map_concurrent(items, limit, |item| work(item)).await;
    for outcome in outcomes {
        order.push(outcome.map_or_else(|error| error.to_string(), |ten| ten.to_string()));
    }
    // What follows hangs on what came out.
    note(order.join(", ")).await
}

#[flow]
async fn tried(items: Vec<u32>) -> ergon::Result<String> {
    let outcome = try_map_concurrent(items, 3, |item| work(item)).await;
    note(format!("{outcome:?}")).await
}

#[flow]
async fn first(items: Vec<u32>) -> ergon::Result<String> {
    let outcome = first_ok(items.into_iter().map(|item| work(item))).await;
    note(format!("{outcome:?}")).await
}

/// A block of several calls with a limit; then what the block has not taken.
#[flow]
async fn limited(minutes: u32) -> ergon::Result<String> {
    let block = timeout(minutes * MINUTE, async {
        let done = work(2).await?;
        let child = child(tried(vec![2])).await?;
        let news = NEWS.recv().await?;
        Ok::<_, ergon::Error>(format!("{done} {child} {news}"))
    });
    let said = match block.await {
        Ok(said) => said?,
        Err(late) if late.kind() == ErrorKind::Timeout => late.to_string(),
        Err(other) => return Err(other),
    };
    let left = NEWS.recv_timeout(MINUTE).await?;
    note(format!("{said}; {left:?}")).await
}

fn setup() -> Setup {
    Setup::new().register::<mapped>().register::<tried>().register::<first>().register::<limited>()
}

/// What a flow comes to, whatever write its process dies at.
async fn everywhere<F>(flow: impl Fn() -> F) -> String
where
    F: ergon::Flow<Output = String, Error = ergon::Error>,
{
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let flow = runtime.scheduler().schedule(flow()).id("flow").await.unwrap();
        runtime.result(&flow).await.unwrap()
    })
    .await;
    assert!(report.crashes >= 2, "{report:?}");
    report.result
}

#[tokio::test]
async fn outcomes_come_in_the_order_of_the_items() {
    assert_eq!(everywhere(|| mapped(vec![6, 3, 4, 2], 2)).await, "60, 3 is odd, 40, 20");
    assert_eq!(everywhere(|| mapped(vec![4, 2], 0)).await, "40, 20");
    assert_eq!(everywhere(|| mapped(vec![4, 2], 100)).await, "40, 20");
}

#[tokio::test]
async fn no_more_run_at_once_than_are_allowed() {
    for (limit, most) in [(0, 1), (1, 1), (3, 3), (100, 10)] {
        let load = Arc::new(Load::default());
        let runtime = Setup::new().register::<counted>().with_state(Arc::clone(&load)).start().await;
        let (items, minutes) = (10, 2);
        assert_eq!(runtime.run(counted(items, limit)).await.unwrap(), items * minutes);
        assert_eq!(load.most.load(Ordering::SeqCst), most, "limit {limit}");
        assert_eq!(load.now.load(Ordering::SeqCst), 0);
    }
}

/// How many bodies run, and how many did at most.
#[derive(Debug, Default)]
struct Load {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// Without durable waits, so that a body runs for as long as its step.
#[flow]
async fn counted(items: u32, limit: usize) -> ergon::Result<u32> {
    Ok(try_map_concurrent(0..items, limit, |_| brief()).await?.into_iter().sum())
}

#[step]
async fn brief() -> ergon::Result<u32> {
    let load = state::<Arc<Load>>();
    load.most.fetch_max(load.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(3)).await;
    load.now.fetch_sub(1, Ordering::SeqCst);
    Ok(2)
}

#[tokio::test]
async fn the_first_error_in_time_ends_all() {
    assert_eq!(everywhere(|| tried(vec![8, 5, 3, 2])).await, "Err(3 is odd)");
    assert_eq!(everywhere(|| tried(vec![8, 2, 4, 2])).await, "Ok([80, 20, 40, 20])");
}

#[tokio::test]
async fn the_first_success_in_time_wins() {
    assert_eq!(everywhere(|| first(vec![8, 1, 4, 6])).await, "Ok(40)");
    assert_eq!(everywhere(|| first(vec![3, 1])).await, "Err([3 is odd, 1 is odd])");
    assert_eq!(everywhere(|| first(vec![])).await, "Err([])");
}

#[tokio::test]
async fn a_block_ends_in_time() {
    let late = |limit: &str| format!("the block exceeded its time limit of {limit}; None");
    assert_eq!(everywhere(|| limited(0)).await, late("0s"));
    assert_eq!(everywhere(|| limited(1)).await, late("1m"));
    assert_eq!(everywhere(|| limited(3)).await, late("3m"));
    assert_eq!(everywhere(|| limited(10)).await, late("10m"));
}

/// A message that comes in time is the block's; one that comes after is left for others.
#[tokio::test]
async fn a_block_that_is_late_takes_nothing() {
    for (after, expected) in
        [(5, "20 Ok([20]) extra; None"), (10, "the block exceeded its time limit of 10m; Some(\"extra\")")]
    {
        let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
            let flow = runtime.scheduler().schedule(limited(10)).id("flow").await.unwrap();
            runtime.idle().await;
            runtime.advance(after * MINUTE + Duration::from_secs(1)).await;
            flow.send(&NEWS, &"extra".into()).await.unwrap();
            runtime.result(&flow).await.unwrap()
        })
        .await;
        assert_eq!(report.result, expected);
    }
}
