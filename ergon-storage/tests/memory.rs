//! The in-memory log keeps the laws.

#![cfg(feature = "conformance")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ergon_storage::{
    InMemoryExecutionLog, ManualClock,
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
