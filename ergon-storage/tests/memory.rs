//! The in-memory log keeps the laws.

#![cfg(feature = "conformance")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ergon_storage::{
    ErrorKind, ExecutionLog, FlowId, InMemoryExecutionLog, Limits, ManualClock, NewFlow,
    conformance::{Harness, Lifetime, block_on, random_script},
};

struct MemoryHarness;

struct MemoryStore {
    clock: ManualClock,
    log: Mutex<Arc<InMemoryExecutionLog>>,
}

fn empty(clock: &ManualClock) -> Arc<InMemoryExecutionLog> {
    Arc::new(InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone())))
}

impl Harness for MemoryHarness {
    type Log = InMemoryExecutionLog;
    type Store = MemoryStore;
    const LIFETIME: Lifetime = Lifetime::Handle;

    async fn create(&self) -> MemoryStore {
        let clock = ManualClock::new();
        MemoryStore { log: Mutex::new(empty(&clock)), clock }
    }

    async fn open(&self, store: &MemoryStore) -> Arc<InMemoryExecutionLog> {
        Arc::new(InMemoryExecutionLog::clone(&store.log.lock().unwrap()))
    }

    async fn close(&self, store: &MemoryStore, log: Arc<InMemoryExecutionLog>) {
        drop(log);
        *store.log.lock().unwrap() = empty(&store.clock);
    }

    async fn advance(&self, store: &MemoryStore, by: Duration) {
        store.clock.advance(by);
    }
}

ergon_storage::conformance_tests!(MemoryHarness);

/// The scripts are the same each time they are played: a smoke test of the script more than of the log.
#[test]
fn scripts_agree_with_themselves() {
    block_on(async {
        for seed in 10_000..10_200 {
            random_script(&MemoryHarness, seed, 80).await;
        }
    });
}

/// Limits that were set are told, and kept to.
#[test]
fn other_limits_are_kept_to() {
    block_on(async {
        let mut limits = Limits::default();
        limits.payload_bytes_max = 8;
        let log = InMemoryExecutionLog::new().with_limits(limits);
        assert_eq!(log.limits().payload_bytes_max, 8);
        let flow = |id: &str, input: &'static str| NewFlow::new(FlowId::new(id).unwrap(), "Order", 1, input);
        let error = log.enqueue(vec![flow("large", "123456789")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        log.enqueue(vec![flow("small", "12345678"), flow("smaller", "")]).await.unwrap();
        assert_eq!(format!("{log:?}"), "InMemoryExecutionLog { flows: 2, .. }");
    });
}
