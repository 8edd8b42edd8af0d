//! The logs that ergon is measured on.

use ergon::{
    InMemoryExecutionLog, PostgresExecutionLog, RedisExecutionLog, Scheduler, SqliteExecutionLog, Worker,
    storage::{self, ExecutionLog, SqliteOptions},
};
use ergon_bench_round::{Backend, Durability, Failure, Round};

/// An open log.
#[derive(Debug, Clone)]
pub(crate) enum Log {
    Memory(InMemoryExecutionLog),
    Sqlite(SqliteExecutionLog),
    Redis(RedisExecutionLog),
    Postgres(PostgresExecutionLog),
}

impl Log {
    /// Opens the log of a round, or makes it.
    pub(crate) async fn open(round: &Round) -> Result<Self, Failure> {
        match (round.case.backend, round.case.durability) {
            (Backend::Memory, _) => Ok(Self::Memory(InMemoryExecutionLog::new())),
            (Backend::Sqlite, durability) => {
                let durability = match durability {
                    Durability::Full => storage::Durability::Full,
                    Durability::Normal => storage::Durability::Normal,
                    Durability::None => return round.refusal(),
                };
                Ok(Self::Sqlite(SqliteOptions::new(round.dir.join("log.db")).durability(durability).open().await?))
            }
            // The server was started with the durability.
            (Backend::Redis, _) => Ok(Self::Redis(RedisExecutionLog::connect(round.server()?).await?)),
            (Backend::Postgres, _) => Ok(Self::Postgres(PostgresExecutionLog::connect(round.server()?).await?)),
        }
    }

    /// Closes the log and opens it again, as another process would; one in memory stays.
    pub(crate) async fn reopen(self, round: &Round) -> Result<Self, Failure> {
        match self {
            Self::Memory(_) => Ok(self),
            log => {
                drop(log);
                Self::open(round).await
            }
        }
    }

    pub(crate) fn scheduler(&self) -> Scheduler {
        match self {
            Self::Memory(log) => Scheduler::new(log.clone()),
            Self::Sqlite(log) => Scheduler::new(log.clone()),
            Self::Redis(log) => Scheduler::new(log.clone()),
            Self::Postgres(log) => Scheduler::new(log.clone()),
        }
    }

    pub(crate) fn worker(&self) -> Worker {
        match self {
            Self::Memory(log) => Worker::new(log.clone()),
            Self::Sqlite(log) => Worker::new(log.clone()),
            Self::Redis(log) => Worker::new(log.clone()),
            Self::Postgres(log) => Worker::new(log.clone()),
        }
    }

    pub(crate) fn as_log(&self) -> &dyn ExecutionLog {
        match self {
            Self::Memory(log) => log,
            Self::Sqlite(log) => log,
            Self::Redis(log) => log,
            Self::Postgres(log) => log,
        }
    }
}
