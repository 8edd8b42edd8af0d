//! How fast the SQLite log is. Not run by itself: `cargo test --release -p ergon-storage --features sqlite --test
//! sqlite_speed -- --ignored --nocapture --test-threads 1`.
#![cfg(feature = "sqlite")]
// "SQLite" is a name, not code.
#![allow(clippy::doc_markdown)]

mod speed;

use std::time::{Duration, Instant};

use ergon_storage::{Durability, ExecutionLog, FlowId, SqliteExecutionLog, SqliteOptions, Start};
use speed::{drain, flow, request, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn flows_per_second() {
    for durability in [Durability::Full, Durability::Normal] {
        for round in 0..3 {
            let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let log = SqliteOptions::new(directory.path().join("log.db")).durability(durability).open().await.unwrap();
            let rate = drain(&log, 50_000, 256).await;
            println!("{durability:?} round {round}: {rate:.0} flows/s with 256 slots");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn one_flow_alone() {
    for durability in [Durability::Full, Durability::Normal] {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let log = SqliteOptions::new(directory.path().join("log.db")).durability(durability).open().await.unwrap();
        let mut times = Vec::new();
        for number in 0..500 {
            let start = Instant::now();
            log.enqueue(vec![flow("alone", number)]).await.unwrap();
            let claimed = log.claim(request(1)).await.unwrap().flows.pop().unwrap();
            run(&log, claimed).await;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!("{durability:?}: one flow alone takes {:?} (median), {:?} (p99)", times[250], times[495]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_claim_is_as_fast_with_a_million_waiting_flows() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let log = SqliteOptions::new(directory.path().join("log.db")).durability(Durability::Normal).open().await.unwrap();
    let mut waiting = 0;
    for target in [1_000, 1_000_000] {
        let start = Instant::now();
        while waiting < target {
            let batch = waiting..target.min(waiting + 5_000);
            waiting = batch.end;
            let flows = batch.map(|n| {
                // Some are due long after, some now, all behind the flow that is claimed.
                let start = if n % 2 == 0 { Start::After(Duration::from_secs(86_400)) } else { Start::Now };
                flow("waiting", n).with_start(start).with_queue(if n % 2 == 0 { "default" } else { "other" })
            });
            log.enqueue(flows.collect()).await.unwrap();
        }
        println!("{target} flows wait, made in {:?}", start.elapsed());
        let mut times = Vec::new();
        for number in 0..300 {
            log.enqueue(vec![flow(&format!("now{target}"), number)]).await.unwrap();
            let start = Instant::now();
            assert_eq!(log.claim(request(1)).await.unwrap().flows.len(), 1);
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!("{target} flows wait: a claim takes {:?} (median)", times[150]);
    }
}

/// The processor time of each of this process's threads whose name begins so.
#[cfg(target_os = "linux")]
fn processor_time(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let named = std::fs::read_to_string(task.join("comm")).ok()?.starts_with(name);
        let spent = std::fs::read_to_string(task.join("schedstat")).ok()?;
        named.then(|| spent.split(' ').next()?.parse::<u64>().ok()).flatten()
    });
    Duration::from_nanos(nanos.sum())
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "a measurement"]
async fn an_idle_log_uses_no_processor_time() {
    let directory = tempfile::tempdir().unwrap();
    let log = SqliteExecutionLog::open(directory.path().join("log.db")).await.unwrap();
    log.enqueue(vec![flow("idle", 1)]).await.unwrap();
    log.flow(&FlowId::new("idle").unwrap()).await.unwrap();
    // Another log runs something, and is not asked whether it is alive.
    let other = SqliteExecutionLog::open(log.path().unwrap()).await.unwrap();
    assert_eq!(other.claim(request(1)).await.unwrap().flows.len(), 1);
    assert_eq!(log.claim(request(1)).await.unwrap().flows.len(), 0);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let spent = || processor_time("ergon-sqlite") + processor_time("notify-rs");
    let before = spent();
    assert!(before > Duration::ZERO, "the threads were found");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = spent().saturating_sub(before);
    println!("an idle log used {used:?} of processor time in 3 s");
    assert!(used.is_zero());
}
