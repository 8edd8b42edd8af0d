//! The SQLite log keeps the laws of every log, in a file and in memory.
#![cfg(all(feature = "sqlite", feature = "conformance"))]
// "SQLite" is a name, not code.
#![allow(clippy::doc_markdown)]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ergon_storage::{
    Durability, ManualClock, SqliteExecutionLog, SqliteOptions,
    conformance::{Harness, Lifetime},
};
use tempfile::TempDir;

/// Logs in files.
struct FileHarness;

struct FileStore {
    directory: TempDir,
    clock: ManualClock,
}

impl Harness for FileHarness {
    type Log = SqliteExecutionLog;
    type Store = FileStore;
    const LIFETIME: Lifetime = Lifetime::Store;

    async fn create(&self) -> FileStore {
        FileStore { directory: tempfile::tempdir().unwrap(), clock: ManualClock::new() }
    }

    async fn open(&self, store: &FileStore) -> Arc<SqliteExecutionLog> {
        // A power cut is not what the laws are about.
        let options = SqliteOptions::new(store.directory.path().join("log.db")).durability(Durability::Normal);
        Arc::new(options.clock(Arc::new(store.clock.clone())).open().await.unwrap())
    }

    async fn close(&self, _: &FileStore, log: Arc<SqliteExecutionLog>) {
        drop(Arc::into_inner(log).expect("the only handle"));
    }

    async fn advance(&self, store: &FileStore, by: Duration) {
        store.clock.advance(by);
    }
}

/// Logs in memory, where each further handle is the same log.
struct MemoryHarness;

struct MemoryStore {
    clock: ManualClock,
    log: Mutex<Option<Arc<SqliteExecutionLog>>>,
}

impl Harness for MemoryHarness {
    type Log = SqliteExecutionLog;
    type Store = MemoryStore;
    const LIFETIME: Lifetime = Lifetime::Handle;

    async fn create(&self) -> MemoryStore {
        MemoryStore { clock: ManualClock::new(), log: Mutex::default() }
    }

    async fn open(&self, store: &MemoryStore) -> Arc<SqliteExecutionLog> {
        let open = store.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(log) = open {
            return log;
        }
        let options = SqliteOptions::in_memory().clock(Arc::new(store.clock.clone()));
        let log = Arc::new(options.open().await.unwrap());
        *store.log.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&log));
        log
    }

    async fn close(&self, store: &MemoryStore, log: Arc<SqliteExecutionLog>) {
        *store.log.lock().unwrap_or_else(PoisonError::into_inner) = None;
        drop(log);
    }

    async fn advance(&self, store: &MemoryStore, by: Duration) {
        store.clock.advance(by);
    }
}

mod file {
    use super::FileHarness;

    ergon_storage::conformance_tests!(FileHarness);
}

mod memory {
    use super::MemoryHarness;

    ergon_storage::conformance_tests!(MemoryHarness);
}
