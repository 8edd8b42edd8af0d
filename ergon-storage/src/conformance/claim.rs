//! Which flows a claim takes, and in which order.

use std::time::Duration;

use super::{
    Harness,
    scene::{
        LEASE, MICRO, SECOND, Scene, complete, fail, flow, id, message, names, queues, request, signal, stall, steps,
    },
};
use crate::{ClaimRequest, ClaimTarget, FlowState, NewFlow, Start, Timestamp, Wake};

/// A claim of nothing takes nothing and names no instant.
pub async fn claim_of_nothing_takes_nothing(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for target in [queues(&["default"], &[("Order", 1)]), ClaimTarget::Flow(id("nobody"))] {
        let claimed = log.claim(ClaimRequest::new("worker", target)).await.unwrap();
        assert_eq!((claimed.flows.len(), claimed.next_due_at), (0, None));
    }
    log.add([flow("a")]).await;
    for target in [queues(&[], &[("Order", 1)]), queues(&["default"], &[]), queues(&[], &[])] {
        let claimed = log.claim(ClaimRequest::new("worker", target)).await.unwrap();
        assert_eq!((claimed.flows.len(), claimed.next_due_at), (0, None));
    }
    assert_eq!(log.state("a").await, FlowState::Scheduled);
}

/// A claim answers with all that is needed to run the flow, as it is under the lease.
pub async fn claim_answers_with_the_running_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
    log.tell("a", &signal("go"), "hello").await;
    log.release(&lease).await.unwrap();
    log.advance(SECOND).await;
    let mut again = request(5);
    again.worker = "second worker".into();
    again.lease = Duration::from_secs(7);
    let mut claimed = log.claim(again).await.unwrap().flows;
    assert_eq!(claimed.len(), 1);
    let claimed = claimed.remove(0);
    assert_eq!((&claimed.lease.flow, claimed.lease.epoch), (&id("a"), 2));
    assert_eq!(claimed.info, log.info("a").await, "the flow is told as it is now");
    assert_eq!((claimed.info.state, claimed.info.epoch, claimed.info.deliveries), (FlowState::Running, 2, 1));
    assert_eq!(claimed.info.due_at, Some(log.now().saturating_add(Duration::from_secs(7))));
    assert_eq!(claimed.info.worker.as_deref(), Some("second worker"));
    assert_eq!(claimed.input, b"{}"[..]);
    assert_eq!((&claimed.history, claimed.info.records), (&log.records("a").await, 2));
    assert_eq!((claimed.messages.as_slice(), claimed.more_messages), (log.mail("a").await.as_slice(), false));
}

/// A flow dates from its first claim, and its epoch counts them all.
pub async fn claim_counts_and_dates(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let first = log.now();
    log.add([flow("a")]).await;
    for epoch in 1..=4 {
        let claimed = log.take_flow("a").await;
        assert_eq!((claimed.lease.epoch, claimed.info.epoch, claimed.info.started_at), (epoch, epoch, Some(first)));
        assert_eq!(claimed.info.start_at, first);
        log.release(&claimed.lease).await.unwrap();
        log.advance(SECOND).await;
    }
}

/// Only flows whose queue, type and version are all asked for are taken; the others are left alone.
pub async fn claim_leaves_other_queues_types_and_versions_alone(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let typed = |name: &str, flow_type: &str, version| NewFlow::new(id(name), flow_type, version, &b""[..]);
    // The strange ones come first in every order.
    log.add([
        typed("queue", "Order", 1).with_queue("other").with_priority(9),
        typed("type", "Refund", 1).with_priority(9),
        typed("version", "Order", 2).with_priority(9),
        typed("prefix", "Orde", 1).with_priority(9),
        typed("case", "order", 1).with_priority(9),
        typed("mine", "Order", 1),
    ])
    .await;
    let strange = log.snapshot().await.flows[..5].to_vec();
    assert_eq!(log.take_names(10).await, ["mine"]);
    assert_eq!(log.snapshot().await.flows[..5], strange);
    let target = queues(&["default", "other"], &[("Order", 1), ("Refund", 1)]);
    let mut rest = ClaimRequest::new("worker", target);
    rest.limit = 10;
    let taken = log.claim(rest).await.unwrap().flows;
    assert_eq!(taken.iter().map(|claimed| claimed.info.id.as_str()).collect::<Vec<_>>(), ["queue", "type"]);
}

/// A queue or type that is named twice yields each flow once.
pub async fn claim_takes_a_flow_once_though_named_twice(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a"), flow("b")]).await;
    let target = queues(&["default", "default"], &[("Order", 1), ("Order", 1)]);
    let mut request = ClaimRequest::new("worker", target);
    request.limit = 10;
    assert_eq!(log.claim(request).await.unwrap().flows.len(), 2);
}

/// Flows of all the queues and types of a claim are taken in one order.
pub async fn claim_merges_its_queues(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let target = queues(&["x", "y"], &[("A", 1), ("B", 1)]);
    let mut expected = Vec::new();
    for (number, name) in names(0..24).iter().enumerate() {
        let priority = i16::try_from(number % 3).unwrap();
        // Due in another order than accepted.
        let delay = MICRO * u32::try_from(number * 7 % 24).unwrap();
        let new = NewFlow::new(id(name), ["A", "B"][number % 2], 1, &b""[..]).with_start(Start::After(delay));
        log.add([new.with_queue(["x", "y"][number / 2 % 2]).with_priority(priority)]).await;
        expected.push((-priority, delay, name.clone()));
    }
    log.advance(SECOND).await;
    expected.sort();
    let mut taken = Vec::new();
    for limit in [1, 5, 2, 100] {
        let mut request = ClaimRequest::new("worker", target.clone());
        request.limit = limit;
        taken.extend(log.claim(request).await.unwrap().flows);
    }
    let taken: Vec<_> = taken.iter().map(|claimed| claimed.info.id.as_str()).collect();
    assert_eq!(taken, expected.iter().map(|(_, _, name)| name).collect::<Vec<_>>());
}

/// Higher priorities go first, also the ends of their range.
pub async fn claim_takes_higher_priorities_first(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for priority in [0, i16::MIN, -1, i16::MAX, 1] {
        log.add([flow(&priority.to_string()).with_priority(priority)]).await;
        log.advance(SECOND).await;
    }
    assert_eq!(log.take_names(2).await, ["32767", "1"]);
    assert_eq!(log.take_names(9).await, ["0", "-1", "-32768"]);
}

/// Within a priority the flow goes first that has been due the longest.
pub async fn claim_takes_the_longest_due_first(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for seconds in [5, 3, 4, 1, 2] {
        log.add([flow(&seconds.to_string()).with_start(Start::After(SECOND * seconds))]).await;
    }
    let past = Timestamp::from_micros(log.now().as_micros() - 1);
    log.add([flow("now"), flow("past").with_start(Start::At(past))]).await;
    log.advance(SECOND * 4).await;
    assert_eq!(log.take_names(9).await, ["past", "now", "1", "2", "3", "4"]);
}

/// Within an instant the flow goes first that was accepted first.
pub async fn claim_takes_the_first_accepted_first(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    // The order of the names is not that of the acceptance.
    let accepted = ["m", "c", "x", "a", "ü", "b"];
    log.add(accepted[..3].iter().map(|name| flow(name))).await;
    log.add(accepted[3..].iter().map(|name| flow(name))).await;
    assert_eq!(log.take_names(4).await, accepted[..4]);
    assert_eq!(log.take_names(4).await, accepted[4..]);
}

/// Released, woken, retried and abandoned flows queue by the instant at which they became due.
pub async fn claim_orders_all_states_by_instant(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mut leases = Vec::new();
    for name in ["abandoned", "timer", "woken", "released", "retried"] {
        leases.push(log.start(name).await);
    }
    let after = |seconds| log.now().saturating_add(SECOND * seconds);
    assert_eq!(log.heartbeat(&leases[..1], SECOND).await.unwrap().len(), 1);
    log.suspend(&leases[1], 1, Some(after(2)), &[]).await;
    log.suspend(&leases[2], 1, Some(after(9)), &[signal("go")]).await;
    log.advance(SECOND * 3).await;
    log.tell("woken", &signal("go"), "").await;
    log.advance(SECOND).await;
    log.release(&leases[3]).await.unwrap();
    log.advance(SECOND).await;
    log.go(&leases[4], 1, fail()).await;
    log.retry(&id("retried")).await.unwrap();
    assert_eq!(log.take_names(9).await, ["abandoned", "timer", "woken", "released", "retried"]);
}

/// A high priority that is not due yet holds nobody up.
pub async fn claim_passes_over_what_is_not_due(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let later = |name: &String| flow(name).with_priority(5).with_start(Start::After(SECOND));
    log.add(names(0..2_000).iter().map(later)).await;
    log.add([flow("due")]).await;
    assert_eq!(log.take_names(10).await, ["due"]);
    log.advance(SECOND).await;
    assert_eq!(log.take(5_000).await.len(), 2_000);
}

/// A claim takes no more than it asks for, and what is left stays in order.
pub async fn claim_takes_at_most_its_limit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..10);
    log.add(names.iter().map(|name| flow(name))).await;
    let looked = log.claim(request(0)).await.unwrap();
    assert_eq!((looked.flows.len(), looked.next_due_at), (0, Some(log.now())));
    assert_eq!(log.take_names(1).await, names[..1]);
    assert_eq!(log.take_names(3).await, names[1..4]);
    assert_eq!(log.take_names(usize::MAX).await, names[4..]);
    assert_eq!(log.take_names(1).await, [""; 0]);
}

/// A start is claimable at its instant and not a microsecond before.
pub async fn claim_at_the_start_but_not_before(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a").with_start(Start::After(SECOND))]).await;
    log.advance(SECOND.checked_sub(MICRO).unwrap()).await;
    assert_eq!(log.take_names(1).await, [""; 0]);
    assert_eq!(log.state("a").await, FlowState::Scheduled);
    log.advance(MICRO).await;
    assert_eq!(log.take_names(1).await, ["a"]);
}

/// A suspended flow is claimable at its instant and not a microsecond before.
pub async fn claim_at_the_timer_but_not_before(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.suspend(&lease, 1, Some(log.now().saturating_add(SECOND)), &[]).await;
    log.advance(SECOND.checked_sub(MICRO).unwrap()).await;
    assert_eq!(log.take_names(1).await, [""; 0]);
    assert_eq!(log.state("a").await, FlowState::Suspended);
    log.advance(MICRO).await;
    let claimed = log.take(1).await.remove(0);
    assert_eq!((claimed.lease.epoch, claimed.info.state, claimed.info.wake), (2, FlowState::Running, Wake::default()));
}

/// Timers fire in the order of their instants, and all of those that share one.
pub async fn claim_takes_all_timers_of_an_instant(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..100);
    log.add(names.iter().map(|name| flow(name))).await;
    let at = log.now().saturating_add(SECOND);
    for (number, claimed) in log.take(100).await.iter().enumerate() {
        // The later ones come first, and half of them at one instant.
        let earlier = at.saturating_add(MICRO * u32::try_from(50_usize.saturating_sub(number)).unwrap());
        log.suspend(&claimed.lease, 1, Some(earlier), &[]).await;
    }
    log.advance(SECOND).await;
    assert_eq!(log.take_names(100).await, names[50..]);
    log.advance(MICRO * 50).await;
    let mut rest = names[..50].to_vec();
    rest.reverse();
    assert_eq!(log.take_names(100).await, rest);
}

/// A running flow is claimable at the end of its lease and not a microsecond before.
pub async fn claim_at_the_end_of_a_lease_but_not_before(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let first = log.start("a").await;
    log.advance(Duration::from_secs(30).checked_sub(MICRO).unwrap()).await;
    assert_eq!(log.take_names(1).await, [""; 0]);
    log.advance(MICRO).await;
    let second = log.take(1).await.remove(0);
    assert_eq!((second.lease.flow, second.lease.epoch), (first.flow, first.epoch + 1));
}

/// A lease of no length can be claimed again at once, but not within the same claim.
pub async fn claim_takes_a_flow_once_for_no_time(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for _ in 0..3 {
        let mut request = request(5);
        request.lease = Duration::ZERO;
        let claimed = log.claim(request).await.unwrap();
        assert_eq!((claimed.flows.len(), claimed.next_due_at), (1, Some(log.now())));
    }
    assert_eq!(log.info("a").await.epoch, 3);
    // Nor is it stalled by the claim that takes it, when that one stalls others.
    log.add([flow("b"), flow("c")]).await;
    let mut request = request(3);
    (request.lease, request.deliveries_max) = (Duration::ZERO, 1);
    let claimed = log.claim(request).await.unwrap();
    assert_eq!((claimed.flows.len(), claimed.next_due_at), (2, Some(log.now())));
    let states = [log.state("a").await, log.state("b").await, log.state("c").await];
    assert_eq!(states, [FlowState::Stalled, FlowState::Running, FlowState::Running]);
}

/// A lease longer than time lasts to its end.
pub async fn claim_for_ever(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let mut request = request(1);
    request.lease = Duration::MAX;
    let claimed = log.claim(request).await.unwrap().flows.remove(0);
    assert_eq!(claimed.info.due_at, Some(Timestamp::MAX));
    let beat = log.heartbeat(std::slice::from_ref(&claimed.lease), Duration::MAX).await.unwrap();
    assert_eq!(beat, [crate::LeaseState::Held]);
    assert_eq!(log.info("a").await.due_at, Some(Timestamp::MAX));
}

/// The answer names the next start, timer or end of a lease of its target.
pub async fn claim_names_the_next_instant(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let after = |seconds| log.now().saturating_add(SECOND * seconds);
    let next = async || log.claim(request(1)).await.unwrap().next_due_at;
    assert_eq!(next().await, None);
    log.add([flow("other queue").with_queue("other").with_start(Start::After(SECOND))]).await;
    log.add([NewFlow::new(id("other type"), "Refund", 1, &b""[..]).with_start(Start::After(SECOND))]).await;
    assert_eq!(next().await, None, "others' flows do not count");
    let lease = log.start("leased").await;
    assert_eq!(next().await, Some(log.now().saturating_add(LEASE)), "the end of a lease");
    log.add([flow("start").with_priority(-1).with_start(Start::After(SECOND * 20))]).await;
    assert_eq!(next().await, Some(after(20)), "a start");
    log.suspend(&lease, 1, Some(after(10)), &[]).await;
    assert_eq!(next().await, Some(after(10)), "a timer");
    log.add([flow("b"), flow("c")]).await;
    log.advance(SECOND).await;
    assert_eq!(next().await, Some(Timestamp::from_micros(log.now().as_micros() - 1_000_000)), "more are due");
    log.cancel(&id("c"), "").await.unwrap();
    assert_eq!(next().await, Some(after(9)), "what has ended is not due");
}

/// The answer counts the leases it grants: they end if nothing else happens.
pub async fn claim_names_the_end_of_its_own_leases(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let claimed = log.claim(request(5)).await.unwrap();
    assert_eq!(claimed.next_due_at, Some(log.now().saturating_add(LEASE)));
}

/// Flows that wait without an instant, or for nothing any more, are not due.
pub async fn claim_names_no_instant_without_one(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (name, next) in [("a", complete()), ("b", fail()), ("c", stall("build-1"))] {
        let lease = log.start(name).await;
        log.go(&lease, 1, next).await;
    }
    log.bring("d", FlowState::Suspended).await;
    log.bring("e", FlowState::Cancelled).await;
    let claimed = log.claim(request(5)).await.unwrap();
    assert_eq!((claimed.flows.len(), claimed.next_due_at), (0, None));
    log.advance(Duration::from_secs(365 * 86_400)).await;
    assert_eq!(log.take_names(5).await, [""; 0]);
}

/// One flow can be claimed by its id whatever its queue and type, if it is due.
pub async fn claim_of_one_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let start = Start::After(SECOND);
    log.add([flow("decoy"), NewFlow::new(id("a"), "Rare", 9, &b""[..]).with_queue("rare").with_start(start)]).await;
    let mut request = ClaimRequest::new("worker", ClaimTarget::Flow(id("a")));
    request.limit = 5;
    let early = log.claim(request.clone()).await.unwrap();
    assert_eq!((early.flows.len(), early.next_due_at), (0, Some(log.now().saturating_add(SECOND))));
    log.advance(SECOND).await;
    request.limit = 0;
    let looked = log.claim(request.clone()).await.unwrap();
    assert_eq!((looked.flows.len(), looked.next_due_at), (0, Some(log.now())));
    request.limit = 5;
    let claimed = log.claim(request.clone()).await.unwrap();
    assert_eq!((claimed.flows.len(), &claimed.flows[0].info.id), (1, &id("a")));
    assert_eq!(claimed.next_due_at, Some(log.now().saturating_add(LEASE)));
    let taken = log.claim(request.clone()).await.unwrap();
    assert_eq!((taken.flows.len(), taken.next_due_at), (0, claimed.next_due_at));
    log.go(&claimed.flows[0].lease, 1, complete()).await;
    let ended = log.claim(request).await.unwrap();
    assert_eq!((ended.flows.len(), ended.next_due_at), (0, None));
    assert_eq!(log.state("decoy").await, FlowState::Scheduled);
}

/// The answer carries no more of a history and a mailbox than was asked for, and says what is missing.
pub async fn claim_carries_only_the_beginning(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.commit(steps(&lease, 1, 0, 5)).await.unwrap();
    for number in 0..3 {
        log.send(message("a", &signal("go"), &number.to_string())).await.unwrap();
    }
    log.release(&lease).await.unwrap();
    for (history_max, messages_max, more) in
        [(0, 0, true), (4, 2, true), (5, 3, false), (usize::MAX, usize::MAX, false)]
    {
        let mut request = request(1);
        (request.history_max, request.messages_max) = (history_max, messages_max);
        let claimed = log.claim(request).await.unwrap().flows.remove(0);
        assert_eq!(claimed.info.records, 5);
        assert_eq!(claimed.history, log.records("a").await[..history_max.min(5)]);
        assert_eq!(claimed.messages, log.mail("a").await[..messages_max.min(3)]);
        assert_eq!(claimed.more_messages, more);
        log.release(&claimed.lease).await.unwrap();
    }
}
