//! Mailboxes: nothing is lost, nothing comes twice, whatever write a process dies at.

use ergon::{
    ErrorKind, FlowRef,
    prelude::*,
    send_once,
    storage::{Phase, Sent},
    testing::{Setup, TestRuntime, crash_everywhere},
};

const ITEMS: Mailbox<String> = Mailbox::new("items");
const NUMBERS: Mailbox<u32> = Mailbox::new("numbers");
const HOUR: Duration = Duration::from_secs(3600);

/// Takes messages until one says that it is the last.
#[flow]
async fn collect() -> ergon::Result<Vec<String>> {
    let mut items = Vec::new();
    loop {
        let item = ITEMS.recv().await?;
        if item == "end" {
            return Ok(items);
        }
        items.push(item);
    }
}

/// Sends from its own code and from a step, equal messages too, one after the other and side by side.
#[flow]
async fn produce(to: FlowRef<collect>) -> ergon::Result<()> {
    let item = |text: &str| send(&to, &ITEMS, &text.to_owned());
    item("a").await?;
    item("a").await?;
    tokio::try_join!(item("b"), item("b"))?;
    sleep(HOUR).await;
    from_a_step(to.clone()).await?;
    item("end").await
}

/// Fails after it has sent, and goes on in another attempt.
#[step(retry(max_attempts = 3, backoff = "1m"))]
async fn from_a_step(to: FlowRef<collect>) -> ergon::Result<()> {
    send(&to, &ITEMS, &"c".to_owned()).await?;
    send(&to, &ITEMS, &"c".to_owned()).await?;
    if attempt() < 3 {
        return Err(ergon::Error::new("not yet"));
    }
    send(&to, &ITEMS, &format!("attempt {}", attempt())).await
}

#[tokio::test]
async fn what_flows_and_steps_send_arrives_once() {
    let setup = || Setup::new().register::<collect>().register::<produce>();
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let collector = runtime.scheduler().schedule(collect()).id("collector").await.unwrap();
        let to = FlowRef::new(collector.id().clone());
        let producer = runtime.scheduler().schedule(produce(to)).id("producer").await.unwrap();
        runtime.result(&producer).await.unwrap();
        runtime.result(&collector).await.unwrap()
    })
    .await;
    assert_eq!(report.result, ["a", "a", "b", "b", "c", "c", "attempt 3"]);
    assert_eq!(report.body_runs_max["send"], 2, "a crash came between a message and its record");
}

/// Looks into its own mailbox, which holds what it has itself sent there.
#[flow]
async fn look() -> ergon::Result<Vec<Option<u32>>> {
    let mut seen = vec![NUMBERS.try_recv().await?];
    send(flow_id(), &NUMBERS, &1).await?;
    send(flow_id(), &NUMBERS, &2).await?;
    seen.push(NUMBERS.try_recv().await?);
    seen.push(NUMBERS.recv_timeout(HOUR).await?);
    // One that loses takes nothing, now or later.
    let loser = tokio::select! {
        biased;
        () = sleep(HOUR) => None,
        number = NUMBERS.recv() => Some(number?),
    };
    seen.push(loser);
    seen.push(NUMBERS.try_recv().await?);
    send(flow_id(), &NUMBERS, &3).await?;
    seen.push(from_within().await?);
    Ok(seen)
}

/// Takes a message in a step.
#[step]
async fn from_within() -> ergon::Result<Option<u32>> {
    NUMBERS.try_recv().await
}

#[tokio::test]
async fn to_look_is_to_see_what_is_there() {
    let report = crash_everywhere(
        || Setup::new().register::<look>(),
        async |runtime: &TestRuntime| {
            let flow = runtime.scheduler().schedule(look()).id("look").await.unwrap();
            let seen = runtime.result(&flow).await.unwrap();
            let taken = flow.history().await.unwrap();
            let signals = taken.records.iter().filter(|record| &*record.name == "numbers");
            let none = signals.filter(|record| record.phase == Phase::Failed).count();
            (seen, none)
        },
    )
    .await;
    let (seen, none) = report.result;
    assert_eq!(seen, [None, Some(1), Some(2), None, None, Some(3)]);
    assert_eq!(none, 2);
}

/// Says how sending went.
#[flow]
async fn report(to: FlowId) -> ergon::Result<Option<ErrorKind>> {
    Ok(send_once(&to, &NUMBERS, &7, "seven").await.err().map(|error| error.kind()))
}

#[flow]
async fn hold() -> ergon::Result<Vec<u32>> {
    let mut numbers = vec![NUMBERS.recv().await?];
    while let Some(number) = NUMBERS.recv_timeout(HOUR).await? {
        numbers.push(number);
    }
    Ok(numbers)
}

#[tokio::test]
async fn a_senders_key_counts_for_all_senders() {
    let runtime = Setup::new().register::<hold>().register::<report>().start().await;
    let hold = runtime.scheduler().schedule(hold()).id("hold").await.unwrap();
    assert_eq!(hold.send_once(&NUMBERS, &7, "seven").await.unwrap(), Sent::Accepted);
    assert_eq!(hold.send_once(&NUMBERS, &7, "seven").await.unwrap(), Sent::Duplicate);
    hold.signal("numbers", &8).await.unwrap();
    runtime.scheduler().send(hold.id(), &NUMBERS, &9).await.unwrap();
    for sender in ["one", "two"] {
        let sender = runtime.scheduler().schedule(report(hold.id().clone())).id(sender).await.unwrap();
        assert_eq!(runtime.result(&sender).await.unwrap(), None);
    }
    assert_eq!(runtime.result(&hold).await.unwrap(), [7, 8, 9]);
}

#[tokio::test]
async fn a_receiver_that_is_not_there_is_told_of() {
    let runtime = Setup::new().register::<hold>().register::<report>().start().await;
    let gone = FlowId::new("gone").unwrap();
    assert_eq!(runtime.run(report(gone)).await.unwrap(), Some(ErrorKind::NotFound));
    let hold = runtime.scheduler().schedule(hold()).id("hold").await.unwrap();
    hold.send(&NUMBERS, &1).await.unwrap();
    runtime.result(&hold).await.unwrap();
    let late = runtime.run(report(hold.id().clone())).await.unwrap();
    assert_eq!(late, Some(ErrorKind::Finished));
    assert_eq!(runtime.runs("send"), 2, "neither is tried again");
}
