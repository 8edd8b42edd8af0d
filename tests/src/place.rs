//! Logs to run on.

use std::sync::Arc;

use ergon::{
    InMemoryExecutionLog, PostgresOptions, RedisOptions,
    storage::{Clock, Durability, Limits, SqliteOptions, SystemClock},
};
use ergon_test_servers::{Postgres, Redis, fresh_name};
use tempfile::TempDir;

use crate::FaultyLog;

/// Where a test keeps its log.
#[derive(Debug)]
pub struct Place(Kind);

#[derive(Debug)]
enum Kind {
    Memory,
    File(TempDir),
    Redis,
    Postgres,
}

impl Place {
    /// In memory.
    #[must_use]
    pub fn memory() -> Self {
        Self(Kind::Memory)
    }

    /// In a file of its own.
    ///
    /// # Panics
    ///
    /// When no directory can be made for it.
    #[must_use]
    pub fn sqlite() -> Self {
        Self(Kind::File(TempDir::new().expect("a directory")))
    }

    /// On the Redis server of this process, by itself.
    #[must_use]
    pub fn redis() -> Self {
        Self(Kind::Redis)
    }

    /// On the PostgreSQL server of this process, by itself.
    #[must_use]
    pub fn postgres() -> Self {
        Self(Kind::Postgres)
    }

    /// True for a file.
    pub fn is_file(&self) -> bool {
        matches!(self.0, Kind::File(_))
    }

    /// True for a server, where all takes longer.
    pub fn is_server(&self) -> bool {
        matches!(self.0, Kind::Redis | Kind::Postgres)
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
        match &self.0 {
            Kind::Memory => FaultyLog::new(InMemoryExecutionLog::new().with_clock(clock).with_limits(limits)),
            Kind::File(directory) => {
                // What a power cut takes is not what these tests are about.
                let options = SqliteOptions::new(directory.path().join("log.db")).durability(Durability::Normal);
                FaultyLog::new(options.clock(clock).limits(limits).open().await.expect("a log in a file"))
            }
            Kind::Redis => {
                let server = Redis::shared();
                let options = RedisOptions::new(server.url()).namespace(server.fresh_prefix());
                FaultyLog::new(options.clock(clock).limits(limits).connect().await.expect("a log on Redis"))
            }
            Kind::Postgres => {
                let options = PostgresOptions::new(Postgres::shared().url()).schema(fresh_name());
                FaultyLog::new(options.clock(clock).limits(limits).connect().await.expect("a log on PostgreSQL"))
            }
        }
    }
}
