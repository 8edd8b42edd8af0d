//! Logs to run on.

use std::sync::Arc;

use ergon::{
    InMemoryExecutionLog,
    storage::{Clock, Durability, Limits, SqliteOptions, SystemClock},
};
use tempfile::TempDir;

use crate::FaultyLog;

/// Where a test keeps its log.
#[derive(Debug)]
pub struct Place {
    directory: Option<TempDir>,
}

impl Place {
    /// In memory.
    #[must_use]
    pub fn memory() -> Self {
        Self { directory: None }
    }

    /// In a file of its own.
    ///
    /// # Panics
    ///
    /// When no directory can be made for it.
    #[must_use]
    pub fn sqlite() -> Self {
        Self { directory: Some(TempDir::new().expect("a directory")) }
    }

    /// True for a file.
    pub fn is_file(&self) -> bool {
        self.directory.is_some()
    }

    /// An empty log that goes by the machine's clock.
    pub async fn log(&self) -> FaultyLog {
        self.log_with(Arc::new(SystemClock), Limits::default()).await
    }

    /// An empty log that goes by this clock.
    pub async fn log_at(&self, clock: impl Clock) -> FaultyLog {
        self.log_with(Arc::new(clock), Limits::default()).await
    }

    /// An empty log with these settings.
    ///
    /// # Panics
    ///
    /// When it cannot be opened.
    pub async fn log_with(&self, clock: Arc<dyn Clock>, limits: Limits) -> FaultyLog {
        let Some(directory) = &self.directory else {
            return FaultyLog::new(InMemoryExecutionLog::new().with_clock(clock).with_limits(limits));
        };
        // What a power cut takes is not what these tests are about.
        let options = SqliteOptions::new(directory.path().join("log.db")).durability(Durability::Normal);
        FaultyLog::new(options.clock(clock).limits(limits).open().await.expect("a log in a file"))
    }
}
