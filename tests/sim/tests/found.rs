//! What the simulation has found, each told as briefly as it can be.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ergon::{prelude::*, storage::ManualClock};

/// The body is held up for longer than the lease, and then calls a step.
#[step]
async fn held_up() -> ergon::Result<u32> {
    static FIRST: AtomicBool = AtomicBool::new(true);
    if FIRST.swap(false, Ordering::Relaxed) {
        state::<ManualClock>().advance(Duration::from_secs(60));
    }
    called_late().await
}

#[step]
async fn called_late() -> ergon::Result<u32> {
    Ok(7)
}

#[flow]
async fn holds_up() -> ergon::Result<u32> {
    held_up().await
}

/// A worker that was stopped for longer than its lease begins no body any more, though its lease is renewed since nobody
/// else has taken the flow. A body that waited for one to begin kept the flow for ever.
#[tokio::test]
async fn a_body_that_waits_for_another_to_begin_does_not_keep_a_flow_whose_lease_was_over() {
    let clock = ManualClock::new();
    let log = InMemoryExecutionLog::new().with_clock(std::sync::Arc::new(clock.clone()));
    let flow = Scheduler::new(log.clone()).schedule(holds_up()).await.unwrap();
    let worker = Worker::new(log).register::<holds_up>().with_state(clock).start().await.unwrap();
    let result = tokio::time::timeout(Duration::from_secs(20), flow.result()).await;
    assert_eq!(result.expect("the flow goes on").unwrap(), 7);
    worker.shutdown().await;
}
