//! What flows are listed by.

use super::{
    Harness,
    scene::{
        Handle, SECOND, Scene, child, complete, detached, fail_of, flow, going, id, names, record, stall, starting,
        steps,
    },
};
use crate::{
    CallPath, ClaimRequest, ClaimTarget, Commit, ErrorKind, Filter, FlowState, Labels, Lease, PrunePolicy, Timestamp,
};

fn labelling(lease: &Lease, number: u32, labels: Labels) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.labels = Some(labels);
    commit
}

/// The names of all flows that pass, read in pages of this length.
async fn listed(log: &Handle, filter: &Filter, limit: usize) -> String {
    let (mut listed, mut cursor) = (String::new(), None);
    loop {
        let page = log.list(filter, cursor, limit).await.unwrap();
        assert!(page.flows.iter().all(|info| filter.accepts(info)));
        listed.extend(page.flows.iter().map(|info| info.id.as_str()));
        cursor = page.next;
        if cursor.is_none() {
            return listed;
        }
    }
}

/// A flow has its labels from the start, and every read and claim shows them.
pub async fn labels_come_with_the_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let full: Labels = (0..Labels::COUNT_MAX).map(|number| (format!("n{number}"), "ü".repeat(127))).collect();
    let all = [Labels::new(), Labels::from([("customer", ""), ("a/b.c-d_E", "= \"x\" \\")]), full];
    for (name, labels) in ["a", "b", "c"].into_iter().zip(all) {
        log.add([flow(name).with_labels(labels.clone())]).await;
        assert_eq!(log.info(name).await.labels, labels);
        let claimed = log.claim(ClaimRequest::new("worker", ClaimTarget::Flow(id(name)))).await.unwrap();
        assert_eq!(claimed.flows[0].info.labels, labels);
        log.commit(steps(&claimed.flows[0].lease, 1, 0, 2)).await.unwrap();
        log.go(&claimed.flows[0].lease, 2, complete()).await;
        assert_eq!(log.info(name).await.labels, labels);
    }
    let page = log.list(&Filter::all(), None, 10).await.unwrap();
    assert_eq!(page.flows[1].labels.to_string(), "a/b.c-d_E== \"x\" \\, customer=");
}

/// Labels are no part of what makes two flows the same.
pub async fn labels_do_not_tell_flows_apart(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a").with_label("x", "1")]).await;
    let again = log.enqueue(vec![flow("a").with_label("x", "2")]).await.unwrap();
    assert_eq!(again, [crate::Enqueued::Existing { same: true }]);
    assert_eq!(log.info("a").await.labels, Labels::from([("x", "1")]));
}

/// Labels out of their bounds are refused, with all that came along.
pub async fn labels_out_of_bounds_are_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let bad = [
        Labels::from([("", "v".to_owned())]),
        Labels::from([("a b", "v".to_owned())]),
        Labels::from([("a", "two\nlines".to_owned())]),
        Labels::from([("a", "x".repeat(Labels::VALUE_BYTES_MAX + 1))]),
        (0..=Labels::COUNT_MAX).map(|number| (format!("n{number}"), "v")).collect(),
    ];
    for labels in bad {
        let flows = vec![flow("b"), flow("c").with_labels(labels.clone())];
        log.refuses(ErrorKind::Invalid, log.enqueue(flows)).await;
        let mut commit = labelling(&lease, 1, labels.clone());
        commit.records = vec![record(1)];
        log.refuses(ErrorKind::Invalid, log.commit(commit)).await;
        let children = [child("d", "a", 1).with_labels(labels)];
        log.refuses(ErrorKind::Invalid, log.commit(starting(&lease, 1, children))).await;
    }
}

/// A commit gives a flow the labels that it names and no others, whatever else it does; one that names none leaves
/// them.
pub async fn labels_are_set_by_a_commit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start_flow(flow("a").with_label("stage", "new").with_label("region", "eu")).await;
    let stage = |value: &str| Filter::all().with_label("stage", value);
    log.commit(labelling(&lease, 1, Labels::from([("stage", "paid")]))).await.unwrap();
    assert_eq!(log.info("a").await.labels.to_string(), "stage=paid");
    log.commit(steps(&lease, 2, 0, 1)).await.unwrap();
    assert_eq!(log.info("a").await.labels.to_string(), "stage=paid");
    for (filter, expected) in [(stage("new"), ""), (stage("paid"), "a"), (Filter::all().with_label("region", "eu"), "")]
    {
        assert_eq!(listed(&log, &filter, 10).await, expected, "{filter:?}");
    }
    // With records, and again when its answer was lost.
    let mut commit = labelling(&lease, 3, Labels::from([("stage", "sent"), ("to", "ü")]));
    commit.records = vec![record(2), record(3)];
    log.commit(commit.clone()).await.unwrap();
    log.commit(commit).await.unwrap();
    assert_eq!((log.records("a").await.len(), log.info("a").await.labels.to_string()), (3, "stage=sent, to=ü".into()));
    // With a suspension, and then with none left at the end.
    let mut commit = labelling(&lease, 4, Labels::from([("stage", "waits")]));
    commit.next = super::scene::suspend(Some(log.now().saturating_add(SECOND)), &[]);
    log.commit(commit).await.unwrap();
    assert_eq!(listed(&log, &stage("waits"), 10).await, "a");
    log.advance(SECOND).await;
    let lease = log.take_flow("a").await.lease;
    let mut commit = labelling(&lease, 1, Labels::new());
    commit.next = complete();
    log.commit(commit).await.unwrap();
    assert_eq!((log.info("a").await.labels, log.state("a").await), (Labels::new(), FlowState::Completed));
    assert_eq!(listed(&log, &stage("waits"), 10).await, "");
}

/// A stale commit sets no labels.
pub async fn labels_are_not_set_by_a_stale_commit(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let stale = log.start_flow(flow("a").with_label("stage", "new")).await;
    log.release(&stale).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    let set = |lease| labelling(lease, 1, Labels::from([("stage", "stale")]));
    log.refuses(ErrorKind::LeaseLost, log.commit(set(&stale))).await;
    log.cancel(&id("a"), "").await.unwrap();
    log.refuses(ErrorKind::LeaseLost, log.commit(set(&lease))).await;
    assert_eq!(log.info("a").await.labels.to_string(), "stage=new");
}

/// Children have labels of their own.
pub async fn labels_of_children_are_their_own(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start_flow(flow("a").with_label("stage", "new")).await;
    let children = [child("b", "a", 1).with_label("stage", "child"), detached("c", "a", 2), child("d", "a", 3)];
    let mut commit = starting(&lease, 1, children);
    commit.labels = Some(Labels::from([("stage", "parent")]));
    log.commit(commit).await.unwrap();
    for (value, expected) in [("new", ""), ("child", "b"), ("parent", "a")] {
        assert_eq!(listed(&log, &Filter::all().with_label("stage", value), 10).await, expected);
    }
    assert!(log.info("d").await.labels.is_empty());
}

/// Each condition narrows a list and a count, and all must hold.
pub async fn labels_times_and_reasons_filter(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let start = log.now();
    let at = |seconds: u64| start.saturating_add(SECOND * u32::try_from(seconds).unwrap());
    log.add([flow("a").with_label("c", "1").with_label("r", "eu"), flow("b").with_label("c", "2")]).await;
    log.advance(SECOND * 10).await;
    log.add([flow("c").with_label("c", "1").with_label("r", "us"), child("d", "a", 1).with_label("c", "1")]).await;
    log.advance(SECOND * 10).await;
    log.add([flow("e"), flow("f").with_label("c", "12")]).await;
    for (name, next) in [("a", complete()), ("b", fail_of([CallPath::top(1)])), ("c", stall("build-1"))] {
        let lease = log.take_flow(name).await.lease;
        log.commit(going(&lease, 1, next)).await.unwrap();
        log.advance(SECOND * 10).await;
    }
    log.cancel(&id("e"), "100% \"enough\" \\ _x").await.unwrap();
    let all = Filter::all;
    let cases = [
        (all().with_label("c", "1"), "acd"),
        (all().with_label("c", "2"), "b"),
        (all().with_label("c", ""), ""),
        (all().with_label("c", "3"), ""),
        (all().with_label("C", "1"), ""),
        (all().with_label("c=1", ""), ""),
        (all().with_label("c", "1\nr=eu"), ""),
        (all().with_label("c", "1").with_label("r", "eu"), "a"),
        (all().with_label("r", "us").with_label("c", "1"), "c"),
        (all().with_label("r", "us").with_label("c", "2"), ""),
        (all().with_label("c", "1").with_parent(id("a")), "d"),
        (all().with_label("r", "eu").with_parent(id("a")), ""),
        (all().with_label("c", "1").with_state(FlowState::Stalled).with_queue("default"), "c"),
        (all().with_reason("broken"), "b"),
        (all().with_reason("roke"), "b"),
        (all().with_reason("Broken"), ""),
        (all().with_reason("diverged"), "c"),
        (all().with_reason("100% \"enough\" \\ _"), "e"),
        (all().with_reason("1_0"), ""),
        (all().with_reason(""), "bce"),
        (all().with_reason("enough").with_state(FlowState::Failed), ""),
        (all().created_from(start), "abcdef"),
        (all().created_from(at(10)), "cdef"),
        (all().created_from(at(10)).created_before(at(20)), "cd"),
        (all().created_before(at(10)), "ab"),
        (all().created_before(start), ""),
        (all().finished_from(start), "abe"),
        (all().finished_from(at(20)).finished_before(at(30)), "a"),
        (all().finished_from(at(30)), "be"),
        (all().finished_before(at(50)), "ab"),
        (all().finished_before(Timestamp::MAX).with_label("c", "2"), "b"),
        (all().with_flow_type("Order").with_label("c", "1").created_before(at(10)), "a"),
    ];
    for (filter, expected) in cases {
        for limit in [1, 2, 100] {
            assert_eq!(listed(&log, &filter, limit).await, expected, "{filter:?}, at most {limit} in a page");
        }
        let counts = log.counts(&filter).await.unwrap();
        let counted: u64 = counts.iter().map(|count| count.flows).sum();
        assert_eq!(counted, expected.len() as u64, "{filter:?}");
        for count in counts {
            let state = count.state;
            let of_state = listed(&log, &Filter { states: vec![state], ..filter.clone() }, 10).await;
            let both = filter.states.is_empty() || filter.states.contains(&state);
            assert_eq!(if both { of_state.len() as u64 } else { 0 }, count.flows, "{filter:?} {state}");
        }
    }
}

/// A flow that the log itself has stalled is found by what the log says of it.
pub async fn labels_and_reasons_of_poison(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let mut request = super::scene::request(1);
    request.deliveries_max = 1;
    request.worker = "the \"w\" \\".into();
    assert_eq!(log.claim(request.clone()).await.unwrap().flows.len(), 1);
    log.advance(super::scene::LEASE).await;
    assert_eq!(log.claim(request).await.unwrap().flows.len(), 0);
    let reason = log.info("a").await.reason.unwrap();
    for text in ["claimed 1 times without making progress", &reason] {
        assert_eq!(listed(&log, &Filter::all().with_reason(text), 10).await, "a", "{text}");
        assert_eq!(log.counts(&Filter::all().with_reason(text)).await.unwrap().len(), 1);
    }
    assert_eq!(listed(&log, &Filter::all().with_reason("claimed 2 times"), 10).await, "");
}

/// Pages of flows with a label skip nothing and repeat nothing while flows change, come, go and are given others.
pub async fn labelled_pages_are_stable(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..60);
    log.add(names.iter().map(|name| flow(name).with_label("batch", "7"))).await;
    let filter = Filter::all().with_label("batch", "7");
    let (mut found, mut cursor) = (Vec::new(), None);
    for round in 0.. {
        let page = log.list(&filter, cursor, 7).await.unwrap();
        found.extend(page.flows.iter().map(|info| info.id.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        // One that was listed goes, one loses its label, others go on, and a new one comes.
        log.cancel(&id(&found[3 * round]), "").await.unwrap();
        assert!(log.delete(&id(&found[3 * round])).await.unwrap());
        let claimed = log.take(2).await;
        log.commit(labelling(&claimed[0].lease, 1, Labels::new())).await.unwrap();
        log.go(&claimed[1].lease, 1, complete()).await;
        log.add([flow(&format!("new-{round}"))]).await;
    }
    let lost: Vec<_> = names.iter().filter(|name| !found.contains(name)).collect();
    for name in &lost {
        assert_eq!(log.info(name).await.labels, Labels::new(), "one that is skipped has lost its label");
    }
    let mut once = found.clone();
    once.dedup();
    assert_eq!((found.len() + lost.len(), once), (60, found));
}

/// The labels of a flow that is forgotten are forgotten with it.
pub async fn labels_go_with_their_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for (name, how) in [("a", 0), ("b", 1)] {
        log.add([flow(name).with_label("x", "1")]).await;
        log.cancel(&id(name), "").await.unwrap();
        if how == 0 {
            assert!(log.delete(&id(name)).await.unwrap());
        } else {
            assert_eq!(log.prune(&PrunePolicy::older_than(std::time::Duration::ZERO)).await.unwrap(), 1);
        }
        log.add([flow(name)]).await;
    }
    let filter = Filter::all().with_label("x", "1");
    assert_eq!((listed(&log, &filter, 10).await, log.counts(&filter).await.unwrap()), (String::new(), vec![]));
    // A child that takes the place of another has its own.
    let lease = log.start("mother").await;
    log.commit(starting(&lease, 1, [child("c", "mother", 1).with_label("x", "1")])).await.unwrap();
    log.cancel(&id("c"), "").await.unwrap();
    let mut other = child("c", "mother", 1).with_label("x", "2");
    other.input = "other".into();
    log.commit(starting(&lease, 2, [other])).await.unwrap();
    assert_eq!(listed(&log, &filter, 10).await, "");
    assert_eq!(listed(&log, &Filter::all().with_label("x", "2"), 10).await, "c");
}
