//! Flows that are forked and flows that are taken back: what is taken over, what is made again, and whose it is.

use std::collections::HashSet;

use ergon::{
    Filter, FlowState,
    admin::Cut,
    flow_id, idempotency_key,
    prelude::*,
    storage::{
        Affinity, CallKind, CallPath, ClaimRequest, ClaimTarget, ErrorKind as StorageErrorKind, Phase, Snapshot,
        Takeover,
    },
    testing::{Setup, TestRuntime, crash_everywhere},
    uuid,
};

const NOTES: Mailbox<String> = Mailbox::new("notes");
const HOUR: Duration = Duration::from_secs(3600);

/// A bit of everything: steps whose arguments hang on the flow, a message, a timer, children, things said.
#[flow]
async fn order(address: String) -> ergon::Result<String> {
    reserve(flow_id().to_string(), uuid().to_string()).await?;
    ergon::emit("log", "reserved")?;
    let note = NOTES.recv().await?;
    sleep(HOUR).await;
    let packed = child(pack(note)).await?;
    ship(&address, &packed).await
}

#[step]
async fn reserve(flow: String, key: String) -> ergon::Result<String> {
    Ok(format!("{flow} {key} {}", idempotency_key()))
}

#[step(retry = none)]
async fn ship(address: &str, packed: &str) -> ergon::Result<String> {
    if address == "nowhere" { Err(ergon::Error::new("no such place")) } else { Ok(format!("{packed} to {address}")) }
}

#[flow]
async fn pack(note: String) -> ergon::Result<String> {
    wrap(note).await
}

#[step]
async fn wrap(note: String) -> ergon::Result<String> {
    Ok(format!("a parcel with {note:?}"))
}

fn setup() -> Setup {
    Setup::new().register::<order>().register::<pack>()
}

/// An order that has failed at its last step.
async fn failed(runtime: &TestRuntime, id: &str) -> FlowId {
    let order = runtime.scheduler().schedule(order("nowhere".into())).id(id).label("customer", "7").await.unwrap();
    order.send_once(&NOTES, &"hello".to_owned(), "k").await.unwrap();
    assert!(runtime.result(&order).await.is_err());
    order.id().clone()
}

async fn snapshot(runtime: &TestRuntime, id: &FlowId) -> Snapshot {
    Snapshot::read(&**runtime.log(), id).await.unwrap().unwrap()
}

async fn result(runtime: &TestRuntime, id: &FlowId) -> String {
    runtime.result(&runtime.scheduler().handle::<order>(id.clone())).await.unwrap()
}

/// Nothing that succeeded is repeated, the value is the other one, and the flow that was forked stays as it is.
#[tokio::test]
async fn a_fork_goes_on_with_another_value() {
    let runtime = setup().start().await;
    let original = failed(&runtime, "order-7").await;
    let before = snapshot(&runtime, &original).await;
    let admin = runtime.scheduler().admin();
    let fork = admin
        .fork(&original)
        .at(Cut::first("ship"))
        .input(order("Paris".into()))
        .label("try", "2")
        .id("b")
        .await
        .unwrap();
    assert_eq!(result(&runtime, &fork).await, "a parcel with \"hello\" to Paris");
    assert_eq!((runtime.runs("reserve"), runtime.runs("wrap"), runtime.runs("ship")), (1, 1, 2));
    assert_eq!(snapshot(&runtime, &original).await, before, "the original is untouched");
    let info = runtime.scheduler().status(&fork).await.unwrap().unwrap();
    assert_eq!((info.labels.get("customer"), info.labels.get("try"), info.parent), (Some("7"), Some("2"), None));
    let history = runtime.scheduler().history(&fork).await.unwrap();
    let mark = history.records.iter().find(|record| record.kind == CallKind::Fork).unwrap();
    assert_eq!((&*mark.name, mark.reference.as_deref()), ("order-7", Some("5")));
    assert!(history.to_string().contains("of order-7, from call 5 on"), "{history}");
    assert!(history.calls().iter().all(|call| call.kind != CallKind::Fork));
    let again = admin.fork(&original).id("b").await.unwrap_err();
    assert_eq!(again.kind(), StorageErrorKind::Conflict);
}

/// Without a cut, what a retry would make again is made again; all else is taken over.
#[tokio::test]
async fn a_fork_of_a_failed_flow_makes_its_last_calls_again() {
    let runtime = setup().start().await;
    let original = failed(&runtime, "order-7").await;
    let fork =
        runtime.scheduler().admin().fork(&original).input_json(&serde_json::json!({"address": "Rome"})).await.unwrap();
    assert_eq!(result(&runtime, &fork).await, "a parcel with \"hello\" to Rome");
    assert_eq!((runtime.runs("reserve"), runtime.runs("ship")), (1, 2));
    let completed = runtime.scheduler().admin().fork(&fork).await.unwrap();
    assert_eq!(result(&runtime, &completed).await, "a parcel with \"hello\" to Rome");
    assert_eq!(runtime.runs("ship"), 2, "a fork of a whole history repeats nothing");
    // A fork of a fork names the one that it was made of.
    let marks = runtime.scheduler().history(&completed).await.unwrap();
    assert_eq!(marks.records.iter().filter(|record| record.kind == CallKind::Fork).count(), 2);
}

/// A fork from every call comes to the same end as the flow, each with its own children, keys and ids.
#[tokio::test]
async fn a_fork_from_every_call_comes_to_an_end() {
    let runtime = setup().start().await;
    let original = runtime.scheduler().schedule(order("Paris".into())).id("order-7").await.unwrap();
    original.send(&NOTES, &"hello".to_owned()).await.unwrap();
    let expected = runtime.result(&original).await.unwrap();
    let admin = runtime.scheduler().admin();
    let calls: Vec<CallPath> = original.history().await.unwrap().calls().into_iter().map(|call| call.path).collect();
    assert_eq!(calls.len(), 5);
    let mut reserved = HashSet::new();
    for (place, call) in calls.iter().enumerate() {
        let fork = admin.fork(original.id()).at(call.clone()).id(format!("fork-{place}")).await.unwrap();
        assert_eq!(result(&runtime, &fork).await, expected, "from call {call}");
        let history = runtime.scheduler().history(&fork).await.unwrap();
        let reserve = history.records.iter().find(|record| &*record.name == "reserve").unwrap();
        reserved.insert(reserve.payload.clone());
        let child = history.records.iter().find(|record| record.kind == CallKind::Child).unwrap();
        let own = if place > 3 { "order-7/4".to_owned() } else { format!("fork-{place}/4") };
        assert_eq!(child.reference.as_deref(), Some(&*own), "from call {call}");
        let log: Vec<_> =
            snapshot(&runtime, &fork).await.items.into_values().flatten().map(|item| item.payload).collect();
        assert_eq!(log, ["\"reserved\""], "from call {call}: said once");
    }
    assert_eq!(reserved.len(), 2, "the one that reserved anew has keys of its own");
    assert_eq!((runtime.runs("reserve"), runtime.runs("wrap")), (2, 5));
    let missing = admin.fork(original.id()).at(Cut::call("9").unwrap()).await.unwrap_err();
    assert_eq!(missing.kind(), StorageErrorKind::NotFound);
}

/// A message that was taken after the cut is there for the fork, unless it is left behind.
#[tokio::test]
async fn a_fork_finds_the_messages_that_it_is_to_take() {
    let runtime = setup().start().await;
    let original = failed(&runtime, "order-7").await;
    let admin = runtime.scheduler().admin();
    let with = admin.fork(&original).at(Cut::first("notes")).await.unwrap();
    let without = admin.fork(&original).at(Cut::first("notes")).without_messages().await.unwrap();
    runtime.idle().await;
    let state = async |id: &FlowId| runtime.scheduler().status(id).await.unwrap().unwrap().state;
    runtime.advance(HOUR).await;
    runtime.idle().await;
    assert_eq!((state(&with).await, state(&without).await), (FlowState::Failed, FlowState::Suspended));
    let handle = runtime.scheduler().handle::<order>(without.clone());
    handle.send(&NOTES, &"bye".to_owned()).await.unwrap();
    runtime.idle().await;
    let history = runtime.scheduler().history(&without).await.unwrap();
    assert!(history.records.iter().any(|record| record.payload == "\"bye\""), "{history}");
}

/// A fork of a flow that waits for a child starts a child of its own, and neither hears of the other's.
#[tokio::test]
async fn a_fork_starts_its_own_open_children() {
    #[flow]
    async fn parent(n: u32) -> ergon::Result<u32> {
        let (a, b) = tokio::try_join!(child(waiting(n)), child(waiting(n + 1)))?;
        Ok(a + b)
    }
    #[flow]
    async fn waiting(n: u32) -> ergon::Result<u32> {
        Ok(n + signal::<u32>("go").await?)
    }
    let runtime = Setup::new().register::<parent>().register::<waiting>().start().await;
    let original = runtime.scheduler().schedule(parent(1)).id("p").await.unwrap();
    runtime.idle().await;
    let scheduler = runtime.scheduler();
    let id = |text: &str| FlowId::new(text).unwrap();
    scheduler.signal(&id("p/1"), "go", &10).await.unwrap();
    runtime.idle().await;
    let fork = scheduler.admin().fork(original.id()).id("q").await.unwrap();
    runtime.idle().await;
    assert_eq!(scheduler.status(&id("q/1")).await.unwrap(), None, "its end was recorded");
    assert_eq!(scheduler.status(&id("q/2")).await.unwrap().unwrap().state, FlowState::Suspended);
    scheduler.signal(&id("p/2"), "go", &100).await.unwrap();
    assert_eq!(runtime.result(&original).await.unwrap(), 113);
    assert_eq!(scheduler.status(&fork).await.unwrap().unwrap().state, FlowState::Suspended);
    scheduler.signal(&id("q/2"), "go", &200).await.unwrap();
    assert_eq!(runtime.result(&scheduler.handle::<parent>(fork)).await.unwrap(), 213);
}

/// Code that makes another call than the recorded one stalls the fork, and says where; equal names at one time must have
/// equal arguments.
#[tokio::test]
async fn a_fork_whose_code_goes_another_way_stalls() {
    #[flow]
    async fn fork_in_the_road(left: bool) -> ergon::Result<u32> {
        if left { turn_left(1).await } else { turn_right(1).await }
    }
    #[flow]
    async fn both(n: u32) -> ergon::Result<u32> {
        let (a, b) = tokio::try_join!(turn_left(n), turn_left(n + 1))?;
        Ok(a + b)
    }
    #[step]
    async fn turn_left(n: u32) -> ergon::Result<u32> {
        Ok(n)
    }
    #[step]
    async fn turn_right(n: u32) -> ergon::Result<u32> {
        Ok(n)
    }
    let runtime = Setup::new().register::<fork_in_the_road>().register::<both>().start().await;
    let admin = runtime.scheduler().admin();
    let one = runtime.scheduler().schedule(fork_in_the_road(true)).await.unwrap();
    runtime.result(&one).await.unwrap();
    let two = runtime.scheduler().schedule(both(1)).await.unwrap();
    runtime.result(&two).await.unwrap();
    let one = admin.fork(one.id()).input(fork_in_the_road(false)).await.unwrap();
    let two = admin.fork(two.id()).input(both(5)).await.unwrap();
    let wrong = admin.fork(&one).input(both(5)).await.unwrap_err();
    assert_eq!(wrong.kind(), StorageErrorKind::Invalid);
    runtime.idle().await;
    for (id, word) in [(one, "turn_right"), (two, "turn_left")] {
        let info = runtime.scheduler().status(&id).await.unwrap().unwrap();
        assert_eq!(info.state, FlowState::Stalled);
        assert!(info.reason.as_deref().unwrap().contains(word), "{:?}", info.reason);
    }
}

/// At every write a fork may die, and comes to the same end, with every step once.
#[tokio::test]
async fn a_fork_survives_a_crash_at_every_write() {
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let original = failed(runtime, "order-7").await;
        let admin = runtime.scheduler().admin();
        let fork = admin.fork(&original).at(Cut::first("notes")).input(order("Paris".into())).id("b").await.unwrap();
        result(runtime, &fork).await
    })
    .await;
    assert_eq!(report.result, "a parcel with \"hello\" to Paris");
    assert!(report.crashes > 10, "{report:?}");
}

/// The same flow, from an earlier call: what came before is not repeated, what came after is, also in its children.
#[tokio::test]
async fn a_flow_is_reset_from_every_call() {
    let runtime = setup().start().await;
    let handle = runtime.scheduler().schedule(order("Paris".into())).id("order-7").await.unwrap();
    handle.send(&NOTES, &"hello".to_owned()).await.unwrap();
    let expected = runtime.result(&handle).await.unwrap();
    let before = snapshot(&runtime, handle.id()).await;
    let admin = runtime.scheduler().admin();
    for call in 1..=5_u32 {
        admin.reset(handle.id(), CallPath::top(call)).await.unwrap();
        assert_eq!(runtime.result(&handle).await.unwrap(), expected, "from call {call}");
        let now = snapshot(&runtime, handle.id()).await;
        let outcomes = |of: &Snapshot| -> Vec<_> {
            let ended = of.records.iter().filter(|record| record.phase == Phase::Completed);
            ended.map(|record| (record.path.clone(), record.args_hash, record.payload.clone())).collect()
        };
        assert_eq!(outcomes(&now), outcomes(&before), "from call {call}: its keys and ids are what they were");
    }
    assert_eq!((runtime.runs("reserve"), runtime.runs("wrap"), runtime.runs("ship")), (2, 5, 6));
    assert_eq!(admin.count(&Filter::all()).await.unwrap(), 2, "the former children are gone");
}

/// A flow that runs or waits is reset, too: whoever has it loses it, and children that had begun before go on.
#[tokio::test]
async fn a_waiting_flow_is_reset() {
    let runtime = setup().start().await;
    let handle = runtime.scheduler().schedule(order("Paris".into())).id("order-7").await.unwrap();
    handle.send(&NOTES, &"hello".to_owned()).await.unwrap();
    runtime.idle().await;
    assert_eq!(handle.status().await.unwrap().state, FlowState::Suspended);
    let admin = runtime.scheduler().admin();
    admin.reset(handle.id(), Cut::Start).await.unwrap();
    runtime.idle().await;
    handle.cancel("enough").await.unwrap();
    admin.reset(handle.id(), Cut::End).await.unwrap();
    assert_eq!(runtime.result(&handle).await.unwrap(), "a parcel with \"hello\" to Paris");
    assert_eq!(runtime.runs("reserve"), 2);
}

/// Starts another flow and waits for it.
#[flow]
async fn outer(number: u32) -> ergon::Result<u32> {
    child(inner(number)).await
}

/// Waits.
#[flow]
async fn inner(number: u32) -> ergon::Result<u32> {
    Ok(number + signal::<u32>("go").await?)
}

/// A child that goes on when its parent is reset goes on at the same reset again, and is forgotten by one to before its call,
/// though the history has nothing of it then.
#[tokio::test]
async fn a_second_reset_knows_the_children_that_went_on_after_the_first() {
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<outer>().register::<inner>().start().await.unwrap();
    let scheduler = Scheduler::new(log.clone());
    let outer = scheduler.schedule(outer(7)).id("outer").await.unwrap();
    let child = FlowId::new("outer/1").unwrap();
    while scheduler.status(&child).await.unwrap().is_none_or(|info| info.state != FlowState::Suspended) {
        tokio::task::yield_now().await;
    }
    worker.shutdown().await;
    let admin = scheduler.admin();
    for time in ["first", "second"] {
        admin.reset(outer.id(), Cut::End).await.unwrap();
        let found = scheduler.status(&child).await.unwrap().map(|info| info.state);
        assert_eq!(
            found,
            Some(FlowState::Suspended),
            "the call is made again, and its child goes on, the {time} time too"
        );
    }
    admin.reset(outer.id(), Cut::Start).await.unwrap();
    assert!(scheduler.status(&child).await.unwrap().is_none(), "nobody waits for it");
}

/// By filter, with a dry run; a repeat forks none twice.
#[tokio::test]
async fn many_are_forked_and_reset() {
    let runtime = setup().start().await;
    for number in 0..3 {
        failed(&runtime, &format!("order-{number}")).await;
    }
    let admin = runtime.scheduler().admin();
    let of_seven = Filter::all().with_label("customer", "7").with_state(FlowState::Failed);
    assert_eq!(admin.fork_all(&of_seven, Cut::first("ship")).dry_run().await.unwrap().done, 3);
    assert_eq!(admin.fork_all(&of_seven, Cut::first("ship")).limit(2).await.unwrap().done, 2);
    let report = admin.fork_all(&of_seven, Cut::first("ship")).await.unwrap();
    assert_eq!((report.done, report.left_alone), (1, 2));
    runtime.idle().await;
    assert_eq!(runtime.runs("ship"), 6);
    let report = admin.reset_all(&of_seven, Cut::first("no such step")).await.unwrap();
    assert_eq!((report.done, report.left_alone), (0, 6));
    let orders = of_seven.clone().with_flow_type("order");
    let dry = admin.reset_all(&orders, Cut::first("ship")).dry_run().await.unwrap();
    assert_eq!((dry.done, dry.left_alone), (6, 0));
    runtime.idle().await;
    assert_eq!(admin.count(&of_seven).await.unwrap(), 6, "none was reset");
    assert_eq!(runtime.runs("ship"), 6);
    let report = admin.reset_all(&orders, Cut::first("ship")).await.unwrap();
    assert_eq!(report.done, 6);
    runtime.idle().await;
    assert_eq!((runtime.runs("ship"), runtime.runs("reserve")), (12, 3));
}

/// What was exported is in another log what it was: every answer about it, and it goes on there.
#[tokio::test]
async fn an_export_is_imported_as_it_was() {
    use futures::TryStreamExt;
    let runtime = setup().start().await;
    let failed = failed(&runtime, "order-7").await;
    let completed = runtime.scheduler().schedule(order("Paris".into())).id("order-8").await.unwrap();
    completed.send(&NOTES, &"hello".to_owned()).await.unwrap();
    let expected = runtime.result(&completed).await.unwrap();
    let live = runtime.scheduler().schedule(order("Rome".into())).id("order-9").await.unwrap();
    runtime.idle().await;
    let admin = runtime.scheduler().admin();
    let refused = admin.export(Filter::all()).try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!((refused.kind(), refused.flow()), (StorageErrorKind::Conflict, Some(live.id())));
    let lines: Vec<String> = admin.export_live(Filter::all()).try_collect().await.unwrap();
    assert_eq!(lines.len(), 5);
    assert!(lines[0].contains(r#""payload":{"json":"a parcel with \"hello\""}"#), "{}", lines[0]);

    let other = setup().start().await;
    let report = other.scheduler().admin().import(lines.iter().map(Ok)).await.unwrap();
    assert_eq!((report.imported, report.taken), (5, 0));
    for id in [&failed, completed.id(), live.id()] {
        assert_eq!(snapshot(&other, id).await, snapshot(&runtime, id).await);
        let histories = (runtime.scheduler().history(id).await.unwrap(), other.scheduler().history(id).await.unwrap());
        assert_eq!(histories.0.to_string(), histories.1.to_string());
        let children = |description: ergon::admin::Description| {
            (description.waits, description.children.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let described = admin.describe(id).await.unwrap();
        assert_eq!(children(described), children(other.scheduler().admin().describe(id).await.unwrap()));
    }
    assert_eq!(result(&other, completed.id()).await, expected);
    let went_on = other.scheduler().handle::<order>(live.id().clone());
    went_on.send(&NOTES, &"hello".to_owned()).await.unwrap();
    assert_eq!(other.result(&went_on).await.unwrap(), "a parcel with \"hello\" to Rome");
    let again = other.scheduler().admin().import(lines.iter().map(Ok)).await.unwrap();
    assert_eq!((again.imported, again.taken), (0, 5));
}

/// A bad line is named, and leaves nothing; what came before it is there, whole.
#[tokio::test]
async fn a_bad_line_is_named() {
    use futures::TryStreamExt;
    let runtime = setup().start().await;
    failed(&runtime, "order-7").await;
    let lines: Vec<String> = runtime.scheduler().admin().export(Filter::all()).try_collect().await.unwrap();
    let good = &lines[0];
    for (bad, why) in [
        ("{".to_owned(), "EOF"),
        ("{\"ergon\":2}".to_owned(), "version 2"),
        (good.replace("\"phase\":\"completed\"", "\"phase\":\"over\""), "\"over\" is no phase"),
        (good.replace("\"seq\":2", "\"seq\":3").replace("order-7\"", "order-77\""), "did not take"),
        (good.replace("\"state\":", "\"status\":"), "unknown field `status`"),
        (good.replace("\"version\":1", "\"version\":-1"), "invalid value"),
    ] {
        let other = setup().start().await;
        let admin = other.scheduler().admin();
        let texts = [good.as_str(), "", &bad, good];
        let error = admin.import(texts.into_iter().map(Ok)).await.unwrap_err();
        assert_eq!((error.line, error.report.imported), (3, 1), "{error}");
        assert!(error.to_string().contains("line 3: ") && error.to_string().contains(why), "{error}");
        assert_eq!(admin.count(&Filter::all()).await.unwrap(), 1);
    }
}

/// A fork has run nowhere yet: it waits for no worker that its original is bound to.
#[tokio::test]
async fn a_fork_is_bound_to_nobody() {
    let runtime = setup().start().await;
    let scheduler = runtime.scheduler();
    let never = Affinity::Require { takeover: Takeover::Never };
    let original = scheduler.schedule(pack("a".into())).id("a").queue("gone").affinity(never).await.unwrap();
    let claim = ClaimRequest::new("gone", ClaimTarget::Flow(original.id().clone()));
    let lease = runtime.log().claim(claim).await.unwrap().flows.remove(0).lease;
    runtime.log().release(&lease).await.unwrap();
    let fork = scheduler.admin().fork(original.id()).queue("default").await.unwrap();
    let info = runtime.log().flow(&fork).await.unwrap().unwrap().info;
    assert_eq!((info.worker, Affinity::of(&info.labels)), (None, never));
    assert_eq!(runtime.result(&scheduler.handle::<pack>(fork)).await.unwrap(), "a parcel with \"a\"");
}

/// Does one thing or another by the time that has passed.
#[flow]
async fn times() -> ergon::Result<String> {
    let began = ergon::now();
    sleep(Duration::from_secs(3_600)).await;
    let what = if ergon::now().since(began) < Duration::from_secs(3_600) { "early" } else { "in time" };
    let wrapped = wrap(what.into()).await?;
    signal::<()>("go").await?;
    Ok(wrapped)
}

/// The time that the code of a fork sees is that of the history which it is given.
#[tokio::test]
async fn a_fork_goes_by_the_time_of_its_original() {
    let runtime = Setup::new().register::<times>().start().await;
    let original = runtime.scheduler().schedule(times()).id("a").await.unwrap();
    runtime.idle().await;
    runtime.advance(Duration::from_secs(3_600)).await;
    runtime.idle().await;
    runtime.advance(Duration::from_secs(86_400)).await;
    let fork = runtime.scheduler().admin().fork(original.id()).await.unwrap();
    let fork = runtime.scheduler().handle::<times>(fork);
    fork.signal("go", &()).await.unwrap();
    assert!(runtime.result(&fork).await.unwrap().contains("in time"));
    assert_eq!(runtime.runs("wrap"), 1);
}

/// Says what it is at, and waits.
#[flow]
async fn told() -> ergon::Result<String> {
    ergon::emit("log", "begun")?;
    wrap("a cup".into()).await?;
    signal("go").await
}

/// Also where nothing is made again, and the worker has the flow in memory still.
#[tokio::test]
async fn a_flow_that_is_reset_tells_again_what_its_code_tells() {
    let runtime = Setup::new().register::<told>().start().await;
    let flow = runtime.scheduler().schedule(told()).await.unwrap();
    while flow.status().await.unwrap().state != FlowState::Suspended {
        tokio::task::yield_now().await;
    }
    runtime.scheduler().admin().reset(flow.id(), Cut::End).await.unwrap();
    flow.signal("go", "now").await.unwrap();
    assert_eq!(runtime.result(&flow).await.unwrap(), "now");
    let log: Vec<_> = snapshot(&runtime, flow.id()).await.items.into_values().flatten().collect();
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log[0].epoch < log[1].epoch);
    assert_eq!(runtime.runs("wrap"), 1);
}
