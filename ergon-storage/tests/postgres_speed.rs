//! How fast the PostgreSQL log is. Not run by itself: `cargo test --release -p ergon-storage --features postgres --test
//! postgres_speed -- --ignored --nocapture --test-threads 1`, with the URL of a server in `ERGON_SPEED_POSTGRES` where a
//! private one is not what is to be measured.
#![cfg(feature = "postgres")]

mod speed;

use std::time::{Duration, Instant};

use ergon_storage::{
    CallPath, Channel, ChildOutcome, Commit, Committed, ExecutionLog, FlowId, NewFlow, NewMessage, Next, Parent,
    PostgresExecutionLog, PostgresOptions, SynchronousCommit, Wake,
};
use ergon_test_servers::{Postgres, fresh_name};
use speed::{drain, flow, request, run};

/// A server as one in use has it, and a log on it.
struct Place {
    server: Option<Postgres>,
    url: String,
}

impl Place {
    fn new() -> Self {
        if let Ok(url) = std::env::var("ERGON_SPEED_POSTGRES") {
            return Self { server: None, url };
        }
        let settings = [("fsync", "on"), ("shared_buffers", "256MB"), ("max_wal_size", "4GB")];
        let server = Postgres::start_with(&settings);
        Self { url: server.url(), server: Some(server) }
    }

    async fn log(&self, synchronous_commit: SynchronousCommit) -> PostgresExecutionLog {
        let schema = format!("{}_{}", fresh_name(), std::process::id());
        PostgresOptions::new(&self.url).schema(schema).synchronous_commit(synchronous_commit).connect().await.unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.server.take());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn flows_per_second() {
    let place = Place::new();
    for synchronous_commit in [SynchronousCommit::On, SynchronousCommit::Off] {
        for slots in [256, 2_048] {
            for round in 0..2 {
                let log = place.log(synchronous_commit).await;
                let rate = drain(&log, 20_000, slots).await;
                println!("{synchronous_commit:?} round {round}: {rate:.0} flows/s with {slots} slots");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_flow_alone() {
    let place = Place::new();
    for synchronous_commit in [SynchronousCommit::On, SynchronousCommit::Off] {
        let log = place.log(synchronous_commit).await;
        let mut times = Vec::new();
        let (mut enqueues, mut claims) = (Duration::ZERO, Duration::ZERO);
        for number in 0..1_000 {
            let start = Instant::now();
            log.enqueue(vec![flow("alone", number)]).await.unwrap();
            enqueues += start.elapsed();
            let claiming = Instant::now();
            let claimed = log.claim(request(1)).await.unwrap().flows.remove(0);
            claims += claiming.elapsed();
            run(&log, claimed).await;
            times.push(start.elapsed());
        }
        times.sort();
        let [p50, p99] = [500, 990].map(|place| times[place]);
        println!(
            "{synchronous_commit:?}: {p50:?} p50, {p99:?} p99; enqueue {:?}, claim {:?}",
            enqueues / 1_000,
            claims / 1_000
        );
    }
}

/// A parent that starts children and waits for each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn children_per_second() {
    const PARENTS: usize = 100;
    const CHILDREN: u32 = 20;
    let place = Place::new();
    let log = place.log(SynchronousCommit::On).await;
    log.enqueue((0..PARENTS).map(|number| flow("parent", number)).collect()).await.unwrap();
    let start = Instant::now();
    for claimed in log.claim(request(PARENTS)).await.unwrap().flows {
        let mut commit = Commit::new(claimed.lease.clone(), 1);
        for path in 1..=CHILDREN {
            let parent = Parent { id: claimed.info.id.clone(), path: CallPath::top(path), detached: false };
            let id = FlowId::new(format!("{}/{path}", claimed.info.id)).unwrap();
            commit.children.push(NewFlow::new(id, "Order", 1, "{}").with_parent(parent));
        }
        commit.next = Next::suspend(Wake { at: None, channels: vec![Channel::children()] });
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Suspended);
    }
    let started = start.elapsed();
    let all = PARENTS * CHILDREN as usize;
    let children = log.claim(request(all)).await.unwrap().flows;
    let ending = Instant::now();
    let ended = children.into_iter().map(|claimed| {
        let log = log.clone();
        tokio::spawn(async move {
            let mut commit = Commit::new(claimed.lease, 1);
            commit.next = Next::Complete { result: "7".into() };
            log.commit(commit).await.unwrap();
        })
    });
    for task in ended.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let messages = log.messages(&FlowId::new("parent-00000000").unwrap(), &[], 0, 100).await.unwrap();
    assert!(messages.len() <= 20 && messages.iter().all(|message| message.child == Some(ChildOutcome::Completed)));
    let count = u32::try_from(all).unwrap();
    println!("{all} children: {:?} each to start, {:?} each to end", started / count, ending.elapsed() / count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn messages_per_second() {
    const FLOWS: usize = 1_000;
    let place = Place::new();
    let log = place.log(SynchronousCommit::On).await;
    log.enqueue((0..FLOWS).map(|number| flow("box", number)).collect()).await.unwrap();
    let start = Instant::now();
    let sent = (0..FLOWS * 5).map(|number| {
        let log = log.clone();
        tokio::spawn(async move {
            let to = FlowId::new(format!("box-{:08}", number % FLOWS)).unwrap();
            log.send(NewMessage::new(to, Channel::signal("go"), "7")).await.unwrap();
        })
    });
    for task in sent.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    println!("{:?} a message", start.elapsed() / u32::try_from(FLOWS * 5).unwrap());
}
