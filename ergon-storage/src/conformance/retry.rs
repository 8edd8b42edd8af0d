//! Going on after a failure or a standstill.

use std::sync::Arc;

use super::{
    Harness,
    scene::{
        Handle, LEASE, SECOND, Scene, child, complete, detached, fail, fail_of, flow, id, record, request, signal,
        stall, starting, steps,
    },
};
use crate::{
    CallKind, CallPath, ChildOutcome, Commit, Committed, ErrorKind, FlowState, Lease, NewFlow, Parent, Phase, Record,
    Retried, Wake,
};

/// A failed flow is scheduled again as if it had not ended.
pub async fn retry_schedules_a_failed_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.bring("a", FlowState::Failed).await;
    log.advance(SECOND).await;
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let read = log.read("a").await;
    assert_eq!((read.info.state, read.info.due_at), (FlowState::Scheduled, Some(log.now())));
    assert_eq!((read.info.reason, read.info.finished_at, read.result.len()), (None, None, 0));
    assert_eq!((read.info.wake, read.info.deliveries, read.info.epoch), (Wake::default(), 0, 1));
    let claimed = log.take(1).await.remove(0);
    assert_eq!(claimed.lease.epoch, 2);
    log.go(&claimed.lease, 1, complete()).await;
    assert_eq!(log.state("a").await, FlowState::Completed);
}

/// A stalled flow is scheduled again with all that it has.
pub async fn retry_schedules_a_stalled_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "hello").await;
    let mut commit = steps(&lease, 1, 0, 2);
    // A failed outcome that the flow has dealt with: it did not fail of it.
    commit.records[1].phase = Phase::Failed;
    commit.next = stall("build-1");
    log.commit(commit).await.unwrap();
    let (history, mail) = (log.records("a").await, log.mail("a").await);
    log.advance(SECOND).await;
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let info = log.info("a").await;
    assert_eq!((info.state, info.due_at, info.reason), (FlowState::Scheduled, Some(log.now()), None));
    assert_eq!((log.records("a").await, log.mail("a").await), (history, mail));
    assert_eq!(log.reoffer(&types(), "build-2").await.unwrap(), 0, "it is stalled no more");
}

/// There is nothing to retry in any other state, which is said.
pub async fn retry_of_any_other_flow_changes_nothing(harness: &impl Harness) {
    use FlowState::{Cancelled, Completed, Running, Scheduled, Suspended};
    let log = Scene::new(harness).await;
    for state in [Scheduled, Running, Suspended, Completed, Cancelled] {
        let name = state.to_string();
        log.bring(&name, state).await;
        let before = log.snapshot().await;
        assert_eq!(log.retry(&id(&name)).await.unwrap(), Retried::Not(state));
        log.snapshot().await.assert_is(&before, "nothing has changed");
    }
    log.refuses(ErrorKind::NotFound, log.retry(&id("nobody"))).await;
}

/// What became of the call at a place.
type Outcome = (CallPath, Phase);

/// What a call at this place came to.
fn outcome(seq: u32, path: CallPath, phase: Phase) -> Record {
    Record { path, phase, payload: format!("record {seq}").into(), ..record(seq) }
}

/// Fails a flow with these records and these calls to make again, retries it, and returns the payloads of what is
/// left.
async fn left_after_retry(log: &Handle, name: &str, records: Vec<Record>, again: &[CallPath]) -> Vec<String> {
    let lease = log.start(name).await;
    let mut commit = Commit::new(lease, 1);
    commit.records = records.clone();
    commit.next = fail_of(again.iter().cloned());
    log.commit(commit).await.unwrap();
    assert_eq!(log.retry(&id(name)).await.unwrap(), Retried::Scheduled);
    let left = log.records(name).await;
    assert_eq!(log.info(name).await.records as usize, left.len());
    for (record, seq) in left.iter().zip(1..) {
        assert_eq!(record.seq, seq, "the records are renumbered without gaps");
        let before = records.iter().find(|before| before.payload == record.payload).unwrap();
        assert_eq!(*record, Record { seq, ..before.clone() }, "nothing but the number has changed");
    }
    // The flow goes on from there.
    let claimed = log.take_flow(name).await;
    assert!(claimed.history == left[..left.len().min(1_000)]);
    let before = u32::try_from(left.len()).unwrap();
    log.commit(steps(&claimed.lease, 1, before, 2)).await.unwrap();
    assert_eq!(log.records(name).await.len(), left.len() + 2);
    left.iter().map(|record| super::scene::text(&record.payload)["record ".len()..].to_owned()).collect()
}

/// Everything recorded of the calls that are made again goes, wherever it stands, and nothing else.
pub async fn retry_forgets_the_calls_to_be_made_again(harness: &impl Harness) {
    use Phase::{Attempt, Completed, Failed, Pending};
    let log = Scene::new(harness).await;
    let top = CallPath::top;
    let histories: [(&[Outcome], &[CallPath], &[&str]); 10] = [
        (&[], &[], &[]),
        (&[(top(1), Completed)], &[top(2)], &["1"]),
        (&[(top(1), Failed)], &[], &["1"]),
        (&[(top(1), Failed)], &[top(1)], &[]),
        (&[(top(1), Completed), (top(2), Failed)], &[top(2)], &["1"]),
        (&[(top(1), Pending), (top(1), Attempt), (top(1), Attempt), (top(1), Failed)], &[top(1)], &[]),
        // Other calls in between stay, also calls below.
        (
            &[(top(2), Attempt), (top(1), Attempt), (top(3), Completed), (top(2).child(1), Attempt), (top(2), Failed)],
            &[top(2)],
            &["2", "3", "4"],
        ),
        // Several calls, whatever was recorded after them.
        (
            &[(top(3), Failed), (top(2), Completed), (top(1), Attempt), (top(1), Failed), (top(4), Completed)],
            &[top(1), top(3)],
            &["2", "5"],
        ),
        // A failure that the flow has caught stays.
        (&[(top(1), Attempt), (top(1), Failed), (top(2), Failed)], &[top(2)], &["1", "2"]),
        // A path is not another one that begins like it.
        (
            &[(top(12), Attempt), (top(1), Attempt), (top(1).child(2), Attempt), (top(1), Failed)],
            &[top(1)],
            &["1", "3"],
        ),
    ];
    for (number, (records, again, expected)) in histories.into_iter().enumerate() {
        let records = records.iter().zip(1..).map(|((path, phase), seq)| outcome(seq, path.clone(), *phase));
        let left = left_after_retry(&log, &format!("flow-{number}"), records.collect(), again).await;
        assert_eq!(left, expected, "{number}");
    }
}

/// A failed child or wait is forgotten like a failed step, with what was pending of it.
pub async fn retry_forgets_calls_of_any_kind(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for kind in [CallKind::Step, CallKind::Timer, CallKind::Signal, CallKind::Child] {
        let records = [(1, 1, Phase::Completed), (2, 2, Phase::Pending), (3, 2, Phase::Failed)]
            .map(|(seq, call, phase)| Record { kind, ..outcome(seq, CallPath::top(call), phase) });
        assert_eq!(left_after_retry(&log, &kind.to_string(), records.to_vec(), &[CallPath::top(2)]).await, ["1"]);
    }
}

/// What was to be made again is so once: a later standstill or failure does not hang on it.
pub async fn retry_forgets_no_call_twice(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let mut commit = steps(&lease, 1, 0, 2);
    commit.next = fail_of([commit.records[1].path.clone()]);
    log.commit(commit).await.unwrap();
    for next in [stall("build-1"), fail(), stall("build-1")] {
        log.retry(&id("a")).await.unwrap();
        assert_eq!(log.records("a").await.len(), 1);
        let lease = log.take_flow("a").await.lease;
        log.go(&lease, 1, next).await;
    }
}

/// The time limit of a flow that is retried begins anew.
pub async fn retry_begins_the_time_limit_anew(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (name, next) in [("failed", fail()), ("stalled", stall("build-1"))] {
        let limited = flow(name).with_start(crate::Start::After(SECOND)).with_timeout(Some(SECOND * 5));
        log.add([limited]).await;
        log.advance(SECOND * 2).await;
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, next).await;
        log.advance(SECOND * 60).await;
        assert_eq!(log.retry(&id(name)).await.unwrap(), Retried::Scheduled);
        assert_eq!(log.info(name).await.deadline_at, Some(log.now().saturating_add(SECOND * 5)));
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, complete()).await;
    }
}

/// A flow that has failed keeps its messages for when it is retried.
pub async fn retry_finds_the_mailbox_as_it_was(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "1").await;
    log.tell("a", &signal("go"), "2").await;
    let mut commit = Commit::new(lease, 1);
    (commit.consumed, commit.next) = (vec![1], fail());
    log.commit(commit).await.unwrap();
    let mail = log.mail("a").await;
    assert_eq!(mail.iter().map(|message| message.seq).collect::<Vec<_>>(), [2]);
    log.retry(&id("a")).await.unwrap();
    assert_eq!(log.take_flow("a").await.messages, mail);
}

/// What a mailbox holds of children: the calls and how they ended.
async fn heard(log: &Handle, name: &str) -> Vec<(String, ChildOutcome)> {
    let mail = log.mail(name).await.into_iter();
    mail.filter_map(|message| Some((message.reference?.to_string(), message.child?))).collect()
}

/// A flow that is retried would fail of the failures that it has not taken in: they are withdrawn, and the children
/// scheduled again. Whatever else waits in the mailbox stays.
pub async fn retry_takes_along_the_children_that_failed(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let names = ["taken in", "failed", "completed", "cancelled", "retried", "live", "gone"];
    let children = names.iter().zip(1..).map(|(name, call)| child(name, "mother", call));
    log.commit(starting(&mother, 1, children.chain([detached("free", "mother", 8)]))).await.unwrap();
    log.tell("mother", &signal("go"), "1").await;
    for name in ["taken in", "failed", "retried", "gone", "free", "completed"] {
        let lease = log.take_flow(name).await.lease;
        let mut commit = steps(&lease, 1, 0, 2);
        let again = commit.records[1].path.clone();
        commit.next = if name == "completed" { complete() } else { fail_of([again]) };
        log.commit(commit).await.unwrap();
    }
    log.cancel(&id("cancelled"), "enough").await.unwrap();
    let taken_in =
        log.mail("mother").await.iter().find(|message| message.reference.as_deref() == Some("1")).unwrap().seq;
    log.commit(Commit { consumed: vec![taken_in], next: fail(), ..Commit::new(mother, 2) }).await.unwrap();
    // A child that fails while its parent has failed is no other.
    assert_eq!(log.retry(&id("retried")).await.unwrap(), Retried::Scheduled);
    let lease = log.take_flow("retried").await.lease;
    log.go(&lease, 1, fail()).await;
    assert!(log.delete(&id("gone")).await.unwrap());
    log.advance(SECOND).await;
    assert_eq!(log.retry(&id("mother")).await.unwrap(), Retried::Scheduled);
    let expected = [("7", ChildOutcome::Failed), ("3", ChildOutcome::Completed), ("4", ChildOutcome::Cancelled)];
    assert_eq!(heard(&log, "mother").await, expected.map(|(call, outcome)| (call.to_owned(), outcome)));
    assert_eq!(log.mail("mother").await[0].channel, signal("go"));
    for name in ["failed", "retried"] {
        let info = log.info(name).await;
        assert_eq!(
            (info.state, info.due_at, info.finished_at),
            (FlowState::Scheduled, Some(log.now()), None),
            "{name}"
        );
        assert_eq!((info.records, info.reason), (1, None), "{name}: its calls are made again");
    }
    for (name, state) in [
        ("taken in", FlowState::Failed),
        ("completed", FlowState::Completed),
        ("cancelled", FlowState::Cancelled),
        ("live", FlowState::Scheduled),
        ("free", FlowState::Failed),
    ] {
        assert_eq!(log.state(name).await, state, "{name}");
    }
    let lease = log.take_flow("failed").await.lease;
    log.go(&lease, 1, complete()).await;
    assert_eq!(heard(&log, "mother").await.last(), Some(&("2".to_owned(), ChildOutcome::Completed)));
}

/// The children that are taken along take along theirs, at any depth.
pub async fn retry_takes_along_failed_descendants(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = super::scene::names(0..200);
    log.add([flow(&names[0])]).await;
    for pair in names.windows(2) {
        let lease = log.take_flow(&pair[0]).await.lease;
        let beside = format!("beside {}", pair[1]);
        let mut commit = starting(&lease, 1, [child(&pair[1], &pair[0], 1), child(&beside, &pair[0], 2)]);
        commit.next = fail();
        log.commit(commit).await.unwrap();
    }
    let lease = log.take_flow(&names[199]).await.lease;
    log.go(&lease, 1, fail()).await;
    for pair in names.windows(2) {
        assert_eq!(heard(&log, &pair[0]).await, [("1".into(), ChildOutcome::Failed)]);
    }
    assert_eq!(log.retry(&id(&names[0])).await.unwrap(), Retried::Scheduled);
    let counts = log.counts(&crate::Filter::all()).await.unwrap();
    assert_eq!((counts.len(), counts[0].state, counts[0].flows), (1, FlowState::Scheduled, 399));
    for name in &names {
        assert_eq!(log.mail(name).await, []);
    }
}

/// Very many children are taken along at once.
pub async fn retry_takes_along_many_children(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let names = super::scene::names(0..1_000);
    let children = names.iter().zip(1..).map(|(name, call)| child(name, "mother", call));
    log.commit(starting(&mother, 1, children)).await.unwrap();
    for claimed in log.take(1_000).await {
        log.go(&claimed.lease, 1, fail()).await;
    }
    log.go(&mother, 2, fail()).await;
    assert_eq!(log.retry(&id("mother")).await.unwrap(), Retried::Scheduled);
    assert_eq!(log.take(2_000).await.len(), 1_001);
    assert_eq!(log.mail("mother").await, []);
}

/// A call that is made again hears its child anew, and it alone says what becomes of that one.
pub async fn retry_leaves_children_to_the_calls_made_again(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let nested = CallPath::top(3).child(1);
    let children = [
        child("a", "mother", 1),
        child("b", "mother", 2),
        flow("c").with_parent(Parent { id: id("mother"), path: nested.clone(), detached: false }),
    ];
    log.commit(starting(&mother, 1, children.clone())).await.unwrap();
    for (name, next) in [("a", fail()), ("b", complete()), ("c", fail())] {
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, next).await;
    }
    let again = [CallPath::top(1), CallPath::top(2), nested];
    log.go(&mother, 2, fail_of(again)).await;
    assert_eq!(log.retry(&id("mother")).await.unwrap(), Retried::Scheduled);
    assert_eq!(log.mail("mother").await, []);
    assert_eq!((log.state("a").await, log.state("c").await), (FlowState::Failed, FlowState::Failed));
    let mother = log.take_flow("mother").await.lease;
    let mut wanted = children;
    wanted[2].input = "other".into();
    log.commit(starting(&mother, 1, wanted)).await.unwrap();
    assert_eq!(heard(&log, "mother").await, [("2".into(), ChildOutcome::Completed)]);
    for name in ["a", "c"] {
        assert_eq!(log.state(name).await, FlowState::Scheduled, "{name}");
    }
    assert_eq!((log.info("a").await.epoch, log.info("c").await.epoch), (1, 0));
}

/// Only the last child of a call is waited for, and only a child of this flow: no other one is taken along.
pub async fn retry_takes_along_no_other_child(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let old = log.start_flow(child("old", "mother", 1)).await;
    log.go(&old, 1, fail()).await;
    let mother = log.start("mother").await;
    for (number, name) in [(1, "former"), (2, "last")] {
        log.commit(starting(&mother, number, [child(name, "mother", 1)])).await.unwrap();
        let lease = log.take_flow(name).await.lease;
        log.go(&lease, 1, fail()).await;
    }
    log.go(&mother, 3, fail()).await;
    log.retry(&id("mother")).await.unwrap();
    let states = [log.state("old").await, log.state("former").await, log.state("last").await];
    assert_eq!(states, [FlowState::Failed, FlowState::Failed, FlowState::Scheduled]);
    let heard: Vec<_> = log.mail("mother").await.into_iter().filter_map(|message| message.ended).collect();
    assert_eq!(heard, [id("former")], "what the other one has told is nothing to the call");
}

/// A stalled flow has not failed: it finds the failures of its children where they were.
pub async fn retry_of_a_stalled_flow_takes_nobody_along(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    log.commit(starting(&mother, 1, [child("a", "mother", 1)])).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, fail()).await;
    log.go(&mother, 2, stall("build-1")).await;
    log.retry(&id("mother")).await.unwrap();
    assert_eq!(heard(&log, "mother").await, [("1".into(), ChildOutcome::Failed)]);
    assert_eq!(log.state("a").await, FlowState::Failed);
}

/// A long history with many attempts is renumbered as a whole.
pub async fn retry_renumbers_a_long_history(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mut records = Vec::new();
    for seq in 1..=3_000 {
        let record = match seq % 3 {
            0 => outcome(seq, CallPath::top(7), Phase::Attempt),
            _ => outcome(seq, CallPath::top(1_000 + seq), Phase::Completed),
        };
        records.push(record);
    }
    records.push(outcome(3_001, CallPath::top(7), Phase::Failed));
    assert_eq!(left_after_retry(&log, "a", records, &[CallPath::top(7)]).await.len(), 2_000);
}

/// A flow can fail and be retried any number of times.
pub async fn retry_again_and_again(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for epoch in 1..=10 {
        let claimed = log.take_flow("a").await;
        assert_eq!((claimed.lease.epoch, claimed.info.deliveries, claimed.info.records), (epoch, 1, 0));
        let mut commit = steps(&claimed.lease, 1, 0, 1);
        commit.records[0].phase = Phase::Failed;
        commit.next = fail_of([commit.records[0].path.clone()]);
        log.commit(commit).await.unwrap();
        assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
        assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Not(FlowState::Scheduled));
    }
}

/// Writes under the lease of the former run are refused.
pub async fn retry_ends_the_former_lease(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.bring("a", FlowState::Failed).await.unwrap();
    log.retry(&id("a")).await.unwrap();
    assert_eq!(log.beat(&lease).await, crate::LeaseState::Lost);
    log.refuses(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 0, 1))).await;
    log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
}

fn types() -> [(Arc<str>, u32); 1] {
    [("Order".into(), 1)]
}

/// A flow that one build could not go on with is offered to another one, once.
pub async fn reoffer_to_another_build(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let mut commit = steps(&lease, 1, 0, 2);
    commit.records[1].phase = Phase::Failed;
    commit.next = stall("build-1");
    log.commit(commit).await.unwrap();
    log.advance(SECOND).await;
    assert_eq!(log.reoffer(&types(), "build-1").await.unwrap(), 0, "not to the same build");
    assert_eq!(log.state("a").await, FlowState::Stalled);
    assert_eq!(log.reoffer(&types(), "build-2").await.unwrap(), 1);
    let info = log.info("a").await;
    assert_eq!((info.state, info.due_at, info.reason), (FlowState::Scheduled, Some(log.now()), None));
    assert_eq!(info.records, 2, "the history is as it was");
    assert_eq!(log.reoffer(&types(), "build-2").await.unwrap(), 0);
    let lease = log.take_flow("a").await.lease;
    assert_eq!(log.go(&lease, 1, complete()).await, Committed::Applied);
}

/// Only flows of the types and versions that the build has are offered to it.
pub async fn reoffer_of_these_types_and_versions(harness: &impl Harness) {
    use FlowState::{Scheduled, Stalled};
    let log = Scene::new(harness).await;
    let stalled = async |name: &str, flow_type: &str, version| -> Lease {
        let lease = log.start_flow(NewFlow::new(id(name), flow_type, version, &b""[..]).with_queue(name)).await;
        log.go(&lease, 1, stall("build-1")).await;
        lease
    };
    stalled("a", "Order", 1).await;
    stalled("b", "Order", 2).await;
    stalled("c", "Refund", 1).await;
    stalled("d", "Refund", 2).await;
    log.bring("running", FlowState::Running).await;
    assert_eq!(log.reoffer(&[], "build-2").await.unwrap(), 0);
    let pairs = [("Order".into(), 2), ("Refund".into(), 1), ("Order".into(), 2)];
    assert_eq!(log.reoffer(&pairs, "build-2").await.unwrap(), 2);
    let states = [log.state("a").await, log.state("b").await, log.state("c").await, log.state("d").await];
    assert_eq!(states, [Stalled, Scheduled, Scheduled, Stalled]);
    assert_eq!(log.state("running").await, FlowState::Running);
}

/// A flow that the log has stalled for its deliveries is offered to no build.
pub async fn reoffer_leaves_poison_alone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.start("a").await;
    log.advance(LEASE).await;
    let mut poisoned = request(1);
    poisoned.deliveries_max = 1;
    log.claim(poisoned.clone()).await.unwrap();
    assert_eq!(log.state("a").await, FlowState::Stalled);
    assert_eq!(log.reoffer(&types(), "build-2").await.unwrap(), 0);
    assert_eq!(log.reoffer(&types(), "").await.unwrap(), 0);
    // Nor when a build had stalled it earlier.
    log.retry(&id("a")).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, stall("build-1")).await;
    assert_eq!(log.reoffer(&types(), "build-2").await.unwrap(), 1);
    log.claim(poisoned).await.unwrap();
    assert_eq!(log.state("a").await, FlowState::Stalled);
    assert_eq!(log.reoffer(&types(), "build-2").await.unwrap(), 0);
}
