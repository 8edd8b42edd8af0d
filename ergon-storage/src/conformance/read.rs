//! Reads.

use super::{
    Harness,
    scene::{SECOND, Scene, child, complete, detached, flow, id, names, record, signal, stall, steps},
};
use crate::{Cursor, ErrorKind, Filter, FlowState, NewFlow, Start, Timestamp};

/// An unknown flow is none; its history and its mailbox cannot be read.
pub async fn reads_of_an_unknown_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    assert_eq!(log.flow(&id("nobody")).await.unwrap(), None);
    log.refuses(ErrorKind::NotFound, log.history(&id("nobody"), 0, 10)).await;
    log.refuses(ErrorKind::NotFound, log.messages(&id("nobody"), &[], 0, 10)).await;
}

/// A history is read in order, from a number on, as much as is asked for.
pub async fn history_is_read_in_pages(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    assert_eq!(log.history(&id("a"), 0, 10).await.unwrap(), []);
    log.commit(steps(&lease, 1, 0, 10)).await.unwrap();
    let other = log.start("b").await;
    log.commit(steps(&other, 1, 0, 10)).await.unwrap();
    for (after, limit, expected) in [
        (0, 4, 0..4),
        (4, 4, 4..8),
        (8, 4, 8..10),
        (0, usize::MAX, 0..10),
        (9, usize::MAX, 9..10),
        (10, 4, 0..0),
        (99, 4, 0..0),
        (u32::MAX, usize::MAX, 0..0),
        (0, 0, 0..0),
    ] {
        let read = log.history(&id("a"), after, limit).await.unwrap();
        assert_eq!(
            read,
            expected.map(|before| record(before + 1)).collect::<Vec<_>>(),
            "after {after}, at most {limit}"
        );
    }
}

/// The pages of a history are stable while the flow goes on.
pub async fn history_pages_are_stable(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let mut read = Vec::new();
    for number in 0..30 {
        log.commit(steps(&lease, number + 1, number * 2, 2)).await.unwrap();
        let after = u32::try_from(read.len()).unwrap();
        read.extend(log.history(&id("a"), after, 1).await.unwrap());
    }
    read.extend(log.history(&id("a"), 30, usize::MAX).await.unwrap());
    assert_eq!(read, (1..=60).map(record).collect::<Vec<_>>());
}

/// Flows are listed in the order of their acceptance, in pages that meet.
pub async fn list_is_read_in_pages(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let empty = log.list(&Filter::all(), None, 10).await.unwrap();
    assert_eq!((empty.flows, empty.next), (Vec::new(), None));
    let mut expected = names(0..10);
    expected.reverse();
    log.add(expected.iter().map(|name| flow(name))).await;
    for limit in [1, 3, 5, 9, 10, 11, usize::MAX] {
        let mut listed = Vec::new();
        let mut cursor = None;
        loop {
            let page = log.list(&Filter::all(), cursor, limit).await.unwrap();
            assert_eq!(page.flows.len(), limit.min(10 - listed.len()), "pages are full but for the last one");
            listed.extend(page.flows.iter().map(|info| info.id.to_string()));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
            assert!(listed.len() < 10, "there is more where a page says so");
        }
        assert_eq!(listed, expected, "at most {limit} in a page");
    }
}

/// A listed flow is told as a read of it tells it.
pub async fn list_tells_every_state(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in FlowState::ALL {
        log.bring(&state.to_string(), state).await;
    }
    let page = log.list(&Filter::all(), None, 10).await.unwrap();
    for (info, state) in page.flows.iter().zip(FlowState::ALL) {
        assert_eq!((info, info.state), (&log.info(&state.to_string()).await, state));
    }
}

/// Each condition of a filter narrows the list, and all must hold.
pub async fn list_is_filtered(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let refund = |name: &str| NewFlow::new(id(name), "Refund", 1, &b""[..]);
    log.add([flow("a"), refund("b"), flow("c").with_queue("other"), refund("d").with_queue("other")]).await;
    log.add([child("e", "a", 1), detached("f", "a", 2), child("g", "nobody", 1)]).await;
    log.cancel(&id("b"), "").await.unwrap();
    log.take_flow("c").await;
    let cases = [
        (Filter::all(), "abcdefg"),
        (Filter::all().with_flow_type("Refund"), "bd"),
        (Filter::all().with_flow_type("refund"), ""),
        (Filter::all().with_queue("other"), "cd"),
        (Filter::all().with_queue("other").with_flow_type("Refund"), "d"),
        (Filter::all().with_state(FlowState::Cancelled), "b"),
        (Filter::all().with_state(FlowState::Running).with_state(FlowState::Cancelled), "bc"),
        (Filter::all().with_state(FlowState::Running).with_flow_type("Refund"), ""),
        (Filter::all().with_parent(id("a")), "ef"),
        (Filter::all().with_parent(id("nobody")), "g"),
        (Filter::all().with_parent(id("b")), ""),
    ];
    for (filter, expected) in cases {
        for limit in [1, 2, 100] {
            let mut listed = String::new();
            let mut cursor = None;
            loop {
                let page = log.list(&filter, cursor, limit).await.unwrap();
                assert!(page.flows.iter().all(|info| filter.accepts(info)));
                listed.extend(page.flows.iter().map(|info| info.id.as_str()));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(listed, expected, "{filter:?}, at most {limit} in a page");
        }
    }
}

/// Pages skip nothing and repeat nothing while flows change, come and go.
pub async fn list_pages_are_stable(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..60);
    log.add(names.iter().map(|name| flow(name))).await;
    let mut listed = Vec::new();
    let mut cursor: Option<Cursor> = None;
    for round in 0.. {
        let page = log.list(&Filter::all(), cursor, 7).await.unwrap();
        listed.extend(page.flows.iter().map(|info| info.id.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        // One that was listed goes, others change their state, and a new one comes.
        let gone = &listed[round];
        log.cancel(&id(gone), "").await.unwrap();
        assert!(log.delete(&id(gone)).await.unwrap());
        for claimed in log.take(5).await {
            log.go(&claimed.lease, 1, complete()).await;
        }
        log.add([flow(&format!("new-{round}"))]).await;
        log.advance(SECOND).await;
    }
    assert_eq!(listed[..60], names);
    assert!(listed[60..].iter().all(|name| name.starts_with("new-")));
}

/// A cursor stays good when the flow that it follows is gone.
pub async fn list_goes_on_after_a_deleted_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..4);
    log.add(names.iter().map(|name| flow(name))).await;
    let page = log.list(&Filter::all(), None, 2).await.unwrap();
    for name in &names[..2] {
        log.cancel(&id(name), "").await.unwrap();
        assert!(log.delete(&id(name)).await.unwrap());
    }
    let rest = log.list(&Filter::all(), page.next, 10).await.unwrap();
    assert_eq!(rest.flows.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), names[2..]);
}

/// Flows are counted by queue, type, version and state, in that order, and nothing is counted as none.
pub async fn counts_add_up(harness: &impl Harness) {
    use FlowState::{Cancelled, Running, Scheduled};
    let log = Scene::new(harness).await;
    assert_eq!(log.counts(&Filter::all()).await.unwrap(), []);
    let typed = |name: &str, flow_type: &str, version| NewFlow::new(id(name), flow_type, version, &b""[..]);
    log.add([
        typed("1", "B", 1).with_queue("y"),
        typed("2", "B", 10).with_queue("x"),
        typed("3", "B", 2).with_queue("x"),
        typed("4", "A", 1).with_queue("x"),
        typed("5", "A", 1).with_queue("x"),
        typed("6", "A", 1).with_queue("x"),
        typed("7", "A", 1).with_queue("x"),
        typed("8", "A", 1).with_queue("X"),
    ])
    .await;
    log.cancel(&id("5"), "").await.unwrap();
    log.take_flow("6").await;
    let counts = log.counts(&Filter::all()).await.unwrap();
    let counts: Vec<_> = counts
        .iter()
        .map(|count| (&*count.queue, &*count.flow_type, count.version, count.state, count.flows))
        .collect();
    let expected = [
        ("X", "A", 1, Scheduled, 1),
        ("x", "A", 1, Scheduled, 2),
        ("x", "A", 1, Running, 1),
        ("x", "A", 1, Cancelled, 1),
        ("x", "B", 2, Scheduled, 1),
        ("x", "B", 10, Scheduled, 1),
        ("y", "B", 1, Scheduled, 1),
    ];
    assert_eq!(counts, expected);
}

/// The counts of flows that become due by themselves say since when the first one waits, even if that is yet to come.
pub async fn counts_tell_the_oldest(harness: &impl Harness) {
    use FlowState::{Completed, Running, Scheduled, Suspended};
    let log = Scene::new(harness).await;
    let start = log.now();
    let after = |seconds| Some(start.saturating_add(SECOND * seconds));
    let oldest = async || {
        let all = log.counts(&Filter::all()).await.unwrap();
        // A filter that holds for all is another way to the same.
        assert_eq!(log.counts(&Filter::all().created_from(start)).await.unwrap(), all);
        all.into_iter().map(|count| (count.state, count.oldest_due_at)).collect::<Vec<_>>()
    };
    log.add([flow("later").with_start(Start::After(SECOND * 9))]).await;
    assert_eq!(oldest().await, [(Scheduled, after(9))]);
    log.advance(SECOND).await;
    log.add([flow("a").with_priority(1)]).await;
    log.advance(SECOND).await;
    log.add([flow("b"), flow("c"), flow("d")]).await;
    assert_eq!(oldest().await, [(Scheduled, after(1))]);
    let lease = log.take_flow("a").await.lease;
    assert_eq!(oldest().await, [(Scheduled, after(2)), (Running, after(32))]);
    // Those that wait for a message alone never become due.
    log.suspend(&log.take_flow("b").await.lease, 1, None, &[signal("go")]).await;
    log.advance(SECOND).await;
    log.suspend(&log.take_flow("c").await.lease, 1, after(40), &[]).await;
    log.take_flow("d").await;
    assert_eq!(oldest().await, [(Scheduled, after(9)), (Running, after(32)), (Suspended, after(40))]);
    log.advance(SECOND * 100).await;
    assert_eq!(oldest().await, [(Scheduled, after(9)), (Running, after(32)), (Suspended, after(40))], "nobody came");
    log.go(&lease, 1, complete()).await;
    let counts = oldest().await;
    assert_eq!(counts, [(Scheduled, after(9)), (Running, after(33)), (Suspended, after(40)), (Completed, None)]);
}

/// Flows are found by when they are due, whatever they wait for, and no others are.
pub async fn reads_find_what_is_due(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let start = log.now();
    let at = |seconds: u32| start.saturating_add(SECOND * seconds);
    log.add([
        flow("ended").with_label("of", "us"),
        flow("waiting"),
        flow("asleep").with_label("of", "us").with_queue("other"),
        flow("running"),
        flow("new").with_start(Start::At(at(10))).with_label("of", "us"),
        flow("late").with_start(Start::At(at(50))).with_priority(3),
        NewFlow::new(id("stalled"), "Refund", 1, ""),
    ])
    .await;
    log.go(&log.take_flow("ended").await.lease, 1, complete()).await;
    log.suspend(&log.take_flow("waiting").await.lease, 1, None, &[signal("go")]).await;
    log.suspend(&log.take_flow("asleep").await.lease, 1, Some(at(20)), &[]).await;
    log.take_flow("running").await;
    log.go(&log.take_flow("stalled").await.lease, 1, stall("build-1")).await;
    let all = Filter::all;
    let cases: [(Filter, &[&str]); 12] = [
        (all().due_before(at(10)), &[]),
        (all().due_before(at(11)), &["new"]),
        (all().due_before(at(31)), &["asleep", "running", "new"]),
        (all().due_before(at(31)).with_state(FlowState::Running), &["running"]),
        (all().due_before(at(31)).with_queue("other"), &["asleep"]),
        (all().due_before(at(31)).with_queue("nobody's"), &[]),
        (all().due_before(at(31)).with_label("of", "us"), &["asleep", "new"]),
        (all().due_before(at(31)).with_flow_type("Refund"), &[]),
        (all().due_from(at(10)), &["asleep", "running", "new", "late"]),
        (all().due_from(at(20)).due_before(at(50)), &["asleep", "running"]),
        (all().due_from(at(50)).due_before(at(20)), &[]),
        (all().due_before(Timestamp::MAX), &["asleep", "running", "new", "late"]),
    ];
    for (filter, expected) in cases {
        for limit in [1, 2, 100] {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = log.list(&filter, after, limit).await.unwrap();
                found.extend(page.flows.into_iter().map(|flow| flow.id.to_string()));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected, "{filter:?}, at most {limit} in a page");
        }
        let counts = log.counts(&filter).await.unwrap();
        assert_eq!(counts.iter().map(|count| count.flows).sum::<u64>(), expected.len() as u64, "{filter:?}");
        assert!(counts.iter().all(|count| count.oldest_due_at.is_some()), "{filter:?}");
    }
}

/// What one handle has written every other one reads.
pub async fn reads_see_what_was_written(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let other = log.second().await;
    for name in names(0..50) {
        let lease = log.start(&name).await;
        assert_eq!(other.state(&name).await, FlowState::Running);
        log.commit(steps(&lease, 1, 0, 1)).await.unwrap();
        assert_eq!(other.records(&name).await.len(), 1);
        other.tell(&name, &signal("go"), "").await;
        assert_eq!(log.mail(&name).await.len(), 1);
        other.cancel(&id(&name), "").await.unwrap();
        assert_eq!(log.state(&name).await, FlowState::Cancelled);
    }
    assert_eq!(log.snapshot().await, other.snapshot().await);
}
