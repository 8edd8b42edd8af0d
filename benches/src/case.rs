//! What is measured on what.

use std::fmt;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    /// Many flows of 5 steps, enqueued in batches, then worked off.
    Drain,
    /// One flow of 5 steps at a time, on an idle worker, from scheduling to its result.
    Alone,
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
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    /// This project.
    Ergon,
    /// The backend's own driver with the same rows and the same group commit, and no engine.
    Raw,
}

/// Where it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// In memory.
    Memory,
    /// In an SQLite file.
    Sqlite,
}

/// What of it survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// Nothing.
    None,
    /// Everything that was acknowledged.
    Full,
    /// Everything but the latest moments.
    Normal,
}

/// One line of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Args, Serialize)]
pub(crate) struct Case {
    #[arg(long, value_enum)]
    pub(crate) work: Work,
    #[arg(long, value_enum)]
    pub(crate) system: System,
    #[arg(long, value_enum)]
    pub(crate) backend: Backend,
    #[arg(long, value_enum)]
    pub(crate) durability: Durability,
    /// How many flows, tasks or senders are under way at once.
    #[arg(long)]
    pub(crate) concurrency: usize,
    /// How much is done in a round; of what, the work says.
    #[arg(long)]
    pub(crate) size: usize,
}

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Quick,
    Full,
}

impl Scale {
    pub(crate) const fn rounds(self) -> u32 {
        match self {
            Self::Quick => 3,
            Self::Full => 5,
        }
    }

    /// One of two sizes.
    pub(crate) const fn pick(self, quick: usize, full: usize) -> usize {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
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
