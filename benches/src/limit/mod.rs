//! The limit that a backend sets: the rows that ergon writes, the same group commit, and nothing else.
//!
//! It decides nothing: no lanes, no due flows to look for (who runs a flow knows its number), no history to read, no
//! mailbox, no values to encode.

mod lanes;
mod postgres;
mod redis;
mod sqlite;

use std::time::SystemTime;

use ergon_bench_round::{Backend, Failure, Round};

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Write {
    /// These flows, with their inputs.
    Enqueue { first: i64, count: i64 },
    /// That a worker has this flow; reads its input.
    Claim { flow: i64 },
    /// The outcome of a step.
    Step { flow: i64, seq: i64 },
    /// The outcome of the last step, and the end.
    End { flow: i64, seq: i64 },
}

/// A backend's driver in a harness. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) enum Limit {
    Sqlite(sqlite::Writer),
    Server(lanes::Inbox),
}

impl Limit {
    pub(crate) async fn start(round: &Round) -> Result<Self, Failure> {
        match round.case.backend {
            Backend::Sqlite => Ok(Self::Sqlite(sqlite::Writer::start(round)?)),
            Backend::Redis => Ok(Self::Server(redis::start(round).await?)),
            Backend::Postgres => Ok(Self::Server(postgres::start(round).await?)),
            Backend::Memory => round.refusal(),
        }
    }

    /// Writes this and waits until it is as durable as the case says.
    pub(crate) async fn write(&self, write: Write) -> Result<(), Failure> {
        match self {
            Self::Sqlite(writer) => writer.write(write).await,
            Self::Server(inbox) => inbox.write(write).await,
        }
    }

    /// Closes it, when there is no other clone left, and awaits its end.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        match self {
            Self::Sqlite(writer) => writer.close().await,
            Self::Server(_) => Ok(()),
        }
    }
}

/// There is no log here whose clock to ask.
#[allow(clippy::disallowed_methods)]
fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}
