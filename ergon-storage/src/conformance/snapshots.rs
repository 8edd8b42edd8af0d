//! Flows that come whole, and flows that are taken back.

use std::{sync::Arc, time::Duration};

use super::{
    Harness,
    scene::{
        Handle, SECOND, Scene, again, child, complete, detached, fail, fail_of, flow, id, message, record, refused,
        signal, starting, steps, suspend, text,
    },
};
use crate::{
    Affinity, CallPath, Cancelled, Channel, ChildOutcome, ClaimRequest, ClaimTarget, Commit, Committed, Enqueued,
    ErrorKind, Feed, FlowState, Imported, Keep, LeaseState, NewFlow, NewItem, PrunePolicy, Reset, Retried, Sent,
    Snapshot, Takeover,
};

async fn read(log: &Handle, name: &str) -> Snapshot {
    Snapshot::read(&*log.0, &id(name)).await.unwrap().unwrap_or_else(|| panic!("{name} is there"))
}

fn item(feed: &Feed, keep: Keep, call: Option<CallPath>, text: &str) -> NewItem {
    let at = record(1).at;
    NewItem { feed: feed.clone(), keep, at, call, attempt: 2, payload: text.to_owned().into() }
}

/// A flow of this name that has been through much, and is in this state in the end.
async fn seasoned(log: &Handle, name: &str, state: FlowState) {
    let new = NewFlow::new(id(name), "Order", 3, "first").with_queue("billing").with_priority(-7);
    let new =
        new.with_label("customer", "7").with_label("region", "n=o").with_timeout(Some(Duration::from_secs(3_600)));
    let lease = log.start_flow(new).await;
    let keyed = |text: &str, key: &str| message(name, &signal("go"), text).with_key(key);
    for (text, key) in [("one", "k2"), ("two", "k1"), ("\0three\n", "\0k\u{1}3")] {
        assert_eq!(log.send(keyed(text, key)).await.unwrap(), Sent::Accepted);
    }
    let mut commit = steps(&lease, 1, 0, 3);
    commit.consumed = vec![2];
    commit.records[1].path = CallPath::top(2).child(1);
    commit.records[2].due_at = Some(record(9).at);
    commit.records[2].reference = Some("\0reference".into());
    let (stream, status) = (Feed::stream("s\n"), Feed::status());
    commit.items = vec![
        item(&stream, Keep::All, None, "a"),
        item(&status, Keep::Last, None, "b"),
        item(&stream, Keep::All, Some(CallPath::top(1).child(2)), "c"),
        item(&status, Keep::Last, Some(CallPath::top(1)), "d"),
    ];
    commit.emitted = Some(2);
    log.commit(commit).await.unwrap();
    let mut last = Commit::new(lease, 2);
    last.next = match state {
        FlowState::Scheduled => {
            return log.release(&last.lease).await.unwrap();
        }
        FlowState::Running => return,
        FlowState::Suspended => suspend(Some(log.now().saturating_add(SECOND)), &[signal("x"), signal("y\n")]),
        FlowState::Completed => complete(),
        FlowState::Failed => fail_of([CallPath::top(3), CallPath::top(2).child(1)]),
        FlowState::Cancelled => {
            assert_eq!(log.cancel(&id(name), "enough").await.unwrap(), Cancelled::Now);
            return;
        }
        FlowState::Stalled => super::scene::stall("build-1"),
    };
    log.commit(last).await.unwrap();
}

/// What was read whole comes back from another log as it was, whatever its state; but one that was running is due at
/// once.
pub async fn import_keeps_everything_in_every_state(harness: &impl Harness) {
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    for state in FlowState::ALL {
        let name = state.to_string();
        seasoned(&log, &name, state).await;
        let mut expected = read(&log, &name).await;
        assert_eq!((expected.flow.info.state, expected.extras.received), (state, 3));
        let keys: Vec<&str> = expected.extras.keys.iter().map(|key| &**key).collect();
        assert_eq!(keys, ["\0k\u{1}3", "k1", "k2"]);
        assert_eq!(expected.items.values().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
        other.advance(SECOND).await;
        assert_eq!(other.import(expected.clone()).await.unwrap(), Imported::Created);
        let mut imported = read(&other, &name).await;
        if state == FlowState::Running {
            expected.flow.info.state = FlowState::Scheduled;
            expected.flow.info.due_at = Some(other.now());
            // The instant may be that of a server.
            imported.flow.info.due_at =
                imported.flow.info.due_at.filter(|due_at| *due_at > other.now()).or(Some(other.now()));
        }
        assert_eq!(imported, expected, "{state}");
    }
}

/// An id is taken only once, by whatever kind of flow.
pub async fn import_of_a_taken_id_changes_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    seasoned(&log, "a", FlowState::Completed).await;
    let snapshot = read(&log, "a").await;
    assert_eq!(log.import(snapshot.clone()).await.unwrap(), Imported::Taken);
    assert_eq!(read(&log, "a").await, snapshot);
    log.delete(&id("a")).await.unwrap();
    let lease = log.start("a").await;
    assert_eq!(log.import(snapshot.clone()).await.unwrap(), Imported::Taken);
    log.go(&lease, 1, complete()).await;
    log.delete(&id("a")).await.unwrap();
    assert_eq!(log.import(snapshot.clone()).await.unwrap(), Imported::Created);
    assert_eq!(log.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Existing { same: false }]);
    let same = NewFlow::new(id("a"), "Order", 1, "first");
    assert_eq!(log.enqueue(vec![same]).await.unwrap(), [Enqueued::Existing { same: true }]);
    assert_eq!(read(&log, "a").await, snapshot);
}

/// What no log could have written is refused, and nothing of it is there.
pub async fn import_refuses_what_makes_no_sense(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    seasoned(&log, "a", FlowState::Failed).await;
    let good = read(&log, "a").await;
    log.delete(&id("a")).await.unwrap();
    let large = vec![0; log.limits().payload_bytes_max + 1];
    let mut bad: Vec<(ErrorKind, Snapshot)> = Vec::new();
    let mut with = |kind, change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = good.clone();
        change(&mut snapshot);
        bad.push((kind, snapshot));
    };
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.version = 0);
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.queue = "".into());
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.records += 1);
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.finished_at = None);
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.due_at = Some(record(1).at));
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.epoch = u64::MAX);
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.run = 2);
    with(ErrorKind::Invalid, &|snapshot| snapshot.flow.info.reason = None);
    with(ErrorKind::Invalid, &|snapshot| snapshot.records[1].seq = 1);
    with(ErrorKind::Invalid, &|snapshot| snapshot.records[1].name = "x".repeat(256).into());
    with(ErrorKind::Invalid, &|snapshot| snapshot.messages[1].seq = 7);
    with(ErrorKind::Invalid, &|snapshot| snapshot.messages[0].channel = Channel::from_name(""));
    with(ErrorKind::Invalid, &|snapshot| snapshot.extras.received = 1);
    with(ErrorKind::Invalid, &|snapshot| snapshot.extras.keys.reverse());
    with(ErrorKind::Invalid, &|snapshot| snapshot.extras.feeds.clear());
    with(ErrorKind::Invalid, &|snapshot| snapshot.extras.stalled_by = Some("build".into()));
    let last = |snapshot: &mut Snapshot, change: &dyn Fn(&mut crate::Item)| {
        let items = snapshot.items.values_mut().next().expect("it has told something");
        items.drain(..items.len() - 1);
        change(&mut items[0]);
    };
    with(ErrorKind::Invalid, &|snapshot| last(snapshot, &|item| item.seq = u32::MAX));
    with(ErrorKind::Invalid, &|snapshot| last(snapshot, &|item| item.run = 0));
    with(ErrorKind::Invalid, &|snapshot| last(snapshot, &|item| item.run = 2));
    with(ErrorKind::TooLarge, &|snapshot| snapshot.records[0].payload = large.clone().into());
    with(ErrorKind::TooLarge, &|snapshot| snapshot.flow.result = large.clone().into());
    with(ErrorKind::TooLarge, &|snapshot| snapshot.messages[0].payload = large.clone().into());
    for (kind, snapshot) in bad {
        log.refuses(kind, log.import(snapshot)).await;
    }
    assert_eq!(log.import(good).await.unwrap(), Imported::Created);
}

/// It is claimed with all it has, its epoch rises, and its records, messages and items get the next numbers.
pub async fn an_imported_flow_goes_on(harness: &impl Harness) {
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    seasoned(&log, "a", FlowState::Running).await;
    let snapshot = read(&log, "a").await;
    other.import(snapshot.clone()).await.unwrap();
    let claimed = other.take_flow("a").await;
    assert_eq!((&claimed.history, &claimed.messages), (&snapshot.records, &snapshot.messages));
    assert_eq!((claimed.info.epoch, claimed.info.emitted, text(&claimed.input)), (2, 2, "first".into()));
    assert_eq!(
        (claimed.info.created_at, claimed.info.started_at),
        (snapshot.flow.info.created_at, snapshot.flow.info.started_at)
    );
    let again = message("a", &signal("go"), "again").with_key("k1");
    assert_eq!(other.send(again).await.unwrap(), Sent::Duplicate);
    other.tell("a", &signal("go"), "four").await;
    let mut commit = steps(&claimed.lease, 1, 3, 2);
    commit.consumed = vec![1];
    commit.items = vec![item(&Feed::stream("s\n"), Keep::All, None, "e"), item(&Feed::status(), Keep::Last, None, "f")];
    assert_eq!(other.commit(commit).await.unwrap(), Committed::Applied);
    let now = read(&other, "a").await;
    assert_eq!(now.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [3, 4]);
    let seqs = |feed: &Feed| now.items[feed].iter().map(|item| (item.seq, item.epoch)).collect::<Vec<_>>();
    assert_eq!((seqs(&Feed::stream("s\n")), seqs(&Feed::status())), (vec![(1, 1), (2, 1), (3, 2)], vec![(3, 2)]));
    other.go(&claimed.lease, 2, complete()).await;
    assert_eq!(other.prune(&PrunePolicy::older_than(Duration::ZERO)).await.unwrap(), 1);
    assert_eq!(other.snapshot().await.flows.len(), 0);
}

/// A flow that was kept for its worker is due when it would have been without that.
pub async fn an_imported_flow_is_kept_no_more(harness: &impl Harness) {
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    let takeover = Takeover::After(SECOND * 60);
    let bound = |name: &str| flow(name).with_affinity(Affinity::Require { takeover });
    let wakes_at = log.now().saturating_add(SECOND * 10);
    log.add([bound("given back"), bound("asleep"), bound("late").with_timeout(Some(SECOND * 5)), bound("waiting")])
        .await;
    log.release(&log.take_flow("given back").await.lease).await.unwrap();
    log.suspend(&log.take_flow("asleep").await.lease, 1, Some(wakes_at), &[signal("go")]).await;
    log.suspend(&log.take_flow("late").await.lease, 1, Some(wakes_at), &[]).await;
    log.suspend(&log.take_flow("waiting").await.lease, 1, None, &[signal("go")]).await;
    log.advance(SECOND * 4).await;
    let claimed = log.claim(ClaimRequest::new("second", ClaimTarget::Flow(id("given back")))).await.unwrap();
    assert_eq!(claimed.flows.len(), 0);
    log.advance(SECOND * 6).await;
    let claimed = log.claim(ClaimRequest::new("second", ClaimTarget::Flow(id("asleep")))).await.unwrap();
    assert_eq!(claimed.flows.len(), 0);
    let ends_at = log.info("late").await.deadline_at;
    for (name, due_at) in
        [("given back", Some(other.now())), ("asleep", Some(wakes_at)), ("late", ends_at), ("waiting", None)]
    {
        let is_kept = due_at.is_some() && name != "late";
        assert_eq!(log.info(name).await.due_at > Some(log.now()), is_kept, "{name}");
        other.import(read(&log, name).await).await.unwrap();
        assert_eq!(other.info(name).await.due_at, due_at, "{name}");
    }
    assert_eq!(other.take_flow("given back").await.info.epoch, 2, "its worker goes on");
}

/// A flow that has begun again comes with the value that it was accepted with, and begins again once more.
pub async fn an_imported_run_goes_on(harness: &impl Harness) {
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    let lease = log.start("a").await;
    log.go(&lease, 1, again("second")).await;
    let snapshot = read(&log, "a").await;
    assert_eq!(snapshot.extras.accepted.as_deref(), Some(&b"{}"[..]));
    other.import(snapshot.clone()).await.unwrap();
    assert_eq!(read(&other, "a").await, snapshot);
    assert_eq!(other.enqueue(vec![flow("a")]).await.unwrap(), [Enqueued::Existing { same: true }]);
    let claimed = other.take_flow("a").await;
    assert_eq!((claimed.info.run, text(&claimed.input)), (2, "second".into()));
    other.go(&claimed.lease, 1, again("third")).await;
    let third = read(&other, "a").await;
    assert_eq!((third.flow.info.run, text(&third.flow.input)), (3, "third".into()));
    assert_eq!(third.extras.accepted, snapshot.extras.accepted);
}

/// Children that come after their parent are its own: it hears of them, waits for them, and takes them along.
pub async fn an_imported_family_is_one(harness: &impl Harness) {
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    let mother = log.start("mother").await;
    let children = [child("told", "mother", 1), child("due", "mother", 2), detached("own", "mother", 3)];
    log.commit(starting(&mother, 1, children)).await.unwrap();
    let lease = log.take_flow("told").await.lease;
    log.go(&lease, 1, complete()).await;
    for name in ["mother", "told", "due", "own"] {
        other.import(read(&log, name).await).await.unwrap();
    }
    assert_eq!(read(&other, "mother").await.messages, read(&log, "mother").await.messages);
    refused(ErrorKind::Conflict, other.delete(&id("told")).await);
    let mother = other.take_flow("mother").await.lease;
    let mut commit = Commit::new(mother.clone(), 1);
    commit.consumed = vec![1];
    commit.next = suspend(None, &[Channel::children()]);
    assert_eq!(other.commit(commit).await.unwrap(), Committed::Suspended);
    let lease = other.take_flow("due").await.lease;
    other.go(&lease, 1, complete()).await;
    assert_eq!(other.state("mother").await, FlowState::Scheduled);
    let told = other.mail("mother").await;
    assert_eq!((told.len(), told[0].seq, told[0].ended.clone()), (1, 2, Some(id("due"))));
    other.cancel(&id("mother"), "enough").await.unwrap();
    assert_eq!(other.state("own").await, FlowState::Scheduled);
}

/// A retry knows which calls to make again.
pub async fn an_imported_flow_is_retried(harness: &impl Harness) {
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    seasoned(&log, "a", FlowState::Failed).await;
    other.import(read(&log, "a").await).await.unwrap();
    other.advance(SECOND).await;
    assert_eq!(other.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let paths: Vec<_> = other.records("a").await.iter().map(|record| record.path.to_string()).collect();
    assert_eq!(paths, ["1"]);
    let claimed = other.take_flow("a").await;
    assert_eq!((claimed.info.records, claimed.messages.len()), (1, 2));
    seasoned(&log, "b", FlowState::Stalled).await;
    other.import(read(&log, "b").await).await.unwrap();
    let types = [(Arc::from("Order"), 3)];
    assert_eq!(other.reoffer(&types, "build-1").await.unwrap(), 0);
    assert_eq!(other.reoffer(&types, "build-2").await.unwrap(), 1);
}

/// Ten thousand records and messages are one flow.
pub async fn a_large_flow_is_imported_whole(harness: &impl Harness) {
    const MANY: u32 = 10_000;
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, MANY)).await.unwrap();
    let mut snapshot = read(&log, "a").await;
    let message = crate::Message::new(0, signal("go"), log.now(), "x".into());
    snapshot.extras.received = MANY;
    snapshot.messages = (1..=MANY).map(|seq| crate::Message { seq, ..message.clone() }).collect();
    other.import(snapshot.clone()).await.unwrap();
    let imported = read(&other, "a").await;
    assert_eq!((imported.records.len(), imported.messages.len()), (MANY as usize, MANY as usize));
    assert!(imported.records == snapshot.records && imported.messages == snapshot.messages);
}

/// Nothing is kept of a flow that is not there.
pub async fn extras_of_an_unknown_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    assert_eq!(log.extras(&id("a")).await.unwrap(), None);
    assert_eq!(Snapshot::read(&*log.0, &id("a")).await.unwrap(), None);
    log.bring("a", FlowState::Completed).await;
    let extras = log.extras(&id("a")).await.unwrap().unwrap();
    assert_eq!(extras, crate::Extras::default());
    let info = log.info("a").await;
    log.delete(&id("a")).await.unwrap();
    log.refuses(ErrorKind::NotFound, log.reset(Reset::new(&info))).await;
}

/// Whatever its state, it is on the queue again, at once, with a time limit of the same length.
pub async fn reset_brings_every_state_back(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in FlowState::ALL {
        let name = state.to_string();
        seasoned(&log, &name, state).await;
        let before = log.info(&name).await;
        log.advance(SECOND).await;
        log.reset(Reset::new(&before)).await.unwrap();
        let read = log.read(&name).await;
        let mut expected = before.clone();
        expected.state = FlowState::Scheduled;
        expected.reason = None;
        expected.wake = crate::Wake::default();
        expected.due_at = Some(log.now());
        expected.finished_at = None;
        expected.deadline_at = Some(log.now().saturating_add(Duration::from_secs(3_600)));
        expected.epoch += 1;
        expected.deliveries = 0;
        expected.emitted = 0;
        assert_eq!((read.info, read.result.len()), (expected, 0), "{state}");
        assert_eq!(log.records(&name).await.len(), 3);
        let claimed = log.take_flow(&name).await;
        assert_eq!((claimed.info.epoch, claimed.info.deliveries), (before.epoch + 2, 1));
        log.go(&claimed.lease, 1, complete()).await;
    }
}

/// Records beyond those that are kept go, and so do those of the calls that are named; the others move up.
pub async fn reset_keeps_the_first_records(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (keep, again, left) in [(0, vec![], vec![]), (2, vec![], vec!["1", "2"]), (4, vec![1, 3, 7], vec!["2", "4"])] {
        let name = format!("keep-{keep}");
        let lease = log.start(&name).await;
        log.commit(steps(&lease, 1, 0, 6)).await.unwrap();
        log.go(&lease, 2, complete()).await;
        let mut reset = Reset::new(&log.info(&name).await);
        reset.keep = keep;
        reset.again = again.into_iter().map(CallPath::top).collect();
        log.reset(reset).await.unwrap();
        let records = log.records(&name).await;
        assert_eq!(records.iter().map(|record| record.path.to_string()).collect::<Vec<_>>(), left);
        assert!(records.iter().zip(1..).all(|(record, seq)| record.seq == seq));
        let claimed = log.take_flow(&name).await;
        assert_eq!((claimed.info.records as usize, &claimed.history), (left.len(), &records));
        log.commit(steps(&claimed.lease, 1, claimed.info.records, 2)).await.unwrap();
        assert_eq!(log.records(&name).await.len(), left.len() + 2);
    }
}

/// Whoever had the flow can write nothing any more, before and after the next claim.
pub async fn reset_fences_whoever_had_the_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let commit = steps(&lease, 1, 0, 2);
    log.commit(commit.clone()).await.unwrap();
    log.reset(Reset::new(&log.info("a").await)).await.unwrap();
    for _ in 0..2 {
        log.refuses(ErrorKind::LeaseLost, log.commit(commit.clone())).await;
        log.refuses(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 2, 1))).await;
        log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
        assert_eq!(log.beat(&lease).await, LeaseState::Lost);
        if log.state("a").await == FlowState::Scheduled {
            log.take_flow("a").await;
        }
    }
}

/// A flow that has gone on since it was seen stays as it is.
pub async fn reset_of_a_flow_that_went_on_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let seen = Reset::new(&log.info("a").await);
    log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
    log.refuses(ErrorKind::Conflict, log.reset(seen.clone())).await;
    let seen = Reset::new(&log.info("a").await);
    log.reset(seen.clone()).await.unwrap();
    log.refuses(ErrorKind::Conflict, log.reset(seen)).await;
    let lease = log.take_flow("a").await.lease;
    let seen = Reset::new(&log.info("a").await);
    log.go(&lease, 1, again("second")).await;
    log.refuses(ErrorKind::Conflict, log.reset(seen)).await;
    let mut reset = Reset::new(&log.info("a").await);
    reset.keep = 1;
    log.refuses(ErrorKind::Invalid, log.reset(reset)).await;
}

/// Messages come back under their numbers, wake nobody twice, and keep their order; later ones get later numbers.
pub async fn reset_puts_messages_back(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    for text in ["one", "two", "three"] {
        log.tell("a", &signal("go"), text).await;
    }
    let messages = log.mail("a").await;
    let mut commit = steps(&lease, 1, 0, 2);
    commit.consumed = vec![1, 2];
    log.commit(commit).await.unwrap();
    let mut reset = Reset::new(&log.info("a").await);
    reset.keep = 0;
    reset.messages = vec![messages[1].clone(), messages[2].clone()];
    log.reset(reset).await.unwrap();
    assert_eq!(log.mail("a").await, messages[1..]);
    log.tell("a", &signal("go"), "four").await;
    let claimed = log.take_flow("a").await;
    assert_eq!(claimed.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [2, 3, 4]);
    // It counts for a suspension, and leaves when it is consumed.
    let mut commit = Commit::new(claimed.lease.clone(), 1);
    commit.consumed = vec![3, 4];
    commit.next = suspend(None, &[signal("go")]);
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Awake);
    let mut commit = Commit::new(claimed.lease, 2);
    commit.consumed = vec![2];
    commit.next = suspend(None, &[signal("go")]);
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Suspended);
    let mut reset = Reset::new(&log.info("a").await);
    reset.messages = vec![messages[0].clone()];
    reset.messages[0].child = Some(ChildOutcome::Completed);
    log.refuses(ErrorKind::Invalid, log.reset(reset)).await;
}

/// The children that are named are cancelled with theirs and forgotten, unless they live on their own or belong to
/// another; what any child has told is withdrawn.
pub async fn reset_forgets_children(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let children = [
        child("live", "mother", 1),
        child("ended", "mother", 2),
        child("kept", "mother", 3),
        detached("own", "mother", 4),
    ];
    log.commit(starting(&mother, 1, children)).await.unwrap();
    let live = log.take_flow("live").await.lease;
    log.commit(starting(&live, 1, [child("grandchild", "live", 1)])).await.unwrap();
    for name in ["ended", "kept"] {
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, complete()).await;
    }
    log.add([flow("stranger")]).await;
    assert_eq!(log.mail("mother").await.len(), 2);
    let mut reset = Reset::new(&log.info("mother").await);
    reset.children = ["live", "ended", "own", "stranger", "nobody"].map(id).into();
    log.reset(reset).await.unwrap();
    for gone in ["live", "ended"] {
        assert_eq!(log.flow(&id(gone)).await.unwrap(), None, "{gone}");
    }
    assert_eq!(log.mail("mother").await, []);
    assert_eq!(log.state("grandchild").await, FlowState::Cancelled);
    assert_eq!((log.state("own").await, log.state("stranger").await), (FlowState::Scheduled, FlowState::Scheduled));
    log.refuses(ErrorKind::LeaseLost, log.commit(steps(&live, 2, 0, 1))).await;

    // The calls are made again: one finds its child, which tells its end again, another starts a new one.
    let mother = log.take_flow("mother").await.lease;
    log.commit(starting(&mother, 1, [child("live", "mother", 1), child("kept", "mother", 3)])).await.unwrap();
    let told: Vec<_> = log.mail("mother").await.iter().map(|message| message.ended.clone()).collect();
    assert_eq!(told, [Some(id("kept"))]);
    assert_eq!(log.state("live").await, FlowState::Scheduled);
}

/// What a flow has told its parent is withdrawn, and it tells its end once more.
pub async fn reset_is_heard_by_the_parent_again(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("a", "mother", 1)])).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, fail()).await;
    assert_eq!(log.mail("mother").await.len(), 1);
    log.reset(Reset::new(&log.info("a").await)).await.unwrap();
    assert_eq!(log.mail("mother").await, []);
    log.suspend(&mother, 2, None, &[Channel::children()]).await;
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, complete()).await;
    assert_eq!(log.state("mother").await, FlowState::Scheduled);
    assert_eq!(log.mail("mother").await[0].child, Some(ChildOutcome::Completed));
}

/// Of a reset and a commit at one time, either the commit is refused or the reset finds that the flow went on.
pub async fn reset_or_the_commit_wins(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let second = log.second().await;
    for round in 0..20 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
        let mut reset = Reset::new(&log.info(&name).await);
        reset.keep = 1;
        let (was_reset, committed) = tokio::join!(second.reset(reset), log.commit(steps(&lease, 2, 2, 1)));
        let records = log.records(&name).await.len();
        match (was_reset, committed) {
            (Ok(()), committed) => {
                refused(ErrorKind::LeaseLost, committed);
                assert_eq!((records, log.state(&name).await), (1, FlowState::Scheduled));
            }
            (was_reset, Ok(_)) => {
                refused(ErrorKind::Conflict, was_reset);
                assert_eq!((records, log.state(&name).await), (3, FlowState::Running));
            }
            (was_reset, committed) => panic!("neither was done: {was_reset:?}, {committed:?}"),
        }
    }
}
