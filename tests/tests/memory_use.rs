//! Memory stays flat, however many flows pass through.
//!
//! Every byte is counted, so that what a hundred thousand flows would leave behind shows with a thousand.

use std::{alloc::System, time::Duration};

use ergon::{
    WorkerHandle,
    prelude::*,
    storage::{ExecutionLog, PrunePolicy},
};
use ergon_tests::{FaultyLog, Place, soon, until};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The size of what each flow is given, records and results in.
const PAYLOAD: usize = 20_000;
const FLOWS: usize = 1_000;
/// What the maps and queues of a process may grow by; a flow that is not forgotten leaves more.
const BYTES_PER_FLOW_MAX: usize = 64;

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

/// What this process holds on to, in bytes.
fn held() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Runs flows, a hundred at a time, and forgets them.
async fn flows(log: &FaultyLog, worker: &WorkerHandle, count: usize) {
    const BATCH: usize = 100;
    let scheduler = Scheduler::new(log.clone());
    for _ in 0..count / BATCH {
        let batch = (0..BATCH).map(|_| Heavy { payload: "x".repeat(PAYLOAD) });
        for flow in scheduler.schedule_all(batch).await.unwrap() {
            soon("a heavy flow", flow.result()).await.unwrap();
        }
        until("the slots to be free", || async { worker.running() == 0 }).await;
        log.prune(&PrunePolicy::older_than(Duration::ZERO).with_limit(u32::MAX)).await.unwrap();
    }
}

async fn leaves_nothing_behind(place: Place) {
    let log = place.log().await;
    // Parked ones are bounded; with a moment of zero each flow is suspended and parked once.
    let worker = Worker::new(log.clone()).register::<Heavy>().moment(Duration::ZERO).parked_max(10);
    let worker = worker.start().await.unwrap();
    // Until all that grows at first has grown.
    flows(&log, &worker, 500).await;
    let before = held();
    flows(&log, &worker, FLOWS).await;
    let grown = held().saturating_sub(before);
    println!("{before} bytes, then {grown} more");
    let per_flow = grown / FLOWS;
    assert!(per_flow < BYTES_PER_FLOW_MAX, "each flow left {per_flow} bytes behind, of {PAYLOAD} that went through");
    worker.shutdown().await;
}

/// In memory and in a file, one after the other: what is counted is the whole process.
#[tokio::test]
async fn flows_leave_nothing_behind() {
    leaves_nothing_behind(Place::memory()).await;
    leaves_nothing_behind(Place::sqlite()).await;
}
