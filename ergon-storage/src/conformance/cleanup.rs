//! Flows that clean up before a cancellation ends them.

use super::{
    Harness,
    scene::{
        Handle, LEASE, SECOND, Scene, again, child, complete, fail_of, flow, going, id, message, record, refused,
        request, signal, stall, starting, steps, text,
    },
};
use crate::{
    CallKind, CallPath, Cancelled, Channel, ChildOutcome, Cleanup, Commit, Committed, ErrorKind, FlowState, Imported,
    Lease, LeaseState, Limits, Next, Phase, Record, Reset, Retried, Snapshot,
};

/// A commit of one step, with something to clean up.
fn needing(lease: &Lease, number: u32, before: u32) -> Commit {
    Commit { cleanup: Cleanup::Needed, ..steps(lease, number, before, 1) }
}

fn cancelled(reason: &str) -> Next {
    Next::Cancel { reason: reason.into() }
}

impl Handle {
    /// A running flow that has one record and something to clean up.
    async fn needy(&self, name: &str) -> Lease {
        let lease = self.start(name).await;
        self.commit(needing(&lease, 1, 0)).await.unwrap();
        lease
    }

    /// A flow that was cancelled and that somebody has claimed to clean up.
    async fn cleaning(&self, name: &str) -> Lease {
        let lease = self.needy(name).await;
        self.cancel(&id(name), "enough").await.unwrap();
        self.release(&lease).await.unwrap();
        self.take_flow(name).await.lease
    }
}

/// What a commit says stays, whatever later ones say that is less, until the flow begins again.
pub async fn cleanup_only_rises(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let cleanup = async |log: &Handle| log.info("a").await.cleanup;
    assert_eq!(cleanup(&log).await, Cleanup::None);
    log.commit(needing(&lease, 1, 0)).await.unwrap();
    assert_eq!(cleanup(&log).await, Cleanup::Needed);
    log.commit(steps(&lease, 2, 1, 1)).await.unwrap();
    assert_eq!(cleanup(&log).await, Cleanup::Needed);
    assert_eq!(log.go(&lease, 3, again("next")).await, Committed::Applied);
    assert_eq!(cleanup(&log).await, Cleanup::None);
    assert_eq!(log.take_flow("a").await.info.cleanup, Cleanup::None);
    assert_eq!(log.cancel(&id("a"), "").await.unwrap(), Cancelled::Now);
    assert_eq!(log.state("a").await, FlowState::Cancelled);
}

/// A flow that has something to clean up is scheduled for that, with a record of the cancellation and its mailbox.
pub async fn cleanup_comes_before_the_end(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in ["scheduled", "suspended", "stalled"] {
        let lease = log.needy(state).await;
        log.tell(state, &signal("other"), "mail").await;
        match state {
            "scheduled" => log.release(&lease).await.unwrap(),
            "suspended" => log.suspend(&lease, 2, None, &[signal("go")]).await,
            _ => _ = log.go(&lease, 2, stall("build")).await,
        }
        log.advance(SECOND).await;
        assert_eq!(log.cancel(&id(state), "enough, 够了").await.unwrap(), Cancelled::Now);
        let info = log.info(state).await;
        assert_eq!((info.state, info.cleanup, info.reason.as_deref()), (FlowState::Scheduled, Cleanup::Underway, None));
        assert_eq!((info.due_at, info.finished_at, info.deliveries), (Some(log.now()), None, 0), "{state}");
        assert!(info.is_cleaning_up());
        let expected = Record::cancel(2, log.now(), Record::CANCELLED, "enough, 够了");
        assert_eq!(log.records(state).await, [record(1), expected.clone()], "{state}");
        assert_eq!(
            (expected.kind, expected.phase, expected.path),
            (CallKind::Cancel, Phase::Completed, CallPath::top(0))
        );
        assert_eq!(log.texts(state).await, ["mail"]);
        let before = log.snapshot().await;
        assert_eq!(log.cancel(&id(state), "again").await.unwrap(), Cancelled::Already(FlowState::Cancelled));
        log.snapshot().await.assert_is(&before, "it is cancelled already");
        let claimed = log.take_flow(state).await;
        assert_eq!((claimed.history.len(), claimed.info.cleanup), (2, Cleanup::Underway));
        log.tell(state, &signal("more"), "").await;
    }
}

/// While somebody runs it, the clean-up waits until that one lets go, or until the lease ends.
pub async fn cleanup_waits_for_the_one_who_runs_it(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for name in ["let go", "gone"] {
        let lease = log.needy(name).await;
        let until = log.now().saturating_add(LEASE);
        log.advance(SECOND).await;
        log.cancel(&id(name), "enough").await.unwrap();
        assert_eq!((log.state(name).await, log.info(name).await.due_at), (FlowState::Scheduled, Some(until)));
        assert_eq!(log.take(1).await.len(), 0);
        assert_eq!(log.beat(&lease).await, LeaseState::Cancelled);
        log.refuses(ErrorKind::LeaseLost, log.commit(steps(&lease, 2, 2, 1))).await;
        log.refuses(ErrorKind::LeaseLost, log.commit(needing(&lease, 1, 0))).await;
        log.refuses(ErrorKind::LeaseLost, log.commit(going(&lease, 2, complete()))).await;
        if name == "let go" {
            log.release(&lease).await.unwrap();
            assert_eq!(log.info(name).await.due_at, Some(log.now()));
        } else {
            log.advance(LEASE).await;
        }
        let claimed = log.take_flow(name).await;
        assert_eq!((claimed.info.epoch, claimed.info.deliveries), (2, 1));
        assert_eq!(log.beat(&lease).await, LeaseState::Lost);
        log.refuses(ErrorKind::LeaseLost, log.release(&lease)).await;
        log.commit(steps(&claimed.lease, 1, 2, 1)).await.unwrap();
        assert_eq!(log.beat(&claimed.lease).await, LeaseState::Held);
    }
}

/// It ends with the commit that says so, and tells the parent then and not before.
pub async fn cleanup_ends_as_cancelled(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let root = log.start("root").await;
    log.commit(starting(&root, 1, [child("a", "root", 4)])).await.unwrap();
    log.suspend(&root, 2, None, &[Channel::children()]).await;
    let lease = log.take_flow("a").await.lease;
    log.commit(needing(&lease, 1, 0)).await.unwrap();
    log.cancel(&id("a"), "enough").await.unwrap();
    assert_eq!((log.mail("root").await.len(), log.state("root").await), (0, FlowState::Suspended));
    log.release(&lease).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    log.tell("a", &signal("x"), "").await;
    let last = Commit { next: cancelled("enough, 够了"), ..steps(&lease, 1, 2, 1) };
    for _ in 0..2 {
        assert_eq!(log.commit(last.clone()).await.unwrap(), Committed::Applied);
        let info = log.info("a").await;
        assert_eq!((info.state, info.reason.as_deref()), (FlowState::Cancelled, Some("enough, 够了")));
        assert_eq!((info.finished_at, info.due_at, info.records), (Some(log.now()), None, 3));
        assert_eq!(log.mail("a").await.len(), 0);
        let heard = log.mail("root").await;
        assert_eq!((heard.len(), heard[0].child), (1, Some(ChildOutcome::Cancelled)));
        assert_eq!((text(&heard[0].payload), log.state("root").await), ("enough, 够了".into(), FlowState::Scheduled));
    }
    assert_eq!(log.beat(&lease).await, LeaseState::Cancelled);
    assert_eq!(log.cancel(&id("a"), "").await.unwrap(), Cancelled::Already(FlowState::Cancelled));
    refused(ErrorKind::Finished, log.send(message("a", &signal("go"), "")).await);
    assert!(!log.info("a").await.is_cleaning_up());
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Not(FlowState::Cancelled));
}

/// A clean-up may sleep past the time limit, which wakes it no more; also one that the time limit has begun.
pub async fn cleanup_has_no_time_limit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for by in ["cancellation", "time limit"] {
        let lease = log.start_flow(flow(by).with_timeout(Some(SECOND))).await;
        let deadline = log.info(by).await.deadline_at;
        let later = log.now().saturating_add(SECOND * 60);
        let asleep = Next::suspend(crate::Wake { at: Some(later), channels: vec![signal("x")] });
        let answer = if by == "cancellation" {
            log.commit(needing(&lease, 1, 0)).await.unwrap();
            log.cancel(&id(by), "enough").await.unwrap();
            log.release(&lease).await.unwrap();
            log.advance(SECOND * 2).await;
            let lease = log.take_flow(by).await.lease;
            log.commit(going(&lease, 1, asleep)).await.unwrap()
        } else {
            log.advance(SECOND * 2).await;
            let mut commit = Commit { cleanup: Cleanup::Underway, ..going(&lease, 1, asleep) };
            commit.records = vec![Record::cancel(1, log.now(), Record::TIME_IS_UP, "late")];
            log.commit(commit).await.unwrap()
        };
        assert_eq!(answer, Committed::Suspended, "{by}");
        let info = log.info(by).await;
        assert_eq!((info.due_at, info.deadline_at), (Some(later), deadline), "{by}");
        log.tell(by, &signal("x"), "").await;
        assert_eq!(log.info(by).await.due_at, Some(log.now()), "{by}");
    }
}

/// A clean-up that has failed goes on where it stopped when the flow is retried, and is not stalled for what it does not do.
pub async fn cleanup_is_retried(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.cleaning("a").await;
    let failed = Commit { next: fail_of([CallPath::top(4)]), ..steps(&lease, 1, 2, 2) };
    log.commit(failed).await.unwrap();
    assert_eq!(log.cancel(&id("a"), "").await.unwrap(), Cancelled::Already(FlowState::Failed));
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let records = log.records("a").await;
    assert_eq!(
        records.iter().map(|record| record.kind).collect::<Vec<_>>(),
        [CallKind::Step, CallKind::Cancel, CallKind::Step]
    );
    assert!(log.info("a").await.is_cleaning_up());
    assert_eq!(log.cancel(&id("a"), "").await.unwrap(), Cancelled::Already(FlowState::Cancelled));
    for _ in 0..3 {
        let mut request = request(1);
        request.deliveries_max = 2;
        log.claim(request).await.unwrap();
        log.advance(LEASE).await;
    }
    assert_eq!(log.state("a").await, FlowState::Stalled, "it is poison");
    assert_eq!(log.info("a").await.cleanup, Cleanup::Underway);
    assert_eq!(log.retry(&id("a")).await.unwrap(), Retried::Scheduled);
    let lease = log.take_flow("a").await.lease;
    assert_eq!(log.go(&lease, 1, cancelled("enough")).await, Committed::Applied);
}

/// Descendants are cancelled when their ancestor is, and each that has something to clean up does so by itself.
pub async fn cleanup_of_descendants(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let root = log.needy("root").await;
    let children = [child("plain", "root", 2), child("needy", "root", 3)];
    log.commit(starting(&root, 2, children)).await.unwrap();
    let needy = log.take_flow("needy").await.lease;
    let below = [child("below", "needy", 2)];
    log.commit(Commit { children: below.into(), ..needing(&needy, 1, 0) }).await.unwrap();
    log.cancel(&id("root"), "enough").await.unwrap();
    for (name, state) in [
        ("root", FlowState::Scheduled),
        ("plain", FlowState::Cancelled),
        ("needy", FlowState::Scheduled),
        ("below", FlowState::Cancelled),
    ] {
        assert_eq!(log.state(name).await, state, "{name}");
    }
    assert_eq!(
        (log.mail("root").await.len(), log.mail("needy").await.len()),
        (0, 0),
        "those who go with it tell nothing"
    );
    log.release(&needy).await.unwrap();
    let needy = log.take_flow("needy").await.lease;
    log.go(&needy, 1, cancelled("enough")).await;
    assert_eq!(log.mail("root").await.len(), 1, "it has ended by itself");
    log.refuses(ErrorKind::Conflict, log.delete(&id("needy"))).await;
}

/// What is cleaning up already when its ancestor is cancelled goes on with that, for the reason that it was told first.
pub async fn cleanup_of_a_descendant_is_not_begun_again(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let root = log.needy("root").await;
    log.commit(starting(&root, 2, [child("needy", "root", 2)])).await.unwrap();
    let needy = log.take_flow("needy").await.lease;
    let below = [child("below", "needy", 2)];
    log.commit(needing(&needy, 1, 0)).await.unwrap();
    log.cancel(&id("needy"), "first").await.unwrap();
    log.release(&needy).await.unwrap();
    let needy = log.take_flow("needy").await.lease;
    log.commit(Commit { children: below.into(), ..steps(&needy, 1, 2, 1) }).await.unwrap();
    let before = log.read("needy").await;
    log.cancel(&id("root"), "second").await.unwrap();
    assert_eq!(log.read("needy").await, before);
    assert_eq!(log.records("needy").await.iter().filter(|record| record.kind == CallKind::Cancel).count(), 1);
    assert_eq!(log.state("below").await, FlowState::Scheduled, "it belongs to the clean-up");
    assert_eq!(log.go(&needy, 2, cancelled("first")).await, Committed::Applied);
}

/// A flow that is abandoned ends at once, whatever it has to clean up and whoever runs it; its children are cancelled.
pub async fn abandon_ends_at_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for name in ["plain", "needy", "cleaning"] {
        let parent = format!("parent of {name}");
        log.add([flow(&parent), child(name, &parent, 3), child(&format!("{name}'s"), name, 1)]).await;
        let mut lease = log.take_flow(name).await.lease;
        if name != "plain" {
            log.commit(needing(&lease, 1, 0)).await.unwrap();
        }
        let of_child = log.take_flow(&format!("{name}'s")).await.lease;
        log.commit(needing(&of_child, 1, 0)).await.unwrap();
        if name == "cleaning" {
            log.cancel(&id(name), "enough").await.unwrap();
            log.release(&lease).await.unwrap();
            lease = log.take_flow(name).await.lease;
        }
        assert_eq!(log.abandon(&id(name), "given up").await.unwrap(), Cancelled::Now);
        let info = log.info(name).await;
        assert_eq!((info.state, info.reason.as_deref()), (FlowState::Cancelled, Some("given up")), "{name}");
        assert_eq!((info.finished_at, info.due_at), (Some(log.now()), None));
        log.refuses(ErrorKind::LeaseLost, log.commit(going(&lease, 2, cancelled("late")))).await;
        assert_eq!(log.beat(&lease).await, LeaseState::Cancelled);
        let heard = log.mail(&parent).await;
        assert_eq!((heard.len(), heard[0].child), (1, Some(ChildOutcome::Cancelled)));
        assert!(log.info(&format!("{name}'s")).await.is_cleaning_up(), "{name}");
        let before = log.snapshot().await;
        assert_eq!(log.abandon(&id(name), "again").await.unwrap(), Cancelled::Already(FlowState::Cancelled));
        log.snapshot().await.assert_is(&before, "it has ended");
    }
    log.refuses(ErrorKind::NotFound, log.abandon(&id("nobody"), "")).await;
}

/// A flow that is taken back is no longer cancelled, still has what it had to clean up, and its time limit.
pub async fn reset_takes_a_cancellation_back(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start_flow(flow("a").with_timeout(Some(SECOND * 100))).await;
    log.commit(needing(&lease, 1, 0)).await.unwrap();
    log.cancel(&id("a"), "enough").await.unwrap();
    log.release(&lease).await.unwrap();
    let cleaning = log.take_flow("a").await.lease;
    log.commit(steps(&cleaning, 1, 2, 1)).await.unwrap();
    log.advance(SECOND).await;
    let reset = Reset { keep: 1, ..Reset::new(&log.info("a").await) };
    log.reset(reset).await.unwrap();
    let info = log.info("a").await;
    assert_eq!((info.state, info.cleanup, info.records), (FlowState::Scheduled, Cleanup::Needed, 1));
    assert_eq!(info.deadline_at, Some(log.now().saturating_add(SECOND * 100)));
    log.refuses(ErrorKind::LeaseLost, log.commit(steps(&cleaning, 2, 3, 1))).await;
    log.cancel(&id("a"), "again").await.unwrap();
    assert_eq!(log.records("a").await.len(), 2, "it cleans up again");
    let lease = log.take_flow("a").await.lease;
    log.go(&lease, 1, cancelled("again")).await;
    log.reset(Reset { keep: 1, ..Reset::new(&log.info("a").await) }).await.unwrap();
    assert_eq!(log.info("a").await.cleanup, Cleanup::Needed);
}

/// A child that has something to clean up is not forgotten before it has.
pub async fn reset_leaves_children_their_cleanup(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let root = log.start("root").await;
    log.commit(starting(&root, 1, [child("plain", "root", 1), child("needy", "root", 2)])).await.unwrap();
    let needy = log.take_flow("needy").await.lease;
    log.commit(needing(&needy, 1, 0)).await.unwrap();
    let reset = Reset { children: vec![id("plain"), id("needy")], ..Reset::new(&log.info("root").await) };
    log.refuses(ErrorKind::Conflict, log.reset(reset.clone())).await;
    log.cancel(&id("needy"), "").await.unwrap();
    log.refuses(ErrorKind::Conflict, log.reset(reset.clone())).await;
    let error = log.reset(reset.clone()).await.unwrap_err().to_string();
    assert!(error.contains("needy"), "{error}");
    log.release(&needy).await.unwrap();
    let needy = log.take_flow("needy").await.lease;
    log.go(&needy, 1, cancelled("")).await;
    log.reset(reset).await.unwrap();
    assert_eq!(log.flow(&id("needy")).await.unwrap(), None);
}

/// A reason that is too long is refused.
pub async fn a_long_reason_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.needy("a").await;
    let max = Limits::REASON_BYTES_MAX.min(log.limits().payload_bytes_max);
    let reason = "x".repeat(max + 1);
    log.refuses(ErrorKind::TooLarge, log.cancel(&id("a"), &reason)).await;
    log.refuses(ErrorKind::TooLarge, log.abandon(&id("a"), &reason)).await;
    assert_eq!(log.cancel(&id("a"), &reason[1..]).await.unwrap(), Cancelled::Now);
    let records = log.records("a").await;
    assert_eq!(text(&records[1].payload), reason[1..]);
}

/// A flow that cleans up goes from one log to another, and does so there.
pub async fn cleanup_is_imported(harness: &impl Harness) {
    let (log, other) = (Scene::new(harness).await, Scene::new(harness).await);
    log.cleaning("a").await;
    let snapshot = Snapshot::read(&*log.handle().0, &id("a")).await.unwrap().unwrap();
    let mut bad = snapshot.clone();
    bad.flow.info.cleanup = Cleanup::Needed;
    other.refuses(ErrorKind::Invalid, other.import(bad)).await;
    assert_eq!(other.import(snapshot).await.unwrap(), Imported::Created);
    let claimed = other.take_flow("a").await;
    assert_eq!((claimed.info.cleanup, claimed.history), (Cleanup::Underway, log.records("a").await));
    assert_eq!(other.go(&claimed.lease, 1, cancelled("enough")).await, Committed::Applied);
}
