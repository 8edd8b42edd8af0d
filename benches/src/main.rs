//! The benchmark: `cargo xtask bench`.
//!
//! A [`Case`] is one work on one system, backend and durability. Each of its rounds runs in a process of
//! its own (so that the processor time and the memory it uses are the round's alone), and the rounds of the cases
//! of a work take turns, A B A B …, so that a disturbance meets all of them. [`cases`] lists the cases, [`work`] holds
//! the works, [`limit`] the raw limit that ergon is compared with, [`peers`] builds the programs of the other systems,
//! [`servers`] the databases, [`rounds`] runs the processes, [`report`], [`plots`] and [`record`] make tables and pictures of what they print.
//! [`counted`] is what the guard in CI counts instructions of.

mod cases;
mod counted;
mod limit;
mod log;
mod peers;
mod plots;
mod record;
mod report;
mod rounds;
mod servers;
mod work;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use ergon_bench_round::{Backend, Case, Failure, Round, System, Work};

use crate::{cases::Scale, rounds::Plan};

/// Measures ergon, the limit that the backend itself sets, and the peers.
///
/// Prints tables and writes target/bench/results.json and target/bench/plots/*.svg.
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
    /// Only these systems; a peer's program is built the first time that it is asked for.
    #[arg(long, value_enum, value_delimiter = ',')]
    systems: Vec<System>,
    /// Only these backends.
    #[arg(long, value_enum, value_delimiter = ',')]
    backends: Vec<Backend>,
    /// How many rounds; 5 by default, 3 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Where the databases and the results are written: the disk that is measured.
    #[arg(long, default_value_os_t = repository().join("target/bench"))]
    dir: PathBuf,
    /// Also writes the tables into benches/README.md and the plots into benches/plots.
    #[arg(long)]
    record: bool,
    /// Only says which rounds would run.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One round of one case, in this process; prints what it measured.
    #[command(hide = true)]
    Round(Round),
    /// Does something so many times, for its instructions to be counted.
    #[command(hide = true)]
    Counted {
        #[arg(value_enum)]
        what: counted::Counted,
        size: usize,
    },
}

/// The repository's root.
fn repository() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Some(Command::Round(round)) => round.run(work::round),
        Some(Command::Counted { what, size }) => counted::run(*what, *size),
        None => measure(&cli),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<(), Failure> {
    let scale = if cli.quick { Scale::Quick } else { Scale::Full };
    let wanted = |case: &Case| {
        (cli.works.is_empty() || cli.works.contains(&case.work))
            && (cli.systems.is_empty() || cli.systems.contains(&case.system))
            && (cli.backends.is_empty() || cli.backends.contains(&case.backend))
    };
    let cases: Vec<Case> = cases::cases(scale).into_iter().filter(wanted).collect();
    if cases.is_empty() {
        return Err("no case has such a work, system and backend".into());
    }
    if cli.list {
        for case in &cases {
            println!("{case}, size {}", case.size);
        }
        return Ok(());
    }
    let plan = Plan { cases, rounds: cli.rounds.unwrap_or(scale.rounds()), dir: cli.dir.clone() };
    let outcome = plan.run()?;
    let results = cli.dir.join("results.json");
    fs::write(&results, serde_json::to_string_pretty(&outcome.rows)?)?;
    let tables = report::tables(&outcome.rows);
    print!("{tables}");
    let plots = plots::draw(&outcome.rows)?;
    plots::write(&plots, &cli.dir.join("plots"))?;
    if cli.record {
        record::figures(scale, plan.rounds, &tables, &report::by_log(&outcome.rows), &plots)?;
    }
    eprintln!("\nwritten to {}", results.display());
    for missing in &outcome.missing {
        eprintln!("missing: {missing}");
    }
    match outcome.failures {
        0 => Ok(()),
        failures => Err(format!("{failures} rounds failed; their figures are missing").into()),
    }
}
