//! Going to sleep, and being woken.

use std::time::Duration;

use super::{
    Harness,
    scene::{MICRO, SECOND, Scene, complete, flow, going, signal, steps, suspend},
};
use crate::{Channel, Committed, FlowState, LeaseState, Next, Timestamp, Wake};

/// A suspended flow has no worker, and says what it waits for and when it wakes by itself.
pub async fn suspend_says_what_it_waits_for(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let at = log.now().saturating_add(SECOND);
    let wake = Wake { at: Some(at), channels: vec![signal("go"), Channel::children(), signal("ü \n")] };
    let mut commit = steps(&lease, 1, 0, 1);
    commit.next = Next::suspend(wake.clone());
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Suspended);
    let info = log.info("a").await;
    assert_eq!((info.state, info.wake, info.due_at), (FlowState::Suspended, wake, Some(at)));
    assert_eq!((info.records, info.reason, info.finished_at), (1, None, None));
    assert_eq!(log.beat(&lease).await, LeaseState::Lost);
}

/// A flow that waits for nothing but messages is not due.
pub async fn suspend_without_an_instant(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.suspend(&lease, 1, None, &[signal("go")]).await;
    assert_eq!(log.info("a").await.due_at, None);
    log.advance(Duration::from_secs(86_400 * 365)).await;
    assert_eq!(log.take(1).await.len(), 0);
}

/// An instant that has been reached keeps the flow awake, under its lease and with its records.
pub async fn suspend_until_a_reached_instant_stays_awake(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let now = log.now().as_micros();
    for (number, at) in (1..).zip([now, now - 1, 0, i64::MIN]) {
        let mut commit = steps(&lease, number, number - 1, 1);
        commit.next = suspend(Some(Timestamp::from_micros(at)), &[]);
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Awake);
        let info = log.info("a").await;
        assert_eq!((info.state, info.records, info.wake), (FlowState::Running, number, Wake::default()));
        assert_eq!(log.beat(&lease).await, LeaseState::Held);
    }
    assert_eq!(log.go(&lease, 5, suspend(Some(Timestamp::from_micros(now + 1)), &[])).await, Committed::Suspended);
}

/// A message that waits already keeps the flow awake; it is the look that was promised after registering.
pub async fn suspend_for_a_message_that_is_there_stays_awake(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "hello").await;
    assert_eq!(log.go(&lease, 1, suspend(None, &[signal("no"), signal("go")])).await, Committed::Awake);
    assert_eq!(log.state("a").await, FlowState::Running);
    assert_eq!(log.beat(&lease).await, LeaseState::Held);
    // One on another channel does not count.
    assert_eq!(log.go(&lease, 2, suspend(None, &[signal("no")])).await, Committed::Suspended);
}

/// A message that the same commit takes in does not keep the flow awake, but another one does.
pub async fn suspend_counts_what_is_left_in_the_mailbox(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "first").await;
    log.tell("a", &signal("go"), "second").await;
    for (number, answer) in [(1, Committed::Awake), (2, Committed::Suspended)] {
        let mut commit = going(&lease, number, suspend(None, &[signal("go")]));
        commit.consumed = vec![number];
        assert_eq!(log.commit(commit).await.unwrap(), answer);
    }
}

/// Messages that the flow knows do not keep it awake, on the channel where it knows them, and are there when it is woken
/// by another one.
pub async fn suspend_passes_over_what_was_heard(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let (go, stop) = (signal("go"), signal("stop"));
    for (channel, text) in [(&go, "1"), (&stop, "2"), (&go, "3")] {
        log.tell("a", channel, text).await;
    }
    let waits = |channels: &[&Channel], heard: &[u32]| {
        let channels = channels.iter().copied().cloned().collect();
        Next::Suspend { wake: Wake { at: None, channels }, heard: heard.to_vec() }
    };
    let not_all = [
        waits(&[&go], &[]),
        waits(&[&go], &[1]),
        waits(&[&go], &[2]),
        waits(&[&go, &stop], &[3]),
        waits(&[&go, &stop], &[3, 1]),
        waits(&[&stop, &go], &[3, 1]),
    ];
    for (number, next) in (1..).zip(not_all) {
        assert_eq!(log.go(&lease, number, next.clone()).await, Committed::Awake, "{next:?}");
    }
    let commit = going(&lease, 7, waits(&[&stop, &signal("other"), &go], &[2, u32::MAX, 3, 9]));
    for _ in 0..2 {
        assert_eq!(log.commit(commit.clone()).await.unwrap(), Committed::Suspended);
    }
    assert_eq!(log.info("a").await.wake.channels, [stop, signal("other"), go.clone()]);
    assert_eq!(log.take(1).await.len(), 0);
    // What comes later does.
    log.tell("a", &signal("other"), "4").await;
    let claimed = log.take(1).await.remove(0);
    assert_eq!(claimed.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    // What the same commit takes in is not there to be known.
    let mut commit = going(&claimed.lease, 1, waits(&[&go], &[1]));
    commit.consumed = vec![3];
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Suspended);
    log.tell("a", &go, "5").await;
    assert_eq!(log.state("a").await, FlowState::Scheduled);
}

/// A message on a channel that a suspended flow waits for wakes it at once.
pub async fn suspend_is_woken_by_a_message(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.suspend(&lease, 1, Some(log.now().saturating_add(SECOND * 60)), &[signal("x"), signal("go")]).await;
    log.advance(SECOND).await;
    log.tell("a", &signal("other"), "0").await;
    assert_eq!(log.state("a").await, FlowState::Suspended);
    log.tell("a", &signal("go"), "1").await;
    let info = log.info("a").await;
    assert_eq!((info.state, info.due_at, info.wake), (FlowState::Scheduled, Some(log.now()), Wake::default()));
    log.tell("a", &signal("x"), "2").await;
    let claimed = log.take(1).await.remove(0);
    assert_eq!((claimed.lease.epoch, claimed.info.start_at), (2, claimed.info.created_at));
    assert_eq!(claimed.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2, 3]);
}

/// A flow is woken by one channel's name alone, however much like it another one is.
pub async fn suspend_tells_channels_apart(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let awaited = Channel::from_name("a,b");
    let lease = log.start("a").await;
    log.suspend(&lease, 1, None, std::slice::from_ref(&awaited)).await;
    for name in ["a", "b", "a,", "a,b ", "A,B", "a%", "a,_", "signal:a,b", "a\nb", "\"a,b\"", "a,b\0"] {
        log.tell("a", &Channel::from_name(name), "").await;
        assert_eq!(log.state("a").await, FlowState::Suspended, "{name:?}");
    }
    log.tell("a", &awaited, "").await;
    assert_eq!(log.state("a").await, FlowState::Scheduled);
}

/// A flow that a timer and then a message have woken has been due since the timer.
pub async fn suspend_is_due_since_the_first_of_timer_and_message(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let at = log.now().saturating_add(SECOND);
    log.suspend(&lease, 1, Some(at), &[signal("go")]).await;
    log.advance(SECOND * 3).await;
    log.tell("a", &signal("go"), "").await;
    assert_eq!(log.info("a").await.due_at, Some(at));
}

/// A flow that was woken sleeps again for the next message, any number of times.
pub async fn suspend_again_and_again(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.suspend(&lease, 1, None, &[signal("go")]).await;
    for seq in 1..=20 {
        assert_eq!(log.take(1).await.len(), 0);
        log.tell("a", &signal("go"), "").await;
        let claimed = log.take(1).await.remove(0);
        assert_eq!(claimed.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), [seq]);
        let mut commit = steps(&claimed.lease, 1, seq - 1, 1);
        commit.consumed = vec![seq];
        commit.next = suspend(None, &[signal("go")]);
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Suspended);
    }
}

/// A suspended flow with a time limit wakes when its time is up, if not before.
pub async fn suspend_until_the_time_limit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let limited = |name| flow(name).with_timeout(Some(SECOND * 10));
    let (a, b, c) =
        (log.start_flow(limited("a")).await, log.start_flow(limited("b")).await, log.start_flow(limited("c")).await);
    let after = |seconds| log.now().saturating_add(SECOND * seconds);
    log.suspend(&a, 1, None, &[signal("go")]).await;
    log.suspend(&b, 1, Some(after(20)), &[]).await;
    log.suspend(&c, 1, Some(after(5)), &[]).await;
    let (a, b, c) = (log.info("a").await, log.info("b").await, log.info("c").await);
    assert_eq!((a.wake.at, a.due_at), (None, Some(after(10))), "the time limit is not what it waits for");
    assert_eq!((b.wake.at, b.due_at), (Some(after(20)), Some(after(10))));
    assert_eq!((c.wake.at, c.due_at), (Some(after(5)), Some(after(5))));
    log.advance(SECOND * 5).await;
    assert_eq!(log.take_names(9).await, ["c"]);
    log.advance((SECOND * 5).checked_sub(MICRO).unwrap()).await;
    assert_eq!(log.take_names(9).await, [""; 0]);
    log.advance(MICRO).await;
    assert_eq!(log.take_names(9).await, ["a", "b"]);
}

/// A flow whose time is up stays awake, for it has something to do.
pub async fn suspend_past_the_time_limit_stays_awake(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start_flow(flow("a").with_timeout(Some(SECOND))).await;
    log.advance(SECOND).await;
    assert_eq!(log.go(&lease, 1, suspend(None, &[signal("go")])).await, Committed::Awake);
    let later = log.now().saturating_add(SECOND);
    assert_eq!(log.go(&lease, 2, suspend(Some(later), &[])).await, Committed::Awake);
    assert_eq!(log.state("a").await, FlowState::Running);
}

/// A time limit alone neither ends nor offers a flow.
pub async fn a_time_limit_is_the_engines_business(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start_flow(flow("a").with_timeout(Some(SECOND))).await;
    log.advance(SECOND * 5).await;
    assert_eq!(log.take(1).await.len(), 0);
    assert_eq!(log.commit(steps(&lease, 1, 0, 1)).await.unwrap(), Committed::Applied);
    assert_eq!(log.go(&lease, 2, complete()).await, Committed::Applied);
}
