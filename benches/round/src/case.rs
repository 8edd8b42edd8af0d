//! What is measured on what.

use std::fmt;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Many flows of 5 steps, enqueued in batches, then worked off.
    Drain,
    /// One flow of 5 steps at a time, on an idle worker, from scheduling to its result.
    Alone,
    /// The drain by how many flows are under way at once.
    Scaling,
    /// One flow that joins 1,000 steps, beside 1,000 flows of one step.
    Wide,
    /// One flow of 10,000 steps, live and replayed from cold.
    Long,
    /// Many flows that sleep and fall due over some seconds.
    Sleepers,
    /// From a signal to the step that waits for it, and to the result.
    Signals,
    /// Claiming while ever more flows wait.
    Backlog,
    /// The limit itself: steps per second that the backend records, by how many wait at once.
    Raw,
}

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// This project.
    Ergon,
    /// The backend's own driver with the same rows and the same group commit, and no engine.
    Raw,
    /// The crate `duroxide`, as it is set up by default.
    Duroxide,
    /// The crate `durare`, workflows started at once.
    Durare,
    /// The crate `durare`, workflows taken from its queue.
    DurareQueue,
    /// The crate `dbos`, workflows started at once.
    Dbos,
    /// The crate `dbos`, workflows taken from its queue.
    DbosQueue,
    /// The crate `effectum`: jobs with a checkpoint per step.
    Effectum,
    /// The crate `effectum` on a file that was set to WAL beforehand.
    EffectumWal,
    /// The crates `apalis` and `apalis-sqlite`: jobs, each of which counts as one step.
    Apalis,
}

/// Where it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// In memory.
    Memory,
    /// In an SQLite file.
    Sqlite,
    /// On a Redis server of its own.
    Redis,
    /// On a PostgreSQL server of its own.
    Postgres,
}

/// What of it survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Nothing is promised: memory, a Redis server that writes nothing, SQLite with `synchronous=OFF`.
    None,
    /// Everything that was acknowledged: SQLite FULL, Redis `appendfsync always`, PostgreSQL `synchronous_commit=on`.
    Full,
    /// Everything but the latest moments: SQLite NORMAL, Redis `appendfsync everysec`, PostgreSQL
    /// `synchronous_commit=off`.
    Normal,
}

/// One line of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Args, Serialize)]
pub struct Case {
    /// What is done.
    #[arg(long, value_enum)]
    pub work: Work,
    /// Who does it.
    #[arg(long, value_enum)]
    pub system: System,
    /// Where it is recorded.
    #[arg(long, value_enum)]
    pub backend: Backend,
    /// What survives a power cut.
    #[arg(long, value_enum)]
    pub durability: Durability,
    /// How many flows, tasks or senders are under way at once.
    #[arg(long)]
    pub concurrency: usize,
    /// How much is done in a round; of what, the work says.
    #[arg(long)]
    pub size: usize,
}

impl System {
    /// True for what is neither ours nor the limit.
    #[must_use]
    pub const fn is_peer(self) -> bool {
        !matches!(self, Self::Ergon | Self::Raw)
    }
}

/// The name that the command line and the results use.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

macro_rules! display_as_named {
    ($($name:ty),*) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&name(self))
            }
        })*
    };
}

display_as_named!(Work, System, Backend, Durability);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { work, system, backend, durability, concurrency, .. } = self;
        write!(f, "{work} {system} {backend} {durability} ×{concurrency}")
    }
}
