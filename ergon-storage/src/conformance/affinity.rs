//! Flows that are bound to workers.

use std::{sync::Arc, time::Duration};

use super::{
    Harness, Lifetime,
    durability::lifetime,
    scene::{Handle, MICRO, SECOND, Scene, complete, fail, flow, id, request, signal},
};
use crate::{
    Affinity, ClaimRequest, ClaimTarget, Claimed, Cleanup, Commit, ErrorKind, Filter, FlowState, Labels, Lease,
    NewFlow, Record, Takeover, Timestamp, Topic,
};

const PATIENCE: Duration = Duration::from_secs(5);
const TAKEOVER: Duration = Duration::from_secs(60);

fn prefers(name: &str) -> NewFlow {
    flow(name).with_affinity(Affinity::Prefer { patience: PATIENCE })
}

fn requires(name: &str) -> NewFlow {
    flow(name).with_affinity(Affinity::Require { takeover: Takeover::After(TAKEOVER) })
}

fn never_moves(name: &str) -> NewFlow {
    flow(name).with_affinity(Affinity::Require { takeover: Takeover::Never })
}

fn by(worker: &str, request: ClaimRequest) -> ClaimRequest {
    ClaimRequest { worker: worker.into(), ..request }
}

/// What a worker is given that asks for so many.
async fn ask(log: &Handle, worker: &str, limit: usize) -> Claimed {
    log.claim(by(worker, request(limit))).await.unwrap()
}

fn names(claimed: &Claimed) -> Vec<&str> {
    claimed.flows.iter().map(|flow| flow.info.id.as_str()).collect()
}

/// The worker has run the flow and gives it back.
async fn run_by(log: &Handle, worker: &str, flow: NewFlow) -> Lease {
    let (name, queue) = (flow.id.clone(), flow.queue.clone());
    log.add([flow]).await;
    let mut claimed = log.claim(by(worker, ClaimRequest::new("", ClaimTarget::Flow(name)))).await.unwrap();
    assert_eq!(claimed.flows.len(), 1, "anyone may begin a flow of {queue}");
    let lease = claimed.flows.remove(0).lease;
    log.release(&lease).await.unwrap();
    lease
}

/// A flow that has not run goes to anyone, whatever its affinity; and so does one that has run nowhere since.
pub async fn affinity_begins_anywhere(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([prefers("a"), requires("b"), never_moves("c"), flow("d")]).await;
    assert_eq!(names(&ask(&log, "first", 2).await), ["a", "b"]);
    assert_eq!(names(&ask(&log, "second", 9).await), ["c", "d"]);
}

/// A worker that no flow is bound to need not be heard of, whatever labels the flows have that it runs.
pub async fn affinity_asks_for_no_news_of_others(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a").with_labels(Labels::from([("customer", "7")])), requires("b")]).await;
    assert!(!ask(&log, "first", 1).await.is_place);
    assert!(!ask(&log, "first", 0).await.is_place);
    assert!(ask(&log, "first", 1).await.is_place);
}

/// A flow that prefers a worker is given to nobody else before its patience is at an end, and to anyone then.
pub async fn affinity_prefers_the_worker_that_ran_it_last(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", prefers("a")).await;
    let due_at = log.now();
    let other = ask(&log, "second", 9).await;
    assert_eq!((names(&other), other.next_due_at), (vec![], Some(due_at.saturating_add(PATIENCE))));
    assert_eq!(log.info("a").await.state, FlowState::Scheduled);
    log.advance(PATIENCE.checked_sub(MICRO).unwrap()).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    let claimed = ask(&log, "first", 9).await;
    assert_eq!((names(&claimed), claimed.flows[0].info.deliveries), (vec!["a"], 1), "to be passed over is no delivery");
    log.release(&claimed.flows[0].lease).await.unwrap();
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0], "its patience begins when it is due again");
    log.advance(PATIENCE).await;
    let claimed = ask(&log, "second", 9).await;
    assert_eq!(names(&claimed), ["a"]);
    // From now on it prefers that one.
    log.release(&claimed.flows[0].lease).await.unwrap();
    assert_eq!(names(&ask(&log, "first", 9).await), [""; 0]);
    assert_eq!(names(&ask(&log, "second", 9).await), ["a"]);
}

/// A flow that nobody has asked for is due for anyone once its patience has passed, without any keeping.
pub async fn affinity_counts_patience_from_the_due_instant(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", prefers("a")).await;
    log.advance(PATIENCE).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["a"]);
}

/// A flow that requires a worker goes to another when that one was not heard of for the time of the takeover.
pub async fn affinity_requires_the_worker_until_it_is_gone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", requires("a")).await;
    let heard_at = log.now();
    log.advance(SECOND * 10).await;
    let other = ask(&log, "second", 9).await;
    assert_eq!((names(&other), other.next_due_at), (vec![], Some(heard_at.saturating_add(TAKEOVER))));
    // It is heard of by a claim, though it asks for nothing.
    log.advance(SECOND * 10).await;
    assert!(ask(&log, "first", 0).await.is_place);
    log.advance(SECOND * 50).await;
    let other = ask(&log, "second", 9).await;
    let opens_at = heard_at.saturating_add(SECOND * 20 + TAKEOVER);
    assert_eq!((names(&other), other.next_due_at), (vec![], Some(opens_at)));
    log.advance((SECOND * 10).checked_sub(MICRO).unwrap()).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    log.advance(MICRO).await;
    let claimed = ask(&log, "second", 9).await;
    assert_eq!(names(&claimed), ["a"]);
    assert!(claimed.is_place, "it is bound to this one now");
    assert_eq!(names(&ask(&log, "first", 9).await), [""; 0], "never two at once");
}

/// A flow that is suspended for long is taken over at once when its worker has gone meanwhile.
pub async fn affinity_takes_over_at_once_from_who_is_long_gone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([requires("a"), requires("b")]).await;
    let wakes_at = log.now().saturating_add(TAKEOVER);
    for claimed in ask(&log, "first", 2).await.flows {
        log.suspend(&claimed.lease, 1, Some(wakes_at), &[signal("go")]).await;
    }
    log.advance(TAKEOVER.checked_sub(MICRO).unwrap()).await;
    log.tell("a", &signal("go"), "").await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    log.advance(MICRO).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["a", "b"], "nobody waits for it once more");
}

/// Work that never moves waits for its worker for ever, and is known to be abandoned a minute after that was heard of.
pub async fn affinity_never_moves_what_must_not(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", never_moves("a")).await;
    let heard_at = log.now();
    let minute = Affinity::ABANDONED_AFTER;
    let other = ask(&log, "second", 9).await;
    assert_eq!((names(&other), other.next_due_at), (vec![], Some(heard_at.saturating_add(minute))));
    assert!(!log.info("a").await.is_abandoned());
    log.advance(minute).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    let info = log.info("a").await;
    assert_eq!((info.due_at, info.is_abandoned(), info.state), (Some(Timestamp::MAX), true, FlowState::Scheduled));
    log.advance(Duration::from_secs(1_000_000)).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    assert_eq!(names(&ask(&log, "first", 9).await), ["a"], "a worker of the same name is the same place");
    assert!(!log.info("a").await.is_abandoned());
}

/// A worker that was not heard of for long is forgotten when another is heard of first. What was kept for it is taken over as
/// if it was not, also where that takes longer, and what never moves stays.
pub async fn affinity_forgets_workers_that_are_long_gone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let (week, far) = (SECOND * 7 * 24 * 3_600, Affinity::FORGOTTEN_AFTER * 2);
    let slow = flow("slow").with_affinity(Affinity::Require { takeover: Takeover::After(far) });
    for flow in [slow, requires("soon"), never_moves("never")] {
        run_by(&log, "first", flow).await;
    }
    let heard_at = log.now();
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    log.advance(Affinity::FORGOTTEN_AFTER.checked_sub(week).unwrap()).await;
    let announce = async |worker: &str| {
        let asked = ClaimRequest { is_place: true, ..by(worker, request(0)) };
        assert!(log.claim(asked).await.unwrap().is_place);
    };
    announce("third").await;
    log.advance(week).await;
    announce("fourth").await;
    assert!(!ask(&log, "first", 0).await.is_place, "it was forgotten");
    assert!(ask(&log, "third", 0).await.is_place, "and no other");
    let claimed = ask(&log, "second", 9).await;
    assert_eq!(names(&claimed), ["soon"]);
    log.go(&claimed.flows[0].lease, 1, complete()).await;
    let claimed = ask(&log, "second", 9).await;
    assert_eq!((names(&claimed), claimed.next_due_at), (vec![], Some(heard_at.saturating_add(far))));
    assert!(log.info("never").await.is_abandoned());
    log.advance(far.checked_sub(Affinity::FORGOTTEN_AFTER).unwrap().checked_sub(MICRO).unwrap()).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    log.advance(MICRO).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["slow"]);
    assert_eq!(names(&ask(&log, "first", 9).await), ["never"]);
}

/// Also where the next worker is first heard of because it takes a flow that is bound to it from then on.
pub async fn affinity_forgets_workers_when_another_takes_its_first_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", requires("a")).await;
    assert!(ask(&log, "first", 0).await.is_place);
    log.advance(Affinity::FORGOTTEN_AFTER).await;
    run_by(&log, "second", requires("b")).await;
    assert!(!ask(&log, "first", 0).await.is_place, "it was forgotten");
}

/// A worker that was restarted is the same place, also for what it was running.
pub async fn affinity_knows_a_restarted_worker_by_its_name(harness: &impl Harness) {
    let mut log = Scene::new(harness).await;
    log.add([requires("a")]).await;
    let claimed = ask(&log, "first", 1).await;
    assert_eq!(names(&claimed), ["a"]);
    log.advance(Duration::from_secs(31)).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0], "its lease has ended, and the worker is not gone");
    if lifetime(harness) != Lifetime::Handle {
        log = log.reopen().await;
    }
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    let again = ask(&log, "first", 9).await;
    assert_eq!((names(&again), again.flows[0].info.epoch, again.is_place), (vec!["a"], 2, true));
    assert_eq!(log.release(&claimed.flows[0].lease).await.unwrap_err().kind(), ErrorKind::LeaseLost);
}

/// A lease that has ended may still be renewed while the flow is kept for its worker.
pub async fn affinity_lets_a_late_worker_renew(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([requires("a")]).await;
    let lease = ask(&log, "first", 1).await.flows.remove(0).lease;
    log.advance(Duration::from_secs(31)).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    assert_eq!(log.beat(&lease).await, crate::LeaseState::Held);
    assert_eq!(names(&ask(&log, "first", 9).await), [""; 0], "it runs");
    log.go(&lease, 1, complete()).await;
}

/// What is kept takes up no place in a limit and stands in nobody's way; its own worker is given it in its turn.
pub async fn affinity_blocks_nobody(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for name in ["a", "b", "c", "d"] {
        run_by(&log, "first", requires(name)).await;
        log.advance(MICRO).await;
    }
    log.add([flow("e"), flow("f"), requires("g").with_priority(-1), flow("h").with_priority(1)]).await;
    assert_eq!(names(&ask(&log, "second", 2).await), ["h", "e"]);
    assert_eq!(names(&ask(&log, "second", 1).await), ["f"]);
    // Never more than were asked for.
    assert_eq!(names(&ask(&log, "first", 0).await), [""; 0]);
    assert_eq!(names(&ask(&log, "first", 1).await), ["a"]);
    log.add([flow("i").with_priority(1)]).await;
    assert_eq!(names(&ask(&log, "first", 2).await), ["i", "b"]);
    assert_eq!(names(&ask(&log, "second", 9).await), ["g"]);
    assert_eq!(names(&ask(&log, "first", 9).await), ["c", "d"]);
}

/// A worker is given what is kept for it only if it asks for such flows.
pub async fn affinity_goes_by_type_and_queue_too(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", requires("a")).await;
    run_by(&log, "first", NewFlow::new(id("b"), "Refund", 1, "").with_affinity(never())).await;
    run_by(&log, "first", requires("c").with_queue("other")).await;
    let all = super::scene::queues(&["default", "other"], &[("Order", 1), ("Refund", 1)]);
    let everything = |worker: &str| ClaimRequest { limit: 9, ..ClaimRequest::new(worker, all.clone()) };
    assert_eq!(names(&log.claim(everything("second")).await.unwrap()), [""; 0]);
    assert_eq!(names(&ask(&log, "first", 9).await), ["a"]);
    assert_eq!(names(&log.claim(everything("first")).await.unwrap()), ["b", "c"]);
}

fn never() -> Affinity {
    Affinity::Require { takeover: Takeover::Never }
}

/// A claim that names a flow is no way around its affinity.
pub async fn affinity_holds_for_a_claim_of_one_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", requires("a")).await;
    run_by(&log, "first", requires("b")).await;
    let one = |worker: &str, name: &str| ClaimRequest::new(worker, ClaimTarget::Flow(id(name)));
    let opens_at = log.now().saturating_add(TAKEOVER);
    let claimed = log.claim(one("second", "a")).await.unwrap();
    assert_eq!((names(&claimed), claimed.next_due_at), (vec![], Some(opens_at)));
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    assert_eq!(names(&log.claim(one("first", "b")).await.unwrap()), ["b"]);
    assert_eq!(names(&log.claim(one("first", "a")).await.unwrap()), ["a"]);
}

/// A session binds a flow whatever its affinity is, from the commit that says so until the one that says no more.
pub async fn affinity_of_a_session_goes_first(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([prefers("a")]).await;
    let lease = ask(&log, "first", 1).await.flows.remove(0).lease;
    let mut commit = Commit::new(lease.clone(), 1);
    let with_session = |more: &str| {
        let mut labels = prefers("a").labels;
        labels.set(Affinity::SESSION_LABEL, format!("require {}{more}", TAKEOVER.as_micros()));
        labels
    };
    commit.labels = Some(with_session(" and what the engine knows"));
    log.commit(commit).await.unwrap();
    assert!(log.claim(ClaimRequest { is_place: true, ..by("first", request(0)) }).await.unwrap().is_place);
    log.release(&lease).await.unwrap();
    log.advance(PATIENCE).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    let lease = ask(&log, "first", 1).await.flows.remove(0).lease;
    let mut commit = Commit::new(lease.clone(), 1);
    commit.labels = Some(prefers("a").labels);
    log.commit(commit).await.unwrap();
    log.release(&lease).await.unwrap();
    log.advance(PATIENCE).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["a"]);
}

/// A session may begin where the lease has ended: the flow, which was kept for its worker until now by its patience, is kept
/// by the session from then on.
pub async fn affinity_of_a_session_holds_for_what_was_kept_before(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([prefers("a")]).await;
    let lease = ask(&log, "first", 1).await.flows.remove(0).lease;
    log.advance(Duration::from_secs(30)).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0], "it is kept for its patience");
    let mut labels = prefers("a").labels;
    labels.set(Affinity::SESSION_LABEL, format!("require {}", TAKEOVER.as_micros()));
    log.commit(Commit { labels: Some(labels), ..Commit::new(lease, 1) }).await.unwrap();
    for late in [PATIENCE, TAKEOVER.checked_sub(PATIENCE + MICRO).unwrap()] {
        log.advance(late).await;
        assert_eq!(names(&ask(&log, "second", 9).await), [""; 0], "{late:?} later");
    }
    log.advance(MICRO).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["a"]);
}

/// A flow whose time is up waits for nobody.
pub async fn affinity_ends_with_the_time_limit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let ends_at = log.now().saturating_add(PATIENCE);
    run_by(&log, "first", never_moves("a").with_timeout(Some(PATIENCE))).await;
    let other = ask(&log, "second", 9).await;
    assert_eq!((names(&other), other.next_due_at), (vec![], Some(ends_at)));
    log.advance(PATIENCE).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["a"]);
}

/// Whoever cleans up after a time limit goes on with it, as the worker that a flow is bound to does with any other flow.
pub async fn affinity_holds_for_what_is_cleaned_up_after_the_time_limit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for bound in [prefers("a"), requires("b"), never_moves("c")] {
        let name = bound.id.to_string();
        log.add([bound.with_timeout(Some(SECOND))]).await;
        let lease = ask(&log, "first", 1).await.flows.remove(0).lease;
        log.advance(SECOND * 2).await;
        let records = vec![Record::cancel(1, log.now(), Record::TIME_IS_UP, "")];
        log.commit(Commit { records, cleanup: Cleanup::Underway, ..Commit::new(lease.clone(), 1) }).await.unwrap();
        log.release(&lease).await.unwrap();
        assert_eq!(names(&ask(&log, "second", 9).await), [""; 0], "{name} goes on where its clean-up began");
        log.advance(PATIENCE.checked_sub(SECOND).unwrap()).await;
        assert_eq!(names(&ask(&log, "second", 9).await), [""; 0], "{name}");
        assert_eq!(names(&ask(&log, "first", 9).await), [name]);
    }
    // Its worker dies.
    log.advance(TAKEOVER.checked_sub(MICRO).unwrap()).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["a"]);
    log.advance(MICRO).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["b"]);
}

/// What is kept can be cancelled, woken, retried and forgotten like any other.
pub async fn affinity_leaves_kept_flows_to_everyone_else(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for name in ["a", "b", "c"] {
        run_by(&log, "first", requires(name)).await;
    }
    log.add([requires("d")]).await;
    let lease = log.claim(by("first", ClaimRequest::new("", ClaimTarget::Flow(id("d"))))).await.unwrap();
    let at = log.now().saturating_add(SECOND);
    log.suspend(&lease.flows[0].lease, 1, Some(at), &[signal("go")]).await;
    log.advance(SECOND).await;
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    log.cancel(&id("a"), "enough").await.unwrap();
    assert!(log.delete(&id("a")).await.unwrap());
    log.cancel(&id("b"), "enough").await.unwrap();
    log.tell("d", &signal("go"), "").await;
    assert_eq!(log.state("d").await, FlowState::Scheduled);
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0], "it is for its worker as before");
    let claimed = ask(&log, "first", 9).await;
    assert_eq!(names(&claimed), ["c", "d"]);
    log.go(&claimed.flows[0].lease, 1, fail()).await;
    log.retry(&id("c")).await.unwrap();
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    assert_eq!(names(&ask(&log, "first", 9).await), ["c"]);
    // The id is another flow's now.
    log.add([requires("a")]).await;
    assert_eq!(names(&ask(&log, "second", 9).await), ["a"]);
}

/// Whoever keeps a flow wakes its worker, and nobody is woken for ever.
pub async fn affinity_hints_the_worker_that_a_flow_is_kept_for(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    run_by(&log, "first", requires("a")).await;
    let mut watch = log.watch(Topic::Queue);
    // What was hinted before is heard of first.
    while tokio::time::timeout(Duration::from_millis(200), watch.changed()).await.is_ok() {}
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.expect("the queue is hinted at");
    while tokio::time::timeout(Duration::from_millis(200), watch.changed()).await.is_ok() {}
    assert_eq!(names(&ask(&log, "second", 9).await), [""; 0]);
    assert!(tokio::time::timeout(Duration::from_millis(200), watch.changed()).await.is_err(), "it is kept already");
}

/// Labels that say nothing that a log could go by are refused.
pub async fn affinity_is_checked(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let day = Duration::from_secs(24 * 3_600);
    for bad in [
        Affinity::Prefer { patience: 366 * day },
        Affinity::Require { takeover: Takeover::After(Affinity::TAKEOVER_MIN.checked_sub(MICRO).unwrap()) },
        Affinity::Require { takeover: Takeover::After(366 * day) },
    ] {
        log.refuses(ErrorKind::Invalid, log.enqueue(vec![flow("a").with_affinity(bad)])).await;
    }
    for (name, bad) in [(Affinity::LABEL, ""), (Affinity::LABEL, "prefer"), (Affinity::SESSION_LABEL, "require soon")] {
        log.refuses(ErrorKind::Invalid, log.enqueue(vec![flow("a").with_label(name, bad)])).await;
    }
    let fine = flow("a").with_affinity(never()).with_affinity(Affinity::Anyone);
    assert_eq!(fine.labels, Labels::new());
    log.add([fine]).await;
}

/// However many bound flows are due before a free one, a claim passes over a part of them, and the next one goes on there.
pub async fn affinity_is_passed_over_in_parts(harness: &impl Harness) {
    const BOUND: usize = 3_000;
    let log = Scene::new(harness).await;
    log.add((0..BOUND).map(|number| requires(&format!("bound-{number:04}")))).await;
    let mut taken = 0;
    while taken < BOUND {
        let asked = ClaimRequest { lease: SECOND, history_max: 0, ..request(BOUND) };
        let claimed = log.claim(by("first", asked)).await.unwrap();
        assert_ne!(claimed.flows.len(), 0);
        taken += claimed.flows.len();
    }
    log.advance(SECOND * 2).await;
    log.add([flow("free")]).await;
    let due = async || {
        let due = Filter::all().due_before(log.now().saturating_add(MICRO));
        let flows = log.counts(&due).await.unwrap().iter().map(|count| count.flows).sum::<u64>();
        usize::try_from(flows).unwrap()
    };
    assert_eq!(due().await, BOUND + 1);
    let (mut claims, mut before) = (0, BOUND + 1);
    loop {
        claims += 1;
        let claimed = ask(&log, "second", 1).await;
        let passed = before - due().await;
        assert!(passed <= Affinity::PASSED_MAX + 24, "{passed} flows are passed over by one claim");
        if !claimed.flows.is_empty() {
            assert_eq!(names(&claimed), ["free"]);
            break;
        }
        assert!(claimed.next_due_at.is_some_and(|at| at <= log.now()), "there may be others behind");
        assert!(claims < 5, "after {claims} claims {} flows are before the free one", due().await);
        before -= passed;
    }
    // Nothing is lost on the way.
    assert_eq!(names(&ask(&log, "second", 1).await), [""; 0]);
    assert_eq!(names(&ask(&log, "first", 3).await), ["bound-0000", "bound-0001", "bound-0002"]);
}

/// A worker that is there, and asks for such flows no more, is gone for them; and is there again when it asks for them.
pub async fn affinity_ends_where_the_worker_asks_for_others(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let other = |name: &str, affinity| NewFlow::new(id(name), "Refund", 1, "").with_affinity(affinity);
    let takeover = Affinity::Require { takeover: Takeover::After(TAKEOVER) };
    let both = super::scene::queues(&["default"], &[("Order", 1), ("Refund", 1)]);
    let asks_for_both = async |worker: &str, limit| {
        let request = ClaimRequest { limit, is_place: true, ..ClaimRequest::new(worker, both.clone()) };
        log.claim(request).await.unwrap()
    };
    let asks_for_one =
        async |limit| log.claim(ClaimRequest { is_place: true, ..by("first", request(limit)) }).await.unwrap();
    asks_for_both("first", 0).await;
    run_by(&log, "first", requires("a")).await;
    run_by(&log, "first", other("b", takeover)).await;
    asks_for_both("first", 0).await;
    log.advance(SECOND * 10).await;
    // It was started again, with less than before.
    asks_for_one(0).await;
    let left_at = log.now();
    let opens_at = left_at.saturating_add(TAKEOVER);
    let second = asks_for_both("second", 9).await;
    assert_eq!((names(&second), second.next_due_at), (vec![], Some(opens_at)), "as if it was gone since now");
    for _ in 0..3 {
        log.advance(SECOND * 10).await;
        asks_for_one(0).await;
    }
    // And once more, with what it had before.
    asks_for_both("first", 0).await;
    let heard_at = log.now();
    for _ in 0..3 {
        log.advance(SECOND * 10).await;
        assert_eq!(names(&asks_for_both("second", 9).await), [""; 0]);
    }
    let second = asks_for_both("second", 9).await;
    assert_eq!((names(&second), second.next_due_at), (vec![], Some(heard_at.saturating_add(TAKEOVER))));
    // For good.
    asks_for_one(0).await;
    for _ in 0..6 {
        assert_eq!(names(&asks_for_both("second", 9).await), [""; 0]);
        log.advance(SECOND * 10).await;
        asks_for_one(0).await;
    }
    let (second, first) = (asks_for_both("second", 9).await, asks_for_one(9).await);
    assert_eq!((names(&second), names(&first)), (vec!["b"], vec!["a"]));
    for claimed in [second, first] {
        log.go(&claimed.flows[0].lease, 1, complete()).await;
    }
    // What never moves is abandoned by it.
    run_by(&log, "first", other("c", never())).await;
    log.advance(Affinity::ABANDONED_AFTER).await;
    asks_for_one(0).await;
    assert_eq!(names(&asks_for_both("second", 9).await), [""; 0]);
    assert!(log.info("c").await.is_abandoned());
    assert_eq!(names(&asks_for_both("first", 9).await), ["c"]);
}

/// Many workers ask for many bound flows: each flow is run by the worker that it is bound to, and by no other.
pub async fn affinity_holds_when_many_ask_at_once(harness: &impl Harness) {
    const FLOWS: usize = 40;
    let log = Scene::new(harness).await;
    let workers = ["first", "second", "third"];
    for number in 0..FLOWS {
        run_by(&log, workers[number % 3], requires(&format!("flow-{number}"))).await;
    }
    let ask = |worker: &'static str| {
        let log = log.handle().clone();
        tokio::spawn(async move {
            let mut found = Vec::new();
            for _ in 0..200 {
                let claimed = log.claim(by(worker, request(3))).await.unwrap();
                if claimed.flows.is_empty() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                found.extend(claimed.flows.into_iter().map(|flow| Arc::<str>::from(flow.info.id.as_str())));
                if found.len() == FLOWS.div_ceil(3) {
                    break;
                }
            }
            found
        })
    };
    let tasks = workers.map(ask);
    for (place, task) in tasks.into_iter().enumerate() {
        let mut found = task.await.unwrap();
        let mut expected: Vec<Arc<str>> =
            (place..FLOWS).step_by(3).map(|number| format!("flow-{number}").into()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "of {}", workers[place]);
    }
}
