//! What operators are told, and what they do.

use ergon::{
    Filter, FlowState,
    admin::{Problem, Wait},
    prelude::*,
    storage::{ClaimRequest, ClaimTarget, Commit, Next, Wake},
    testing::{Setup, TestRuntime},
};
use expect_test::expect;

const HOUR: Duration = Duration::from_secs(3600);

/// Waits for a timer, a signal with a time limit, a child, and the next attempt of a step, all at once.
#[flow(timeout = "30d")]
async fn order(id: u32) -> ergon::Result<u32> {
    let approval = ergon::signal::<u32>("approval").timeout(HOUR * 48);
    let ((), _, _, _) = tokio::join!(sleep(HOUR * 24), approval, child(part(id)), flaky());
    Ok(id)
}

#[flow]
async fn part(id: u32) -> ergon::Result<()> {
    child(part_of_part(id)).id("grandchild").start_detached().await?;
    let _: u32 = signal("ready").await?;
    Ok(())
}

#[flow]
async fn part_of_part(id: u32) -> ergon::Result<u32> {
    Err(ergon::Error::new(format!("part {id} is out of stock")))
}

#[step(retry(max_attempts = 3, backoff = "2h"))]
async fn flaky() -> ergon::Result<()> {
    Err(ergon::Error::new("not yet"))
}

async fn runtime() -> TestRuntime {
    Setup::new().register::<order>().register::<part>().register::<part_of_part>().start().await
}

#[tokio::test]
async fn a_description_says_what_a_flow_waits_for() {
    let runtime = runtime().await;
    let scheduler = runtime.scheduler();
    let handle = scheduler.schedule(order(7)).id("order-7").label("customer", "ada").await.unwrap();
    runtime.idle().await;
    handle.signal("other", &"hello").await.unwrap();
    let described = scheduler.admin().describe(handle.id()).await.unwrap();
    assert_eq!(described.info().state, FlowState::Suspended);
    let start = described.info().created_at;
    let after = |hours: u32| start.saturating_add(HOUR * hours);
    let id = |text: &str| FlowId::new(text).unwrap();
    let mut waits = described.waits.clone();
    waits.sort_by_key(|wait| format!("{wait:?}"));
    // A backoff has some randomness.
    let Wait::Retry { at: retry_at, .. } = waits[1].clone() else { panic!("{waits:?}") };
    assert!(retry_at > after(1) && retry_at <= after(3), "{retry_at}");
    assert_eq!(
        waits,
        [
            Wait::Child { flow: id("order-7/3"), state: Some(FlowState::Suspended) },
            Wait::Retry { step: "flaky".into(), failed: 1, at: retry_at },
            Wait::Signal { flow: id("order-7"), name: "approval".into(), until: Some(after(48)) },
            Wait::TimeLimit(after(24 * 30)),
            Wait::Timer { name: "sleep".into(), at: after(24) },
        ]
    );
    assert_eq!((described.messages.len(), described.more_messages, described.more_children), (1, false, false));
    assert_eq!(described.problem, None);
    let [tree] = &described.children[..] else { panic!("{:?}", described.children) };
    expect![[r#"
        part "order-7/3" suspended
          part_of_part "grandchild" failed (on its own): part 7 is out of stock
    "#]]
    .assert_eq(&tree.to_string());
    let part = scheduler.admin().describe(&id("order-7/3")).await.unwrap();
    assert_eq!(part.waits, [Wait::Signal { flow: id("order-7/3"), name: "ready".into(), until: None }]);
    let text = described.to_string().replace(&start.to_string(), "START");
    for line in [
        "order \"order-7\" (version 1): suspended",
        "  labels: customer=ada",
        "scheduler.signal(\"order-7\", \"approval\", …) wakes it",
        "for the end of child order-7/3, which is suspended",
        "for attempt 2 of step \"flaky\"",
        "   1  other  \"hello\"",
        "attempt 1 failed",
    ] {
        assert!(text.contains(line), "{line:?} is in\n{text}");
    }
    let unknown = scheduler.admin().describe(&id("nobody")).await.unwrap_err();
    assert_eq!(unknown.kind(), ergon::storage::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_description_says_what_a_person_can_do() {
    let runtime = runtime().await;
    let scheduler = runtime.scheduler();
    let failed = scheduler.schedule(part_of_part(9)).id("failed").await.unwrap();
    runtime.idle().await;
    let described = scheduler.admin().describe(failed.id()).await.unwrap();
    assert!(matches!(&described.problem, Some(Problem::Failed(reason)) if reason.contains("part 9 is out of stock")));
    assert!(described.waits.is_empty(), "{:?}", described.waits);
    assert!(described.to_string().contains("needs a person: it failed: "), "{described}");
}

#[tokio::test]
async fn all_that_needs_a_person_is_one_query_away() {
    let runtime = runtime().await;
    let admin = runtime.scheduler().admin();
    assert!(admin.attention(&Filter::all(), None, 10).await.unwrap().is_empty());
    for number in 0..5_u32 {
        let id = format!("failed-{number}");
        let scheduling = runtime.scheduler().schedule(part_of_part(number)).id(id);
        scheduling.label("even", (number % 2 == 0).to_string()).await.unwrap();
    }
    // Nobody claims from this queue.
    runtime.scheduler().schedule(order(1)).queue("forgotten").await.unwrap();
    runtime.idle().await;
    let page = admin.attention(&Filter::all(), None, 3).await.unwrap();
    assert_eq!((page.flows.len(), page.neglected.len()), (3, 0));
    runtime.advance(HOUR).await;
    let rest = admin.attention(&Filter::all(), page.next, 3).await.unwrap();
    let ids: Vec<_> = rest.flows.iter().map(|troubled| troubled.flow.id.as_str()).collect();
    assert_eq!((ids, rest.next, rest.neglected.len()), (vec!["failed-3", "failed-4"], None, 1));
    let text = rest.to_string();
    assert!(text.contains("to do: mend the cause, then `retry`"), "{text}");
    assert!(
        text.contains("1 of order (version 1) in queue \"forgotten\", scheduled, the first of them: no worker"),
        "{text}"
    );
    assert!(text.contains("no worker has claimed it for 1h"), "{text}");
    let odd = Filter::all().with_label("even", "false");
    assert_eq!(admin.attention(&odd, None, 10).await.unwrap().flows.len(), 2);
    let completed = Filter::all().with_state(FlowState::Completed);
    assert!(admin.attention(&completed, None, 10).await.unwrap().is_empty());
}

/// Two deploys of one flow.
mod first_build {
    use ergon::prelude::*;

    #[flow]
    pub(crate) async fn trip(number: u32) -> ergon::Result<()> {
        super::book(number).await?;
        signal("go").await
    }
}

mod second_build {
    use ergon::prelude::*;

    #[flow]
    pub(crate) async fn trip(number: u32) -> ergon::Result<()> {
        super::pay(number).await?;
        signal("go").await
    }
}

#[step]
async fn book(number: u32) -> ergon::Result<u32> {
    Ok(number)
}

#[step]
async fn pay(number: u32) -> ergon::Result<u32> {
    Ok(number)
}

/// Code that does not fit a history stalls the flow: people are told where it stands, and what to do.
#[tokio::test]
async fn a_flow_whose_history_does_not_fit_needs_a_person() {
    let log = InMemoryExecutionLog::new();
    let scheduler = Scheduler::new(log.clone());
    let (admin, all) = (scheduler.admin(), Filter::all());
    let handle = scheduler.schedule(first_build::trip(7)).id("trip-7").await.unwrap();
    let becomes = async |state: FlowState| {
        while handle.status().await.unwrap().state != state {
            tokio::task::yield_now().await;
        }
    };
    let first = Worker::new(log.clone()).register::<first_build::trip>().build("1").start().await.unwrap();
    becomes(FlowState::Suspended).await;
    first.shutdown().await;
    assert!(admin.attention(&all, None, 10).await.unwrap().is_empty());
    handle.signal("go", &()).await.unwrap();
    let second = Worker::new(log.clone()).register::<second_build::trip>().build("2").start().await.unwrap();
    becomes(FlowState::Stalled).await;
    second.shutdown().await;
    let attention = admin.attention(&all, None, 10).await.unwrap();
    let [troubled] = &attention.flows[..] else { panic!("{attention}") };
    assert_eq!(&troubled.flow.id, handle.id());
    let Problem::Stalled(reason) = &troubled.problem else { panic!("{attention}") };
    assert!(reason.contains("\"book\"") && reason.contains("\"pay\""), "both sides are named: {reason}");
    let text = attention.to_string();
    for part in
        ["it is stalled: ", "to do: do what the reason says, then `retry`", "a worker of another build is offered"]
    {
        assert!(text.contains(part), "{part:?} is in\n{text}");
    }
    // The next build fits, and nobody need do more.
    let third = Worker::new(log).register::<first_build::trip>().build("3").start().await.unwrap();
    handle.result().await.unwrap();
    assert!(admin.attention(&all, None, 10).await.unwrap().is_empty());
    third.shutdown().await;
}

/// Whatever a flow waited for: once it is due and nobody comes, people are told.
#[tokio::test]
async fn what_no_worker_goes_on_with_is_told_of() {
    use FlowState::{Running, Scheduled, Suspended};
    const MINUTE: Duration = Duration::from_secs(60);
    let runtime = runtime().await;
    let (log, scheduler) = (runtime.log(), runtime.scheduler());
    for id in ["asleep", "crashed", "new", "never-due", "ended"] {
        scheduler.schedule(order(1)).id(id).queue("forgotten").label("kind", id).await.unwrap();
    }
    let claim = |id: &str| ClaimRequest::new("gone", ClaimTarget::Flow(FlowId::new(id).unwrap()));
    let now = runtime.now();
    let ends = [
        ("asleep", Next::suspend(Wake { at: Some(now.saturating_add(MINUTE)), channels: vec![] })),
        ("never-due", Next::suspend(Wake { at: Some(now.saturating_add(HOUR * 24)), channels: vec![] })),
        ("ended", Next::Complete { result: "1".into() }),
    ];
    for (id, next) in ends {
        let mut commit = Commit::new(log.claim(claim(id)).await.unwrap().flows.remove(0).lease, 1);
        commit.next = next;
        log.commit(commit).await.unwrap();
    }
    assert_eq!(log.claim(claim("crashed")).await.unwrap().flows.len(), 1);
    let admin = scheduler.admin();
    let neglected = async |filter: &Filter| {
        let attention = admin.attention(filter, None, 10).await.unwrap();
        assert!(attention.flows.is_empty());
        let of = |count: &ergon::storage::Count| {
            (count.state, count.flows, attention.at.since(count.oldest_due_at.unwrap()))
        };
        attention.neglected.iter().map(of).collect::<Vec<_>>()
    };
    let all = Filter::all();
    assert_eq!(neglected(&all).await, []);
    runtime.advance(MINUTE + MINUTE).await;
    let second = Duration::from_secs(1);
    assert_eq!(neglected(&all).await, [(Scheduled, 1, MINUTE * 2), (Running, 1, second * 90)]);
    runtime.advance(second).await;
    let after = [(Scheduled, 1, second * 121), (Running, 1, second * 91), (Suspended, 1, second * 61)];
    assert_eq!(neglected(&all).await, after);
    assert_eq!(neglected(&all.clone().with_state(Running)).await, after[1..2]);
    assert_eq!(neglected(&all.clone().with_label("kind", "asleep")).await, after[2..]);
    assert_eq!(neglected(&all.clone().with_queue("default")).await, []);
    for (id, waits) in [("asleep", second * 61), ("crashed", second * 91)] {
        let described = admin.describe(&FlowId::new(id).unwrap()).await.unwrap();
        assert_eq!(described.problem, Some(Problem::Neglected(waits)), "{id}");
    }
    for (id, problem) in [("never-due", None), ("ended", None)] {
        assert_eq!(admin.describe(&FlowId::new(id).unwrap()).await.unwrap().problem, problem, "{id}");
    }
}

#[tokio::test]
async fn many_flows_are_acted_upon_at_once() {
    let runtime = runtime().await;
    let admin = runtime.scheduler().admin();
    let mine = Filter::all().with_label("batch", "7");
    for number in 0..600_u32 {
        let scheduling = runtime.scheduler().schedule(order(number)).queue("forgotten").id(format!("flow-{number}"));
        scheduling.label("batch", if number < 590 { "7" } else { "8" }).await.unwrap();
    }
    let dry = admin.cancel_all(&mine, "enough").dry_run().await.unwrap();
    assert_eq!((dry.done, dry.left_alone, dry.flows.len()), (590, 0, 100));
    assert_eq!(admin.count(&mine.clone().with_state(FlowState::Scheduled)).await.unwrap(), 590, "nothing was done");
    let some = admin.cancel_all(&mine, "enough").limit(5).await.unwrap();
    assert_eq!(some.to_string(), "5 flows: flow-0, flow-1, flow-2, flow-3, flow-4");
    assert_eq!(admin.cancel_all(&mine, "enough").dry_run().await.unwrap().done, 585);
    assert_eq!(admin.cancel_all(&mine, "enough").await.unwrap().done, 585);
    assert_eq!(admin.count(&Filter::all().with_reason("enough")).await.unwrap(), 590);
    // Others are not touched, and states in which there is nothing to do count for nothing.
    let completed = mine.clone().with_state(FlowState::Completed);
    assert_eq!(admin.cancel_all(&completed, "enough").await.unwrap().done, 0);
    assert_eq!(admin.retry_all(&mine).await.unwrap().done, 0);
    let cancelled = mine.clone().with_state(FlowState::Cancelled);
    assert_eq!(admin.delete_all(&cancelled).dry_run().await.unwrap().done, 590);
    assert_eq!(admin.count(&Filter::all()).await.unwrap(), 600, "nothing was deleted");
    assert_eq!(admin.delete_all(&cancelled).await.unwrap().done, 590);
    assert_eq!(admin.count(&Filter::all()).await.unwrap(), 10);
    assert_eq!(admin.delete_all(&Filter::all()).await.unwrap().done, 0, "live flows stay");
}

#[tokio::test]
async fn what_a_live_parent_waits_for_is_left_alone() {
    let runtime = runtime().await;
    let scheduler = runtime.scheduler();
    let parent = scheduler.schedule(order(7)).id("order-7").await.unwrap();
    runtime.idle().await;
    scheduler.cancel(&FlowId::new("order-7/3").unwrap(), "enough").await.unwrap();
    // The grandchild lives on its own, and has failed.
    let report = scheduler.admin().delete_all(&Filter::all()).await.unwrap();
    assert_eq!((report.to_string().as_str(), report.left_alone), ("1 flows, 1 left alone: grandchild", 1));
    parent.cancel("enough").await.unwrap();
    assert_eq!(scheduler.admin().delete_all(&Filter::all()).await.unwrap().done, 2);
}

#[tokio::test]
async fn all_that_failed_is_retried_at_once() {
    let runtime = runtime().await;
    let scheduler = runtime.scheduler();
    for number in 0..3 {
        scheduler.schedule(part_of_part(number)).await.unwrap();
    }
    runtime.idle().await;
    let failed = Filter::all().with_reason("is out of stock");
    assert_eq!(scheduler.admin().retry_all(&failed).dry_run().await.unwrap().done, 3);
    assert_eq!(scheduler.admin().retry_all(&failed).await.unwrap().done, 3);
    runtime.idle().await;
    assert_eq!(scheduler.admin().count(&failed).await.unwrap(), 3, "they fail again");
}
