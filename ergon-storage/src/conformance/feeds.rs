//! What flows tell of themselves: in order, once, and readable while they run.

use std::time::Duration;

use super::{
    Harness,
    scene::{LEASE, SECOND, Scene, again, child, complete, fail, flow, going, id, steps, text},
};
use crate::{CallPath, Commit, Committed, ErrorKind, Feed, FlowState, Item, Keep, Lease, NewItem, Timestamp, Topic};

const AT: Timestamp = Timestamp::from_micros(1_735_689_600_000_000);

fn item(feed: &Feed, keep: Keep, payload: &str) -> NewItem {
    NewItem { feed: feed.clone(), keep, at: AT, call: None, attempt: 0, payload: payload.to_owned().into() }
}

fn telling(lease: &Lease, number: u32, items: impl IntoIterator<Item = NewItem>) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.items = items.into_iter().collect();
    commit
}

fn tokens() -> Feed {
    Feed::stream("tokens")
}

impl<H: Harness> Scene<'_, H> {
    async fn items_of(&self, name: &str, feed: &Feed) -> Vec<Item> {
        self.items(&id(name), feed, 0, usize::MAX).await.unwrap()
    }

    async fn told(&self, name: &str, feed: &Feed) -> Vec<(u32, String)> {
        self.items_of(name, feed).await.iter().map(|item| (item.seq, text(&item.payload))).collect()
    }
}

/// Items come back as they were emitted, field by field, with the run and the epoch.
pub async fn items_keep_every_field(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.go(&lease, 1, again("second")).await;
    let lease = log.take_flow("a").await.lease;
    let feeds = ["x", "stream:ü \"quoted\"", "stream:with\na line\\"].map(Feed::from_name);
    let calls = [None, Some(CallPath::top(7)), Some(CallPath::top(3).child(u32::MAX))];
    let payloads: [&[u8]; 3] = [b"", b"\x00\xff", b"{}"];
    let mut commit = steps(&lease, 1, 0, 1);
    for index in 0..27 {
        commit.items.push(NewItem {
            feed: feeds[index % 3].clone(),
            keep: Keep::All,
            at: [Timestamp::from_micros(i64::MIN), AT, Timestamp::MAX][index / 3 % 3],
            call: calls[index / 9].clone(),
            attempt: [0, 1, u32::MAX][index / 3 % 3],
            payload: payloads[index / 9].into(),
        });
    }
    log.commit(commit.clone()).await.unwrap();
    for (place, feed) in feeds.iter().enumerate() {
        let expected = commit.items.iter().skip(place).step_by(3).zip(1..).map(|(item, seq)| {
            let NewItem { at, call, attempt, payload, .. } = item.clone();
            Item { seq, at, run: 2, epoch: lease.epoch, call, attempt, payload }
        });
        assert_eq!(log.items_of("a", feed).await, expected.collect::<Vec<_>>());
    }
}

/// Items are numbered by their feed, through all commits, and read in pages.
pub async fn items_are_read_in_pages(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let other = Feed::stream("other");
    for number in 1..=5 {
        let both = (0..4).flat_map(|place| {
            [item(&tokens(), Keep::All, &format!("{}", number * 4 + place)), item(&other, Keep::All, "other")]
        });
        assert_eq!(log.commit(telling(&lease, number, both)).await.unwrap(), Committed::Applied);
    }
    let mut read = Vec::new();
    loop {
        let after = read.last().map_or(0, |item: &Item| item.seq);
        let page = log.items(&id("a"), &tokens(), after, 3).await.unwrap();
        read.extend(page.iter().cloned());
        if page.len() < 3 {
            break;
        }
    }
    let expected: Vec<_> = (1..=20).map(|seq| (seq, (seq + 3).to_string())).collect();
    assert_eq!(read.iter().map(|item| (item.seq, text(&item.payload))).collect::<Vec<_>>(), expected);
    assert_eq!(log.items(&id("a"), &tokens(), 20, 3).await.unwrap(), []);
    assert_eq!(log.items(&id("a"), &tokens(), u32::MAX, 3).await.unwrap(), []);
    assert_eq!(log.items(&id("a"), &tokens(), 0, 0).await.unwrap(), []);
    assert_eq!(log.items_of("a", &Feed::stream("none")).await, []);
    let unknown = log.items(&id("b"), &tokens(), 0, 1).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
}

/// Of a feed that keeps the last item only that one is there, under a number that grows.
pub async fn the_last_item_takes_the_place_of_the_others(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let status = Feed::status();
    let say = |text: &str| item(&status, Keep::Last, text);
    log.commit(telling(&lease, 1, [say("one")])).await.unwrap();
    assert_eq!(log.told("a", &status).await, [(1, "one".into())]);
    log.commit(telling(&lease, 2, [say("two"), item(&tokens(), Keep::All, "x"), say("three")])).await.unwrap();
    assert_eq!(log.told("a", &status).await, [(3, "three".into())]);
    log.commit(telling(&lease, 3, [say("four"), item(&tokens(), Keep::All, "y")])).await.unwrap();
    assert_eq!(log.told("a", &status).await, [(4, "four".into())]);
    assert_eq!(log.items(&id("a"), &status, 3, 9).await.unwrap().len(), 1);
    assert_eq!(log.items(&id("a"), &status, 4, 9).await.unwrap(), []);
    assert_eq!(log.told("a", &tokens()).await, [(1, "x".into()), (2, "y".into())]);
}

/// A commit that is repeated or refused adds nothing.
pub async fn items_are_added_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let items = || [item(&tokens(), Keep::All, "x"), item(&Feed::status(), Keep::Last, "y")];
    for next in [crate::Next::Run, complete()] {
        let number = if next == crate::Next::Run { 1 } else { 2 };
        let mut commit = telling(&lease, number, items());
        commit.next = next;
        for _ in 0..3 {
            assert_eq!(log.commit(commit.clone()).await.unwrap(), Committed::Applied);
        }
        assert_eq!(log.told("a", &tokens()).await.len(), number as usize);
    }
    let lease = log.start("b").await;
    let mut stale = telling(&lease, 1, items());
    stale.lease.epoch += 1;
    let mut astray = telling(&lease, 2, items());
    astray.emitted = Some(7);
    let mut doomed = telling(&lease, 1, items());
    doomed.children = vec![child("c", "b", 1)];
    doomed.children[0].version = 0;
    let mut nameless = telling(&lease, 1, items());
    nameless.items[1].feed = Feed::from_name("");
    let mut large = telling(&lease, 1, items());
    large.items[1].payload = vec![b'x'; log.limits().payload_bytes_max + 1].into();
    log.refuses(ErrorKind::LeaseLost, log.commit(stale)).await;
    log.refuses(ErrorKind::TooLarge, log.commit(large)).await;
    for commit in [astray, doomed, nameless] {
        log.refuses(ErrorKind::Invalid, log.commit(commit)).await;
    }
    assert_eq!((log.items_of("b", &tokens()).await, log.items_of("b", &Feed::status()).await), (vec![], vec![]));
}

/// How many items its code has emitted is kept for the run as the engine says it, and told with the claim.
pub async fn emitted_items_are_counted_by_the_engine(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let mut commit = telling(&lease, 1, [item(&tokens(), Keep::All, "x")]);
    commit.emitted = Some(1);
    log.commit(commit).await.unwrap();
    log.commit(telling(&lease, 2, [item(&tokens(), Keep::All, "of a step")])).await.unwrap();
    log.commit(steps(&lease, 3, 0, 1)).await.unwrap();
    assert_eq!(log.info("a").await.emitted, 1);
    let mut commit = going(&lease, 4, fail());
    commit.emitted = Some(0);
    log.commit(commit).await.unwrap();
    assert_eq!(log.info("a").await.emitted, 0);
    log.retry(&id("a")).await.unwrap();
    let claimed = log.take_flow("a").await;
    assert_eq!(claimed.info.emitted, 0);
    let mut commit = going(&claimed.lease, 1, crate::Next::Run);
    commit.emitted = Some(9);
    log.commit(commit).await.unwrap();
    log.advance(LEASE).await;
    let claimed = log.take_flow("a").await;
    assert_eq!(claimed.info.emitted, 9);
    log.go(&claimed.lease, 1, again("second")).await;
    assert_eq!(log.info("a").await.emitted, 0, "the next run begins to count anew");
}

/// Items outlive runs, failures and ends, and go with the flow.
pub async fn items_belong_to_the_flow(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let say = |text: &str| [item(&tokens(), Keep::All, text), item(&Feed::status(), Keep::Last, text)];
    let mut commit = telling(&lease, 1, say("one"));
    commit.next = again("second");
    log.commit(commit).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    let mut commit = telling(&lease, 1, say("two"));
    commit.next = fail();
    log.commit(commit).await.unwrap();
    log.retry(&id("a")).await.unwrap();
    let lease = log.take_flow("a").await.lease;
    let mut commit = telling(&lease, 1, say("three"));
    commit.next = complete();
    log.commit(commit).await.unwrap();
    let runs: Vec<_> = log.items_of("a", &tokens()).await.iter().map(|item| (item.seq, item.run, item.epoch)).collect();
    assert_eq!(runs, [(1, 1, 1), (2, 2, 2), (3, 2, 3)]);
    assert_eq!(log.told("a", &Feed::status()).await, [(3, "three".into())]);
    assert_eq!(log.state("a").await, FlowState::Completed);
    assert!(log.delete(&id("a")).await.unwrap());
    log.add([flow("a")]).await;
    assert_eq!((log.items_of("a", &tokens()).await, log.items_of("a", &Feed::status()).await), (vec![], vec![]));
    let lease = log.take_flow("a").await.lease;
    log.commit(telling(&lease, 1, say("anew"))).await.unwrap();
    assert_eq!(log.told("a", &tokens()).await, [(1, "anew".into())]);
}

/// Whoever watches the flow is told of new items, also from another handle.
pub async fn items_are_hinted_at(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let second = log.second().await;
    let mut watch = second.watch(Topic::Flow(id("a")));
    for number in 1..=20 {
        log.commit(telling(&lease, number, [item(&tokens(), Keep::All, "x")])).await.unwrap();
        // Looked at once more in case that the hint came before the watch was told of.
        while second.items(&id("a"), &tokens(), number - 1, 1).await.unwrap().is_empty() {
            tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.expect("a hint comes");
        }
    }
    log.advance(SECOND).await;
}

/// Many items in one commit, and in many, keep their order.
pub async fn many_items_keep_their_order(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let mut expected = Vec::new();
    for (number, amount) in (1..).zip([5_000, 1, 3, 2_000]) {
        let items: Vec<_> = (0..amount).map(|place| item(&tokens(), Keep::All, &format!("{number}/{place}"))).collect();
        expected.extend(items.iter().map(|item| text(&item.payload)));
        log.commit(telling(&lease, number, items)).await.unwrap();
    }
    let told = log.told("a", &tokens()).await;
    assert!(told.iter().map(|(seq, _)| *seq).eq(1..=7_004));
    assert!(told.into_iter().map(|(_, text)| text).eq(expected));
}
