//! The benchmark: `cargo xtask bench`.
//!
//! A [`Case`] is one work on one system, backend and durability. Each of its rounds runs in a process of
//! its own (so that the processor time and the memory it uses are the round's alone), and the rounds of the cases
//! of a work take turns, A B A B …, so that a disturbance meets all of them. [`work`] holds the works, [`limit`]
//! the raw limit that ergon is compared with, [`rounds`] runs the processes, [`stats`] and [`report`] make tables
//! of what they print.
//!
//! A system that cannot be built into this program joins as another program that answers the same `round` command
//! with the same lines; see [`rounds::program`].

mod case;
mod limit;
mod log;
mod measure;
mod report;
mod rounds;
mod stats;
mod work;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    case::{Backend, Case, Scale, System, Work},
    rounds::Plan,
};

/// Measures ergon, and the limit that the backend itself sets.
///
/// Prints tables and writes target/bench/results.json.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench", args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to do; everything, when nothing is named.
    #[arg(value_enum, value_name = "WORK")]
    works: Vec<Work>,
    /// Smaller works and 3 rounds: for a look, not for the record.
    #[arg(long)]
    quick: bool,
    /// Only these systems.
    #[arg(long, value_enum, value_delimiter = ',')]
    systems: Vec<System>,
    /// Only these backends.
    #[arg(long, value_enum, value_delimiter = ',')]
    backends: Vec<Backend>,
    /// How many rounds; 5 by default, 3 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Where the databases and the results are written: the disk that is measured.
    #[arg(long, default_value_os_t = default_directory())]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One round of one case, in this process; prints what it measured.
    #[command(hide = true)]
    Round {
        #[command(flatten)]
        case: Case,
        /// An empty folder for the round's files.
        #[arg(long)]
        dir: PathBuf,
    },
}

fn default_directory() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).join("target/bench")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Some(Command::Round { case, dir }) => rounds::one(case, dir),
        None => measure_all(&cli),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_all(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let scale = if cli.quick { Scale::Quick } else { Scale::Full };
    let wanted = |case: &Case| {
        (cli.works.is_empty() || cli.works.contains(&case.work))
            && (cli.systems.is_empty() || cli.systems.contains(&case.system))
            && (cli.backends.is_empty() || cli.backends.contains(&case.backend))
    };
    let cases: Vec<Case> = work::cases(scale).into_iter().filter(wanted).collect();
    if cases.is_empty() {
        return Err("no case has such a work, system and backend".into());
    }
    let plan = Plan { cases, rounds: cli.rounds.unwrap_or(scale.rounds()), dir: cli.dir.clone() };
    let (rows, failures) = plan.run()?;
    let results = cli.dir.join("results.json");
    std::fs::write(&results, serde_json::to_string_pretty(&rows)?)?;
    print!("{}", report::tables(&rows));
    eprintln!("written to {}", results.display());
    if failures > 0 { Err(format!("{failures} rounds failed; their figures are missing").into()) } else { Ok(()) }
}
