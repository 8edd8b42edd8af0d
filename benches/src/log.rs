//! The logs that ergon is measured on.

use std::path::Path;

use ergon::{
    InMemoryExecutionLog, Scheduler, SqliteExecutionLog, StorageError, Worker,
    storage::{self, ExecutionLog, SqliteOptions},
};

use crate::case::{Backend, Case, Durability};

/// An open log.
#[derive(Debug, Clone)]
pub(crate) enum Log {
    Memory(InMemoryExecutionLog),
    Sqlite(SqliteExecutionLog),
}

impl Log {
    /// Opens the log of a case in this folder, or makes it.
    pub(crate) async fn open(case: &Case, dir: &Path) -> Result<Self, StorageError> {
        let durability = match (case.backend, case.durability) {
            (Backend::Memory, _) => return Ok(Self::Memory(InMemoryExecutionLog::new())),
            (Backend::Sqlite, Durability::Normal | Durability::None) => storage::Durability::Normal,
            (Backend::Sqlite, Durability::Full) => storage::Durability::Full,
        };
        Ok(Self::Sqlite(SqliteOptions::new(dir.join("log.db")).durability(durability).open().await?))
    }

    /// Closes the log and opens it again, as another process would; one in memory stays.
    pub(crate) async fn reopen(self, case: &Case, dir: &Path) -> Result<Self, StorageError> {
        match self {
            Self::Memory(_) => Ok(self),
            Self::Sqlite(log) => {
                drop(log);
                Self::open(case, dir).await
            }
        }
    }

    pub(crate) fn scheduler(&self) -> Scheduler {
        match self {
            Self::Memory(log) => Scheduler::new(log.clone()),
            Self::Sqlite(log) => Scheduler::new(log.clone()),
        }
    }

    pub(crate) fn worker(&self) -> Worker {
        match self {
            Self::Memory(log) => Worker::new(log.clone()),
            Self::Sqlite(log) => Worker::new(log.clone()),
        }
    }

    pub(crate) fn as_log(&self) -> &dyn ExecutionLog {
        match self {
            Self::Memory(log) => log,
            Self::Sqlite(log) => log,
        }
    }
}
