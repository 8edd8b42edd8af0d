//! Memory stays flat, however many flows pass through.

use std::time::Duration;

use ergon::{
    prelude::*,
    storage::{ExecutionLog, PrunePolicy},
};
use ergon_tests::{Place, within};

/// A step with a large outcome, a wait, and a large result.
#[flow_type]
struct Heavy {
    payload: String,
}

#[flow_type]
impl Heavy {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let copy = self.copy(&self.payload).await?;
        sleep(Duration::from_millis(1)).await;
        Ok(copy)
    }

    #[step]
    async fn copy(&self, payload: &str) -> ergon::Result<String> {
        Ok(payload.to_owned())
    }
}

/// What this process holds in memory, in bytes; only Linux tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

async fn flows(log: &ergon_tests::FaultyLog, count: usize) {
    const BATCH: usize = 1_000;
    let scheduler = Scheduler::new(log.clone());
    for _ in 0..count / BATCH {
        let batch = (0..BATCH).map(|_| Heavy { payload: "x".repeat(20_000) });
        for flow in scheduler.schedule_all(batch).await.unwrap() {
            within(Duration::from_secs(120), "a heavy flow", flow.result()).await.unwrap();
        }
        log.prune(&PrunePolicy::older_than(Duration::ZERO).with_limit(u32::MAX)).await.unwrap();
    }
}

async fn stays_flat(place: Place, count: usize) {
    let log = place.log().await;
    // Parked ones are bounded; with a moment of zero each flow is suspended and parked once.
    let worker = Worker::new(log.clone()).register::<Heavy>().moment(Duration::ZERO).parked_max(100);
    let worker = worker.start().await.unwrap();
    // Until the allocator has what it needs.
    flows(&log, 3_000).await;
    let before = resident();
    flows(&log, count).await;
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before) >> 20;
        println!("{} MiB, then {} MiB", before >> 20, after >> 20);
        assert!(grown < 64, "{count} flows of 20 KB left {grown} MiB behind");
    }
    worker.shutdown().await;
}

#[tokio::test]
async fn thousands_of_flows_leave_nothing_behind() {
    stays_flat(Place::memory(), 3_000).await;
}

#[tokio::test]
#[ignore = "takes minutes: run it with --release"]
async fn a_hundred_thousand_flows_leave_nothing_behind_in_memory() {
    stays_flat(Place::memory(), 100_000).await;
}

#[tokio::test]
#[ignore = "takes minutes: run it with --release"]
async fn a_hundred_thousand_flows_leave_nothing_behind_in_a_file() {
    stays_flat(Place::sqlite(), 100_000).await;
}
