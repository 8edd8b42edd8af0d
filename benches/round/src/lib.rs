//! What a round of the benchmark is asked and what it answers.
//!
//! A round is a process of its own: `round --work … --system … --backend … --durability … --concurrency … --size …
//! --dir …`, which does the [`Case`] once in that empty folder and prints a JSON list of [`Measure`]s. This crate is
//! all that the program which runs the rounds shares with those that answer them: each peer is a program with
//! dependencies of its own, and calls [`answer`].

mod case;
mod measure;
mod stats;
mod work;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

pub use crate::{
    case::{Backend, Case, Durability, System, Work},
    measure::{Measure, bytes_in, cpu, cpu_since, each, number, resident},
    stats::{Summary, Times},
    work::{Alone, BATCH, Drained, STEPS},
};

/// The allocator of every program that answers, whoever's flows it runs: the one of the C library gives memory to
/// threads in small pieces, and then measures that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why a round has no figures.
pub type Failure = Box<dyn Error + Send + Sync>;

/// One round: the case and the place.
#[derive(Debug, Clone, Args)]
pub struct Round {
    /// What is done.
    #[command(flatten)]
    pub case: Case,
    /// An empty folder for the round's files.
    #[arg(long)]
    pub dir: PathBuf,
    /// The address of an empty database, where the backend is a server.
    #[arg(long)]
    pub server: Option<String>,
}

impl Round {
    /// The round's database on a server.
    ///
    /// # Errors
    ///
    /// When the round was not told of one.
    pub fn server(&self) -> Result<&str, Failure> {
        self.server.as_deref().ok_or_else(|| format!("{} needs --server", self.case.backend).into())
    }

    /// What to answer to a case that the system cannot do.
    pub fn refusal<T>(&self) -> Result<T, Failure> {
        let Case { work, system, backend, durability, .. } = self.case;
        Err(format!("{system} does not do {work} on {backend} {durability}").into())
    }

    /// Does the round on a runtime of its own and prints its figures.
    ///
    /// # Errors
    ///
    /// When the round has no figures.
    pub fn run(&self, work: impl AsyncFnOnce(&Self) -> Result<Vec<Measure>, Failure>) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let measures = runtime.block_on(work(self))?;
        println!("{}", serde_json::to_string(&measures)?);
        // What a peer still has running in the background must not keep the round from ending.
        runtime.shutdown_background();
        Ok(())
    }
}

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One round of one case, in this process; prints what it measured.
    Round(Round),
}

/// The whole `main` of a peer's program.
pub fn answer(work: impl AsyncFnOnce(&Round) -> Result<Vec<Measure>, Failure>) -> ExitCode {
    let Command::Round(round) = Cli::parse().command;
    match round.run(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", round.case.system);
            ExitCode::FAILURE
        }
    }
}
