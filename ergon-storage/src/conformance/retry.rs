//! Going on after a failure or a standstill.

use std::sync::Arc;

use super::{
    Harness,
    scene::{Handle, LEASE, SECOND, Scene, complete, fail, flow, id, record, request, signal, stall, steps},
};
use crate::{
    CallKind, CallPath, Commit, Committed, ErrorKind, FlowState, Lease, NewFlow, Phase, Record, Retried, Wake,
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

/// Fails a flow with these records, retries it, and returns the payloads of what is left.
async fn left_after_retry(log: &Handle, name: &str, records: Vec<Record>) -> Vec<String> {
    let lease = log.start(name).await;
    let mut commit = Commit::new(lease, 1);
    commit.records = records.clone();
    commit.next = fail();
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

/// The failed outcome at the end goes, with the attempts that led to it, and nothing else.
pub async fn retry_forgets_the_failed_call(harness: &impl Harness) {
    use Phase::{Attempt, Completed, Failed, Pending};
    let log = Scene::new(harness).await;
    let top = CallPath::top;
    let histories: [(&[Outcome], &[&str]); 10] = [
        (&[], &[]),
        (&[(top(1), Failed)], &[]),
        (&[(top(1), Completed), (top(2), Failed)], &["1"]),
        (&[(top(1), Attempt), (top(1), Attempt), (top(1), Failed)], &[]),
        // Attempts of other calls in between stay, also of calls below.
        (
            &[(top(2), Attempt), (top(1), Attempt), (top(3), Completed), (top(2).child(1), Attempt), (top(2), Failed)],
            &["2", "3", "4"],
        ),
        // What is pending stays pending.
        (&[(top(1), Pending), (top(1), Failed)], &["1"]),
        // A failure that the flow has caught earlier stays.
        (&[(top(1), Attempt), (top(1), Failed), (top(2), Failed)], &["1", "2"]),
        (&[(top(1), Failed), (top(2), Completed)], &["1", "2"]),
        (&[(top(1), Failed), (top(2), Attempt)], &["1", "2"]),
        // A path is not another one that begins like it.
        (&[(top(12), Attempt), (top(1), Attempt), (top(1).child(2), Attempt), (top(1), Failed)], &["1", "3"]),
    ];
    for (number, (records, expected)) in histories.into_iter().enumerate() {
        let records = records.iter().zip(1..).map(|((path, phase), seq)| outcome(seq, path.clone(), *phase));
        assert_eq!(left_after_retry(&log, &format!("flow-{number}"), records.collect()).await, expected, "{number}");
    }
}

/// A failed child or wait is forgotten like a failed step.
pub async fn retry_forgets_a_failed_call_of_any_kind(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for kind in [CallKind::Step, CallKind::Timer, CallKind::Signal, CallKind::Child] {
        let records = [(1, Phase::Completed), (2, Phase::Failed)]
            .map(|(seq, phase)| Record { kind, ..outcome(seq, CallPath::top(seq), phase) });
        assert_eq!(left_after_retry(&log, &kind.to_string(), records.to_vec()).await, ["1"]);
    }
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
    assert_eq!(left_after_retry(&log, "a", records).await.len(), 2_000);
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
        commit.next = fail();
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
