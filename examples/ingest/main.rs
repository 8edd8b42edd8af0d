//! A search index of a real folder tree, one durable flow per file.
//!
//! ```text
//! cargo run --release --example ingest -- index FOLDER --db FILE
//! cargo run --release --example ingest -- search WORDS --db FILE
//! cargo run --release --example ingest -- status --db FILE
//! ```
//!
//! `index` shows a progress bar. Stop it with Ctrl-C, or kill it in any other way, and give the same command
//! again: it goes on where it was, and the index is the same in the end, however often that happened (compare
//! `status --check`). Once done, it looks only at files that are new or changed. `search` lists the files that
//! hold all of the words, the best first.
//!
//! The flows are in FILE, the index is in a database of its own beside it, FILE.index.

mod file;
mod index;
mod plan;
mod report;
mod words;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use ergon::{Scheduler, SqliteExecutionLog, Worker, storage::SqliteOptions};
use tokio::sync::mpsc;

use crate::{
    file::IndexFile,
    index::{Index, IndexWriter},
    plan::Planned,
    report::{Flows, Progress, count, say},
};

/// How soon after a kill the next run takes over the files that were under way.
const LEASE: Duration = Duration::from_secs(2);
/// How many files are worked on at once; bounds the memory.
const SLOTS: usize = 64;

#[derive(Parser)]
#[command(about = "Indexes the words of a folder's files, durably")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings the index up to date with a folder, or goes on with it
    Index {
        folder: PathBuf,
        /// The file of the flows; the index is beside it, in FILE.index
        #[arg(long, value_name = "FILE")]
        db: PathBuf,
    },
    /// Lists the files that hold all of the words, the best first
    Search {
        #[arg(required = true)]
        words: Vec<String>,
        #[arg(long, value_name = "FILE")]
        db: PathBuf,
        /// How many files to list
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Says how many files are done, running, failed, and what is in the index
    Status {
        #[arg(long, value_name = "FILE")]
        db: PathBuf,
        /// Also prints a digest of the index: equal for equal indexes
        #[arg(long)]
        check: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Index { folder, db } => run_index(&folder, &db).await,
        Command::Search { words, db, limit } => search(&words, &db, limit),
        Command::Status { db, check } => status(&db, check).await,
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run_index(folder: &Path, db: &Path) -> ergon::Result<ExitCode> {
    let folder = fs::canonicalize(folder).map_err(|error| at(folder, &error))?;
    if !folder.is_dir() {
        return Err(at(&folder, &"not a folder"));
    }
    let started = Instant::now();
    let log = SqliteExecutionLog::open(db).await?;
    let index = index_of(db);
    let writer = IndexWriter::start(&index)?;
    let scheduler = Scheduler::new(log.clone());
    let before = report::retry_failed(&scheduler).await?;
    if before.open > 0 {
        say(format_args!("going on   {} still to be done from an earlier run", count(before.open)));
    }

    let worker = Worker::new(log)
        .register::<IndexFile>()
        .with_state(writer)
        .slots(SLOTS)
        .lease(LEASE)
        .start()
        .await
        .map_err(|error| ergon::Error::new(error.to_string()))?;
    let outcome = tokio::select! {
        outcome = feed(&scheduler, &folder, db, &index, before.open) => Some(outcome?),
        pressed = tokio::signal::ctrl_c() => {
            pressed?;
            None
        }
    };
    // Lets the steps that run end, and writes down what came of them.
    worker.shutdown().await;

    let flows = report::flows(&**scheduler.log()).await?;
    let Some((planned, done)) = outcome else {
        say(format_args!("stopped    {} still to be done: give the same command to go on", count(flows.open)));
        return Ok(ExitCode::from(130));
    };
    let reader = Index::open(&index)?;
    let gone = reader.forget_missing(&folder)?;
    report::print_run(&planned, done, gone, started.elapsed());
    report::print_index(&reader)?;
    report::print_failures(&scheduler, &flows).await?;
    Ok(if flows.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts the files on the queue, and waits until all are done. Returns how many these were.
async fn feed(
    scheduler: &Scheduler,
    folder: &Path,
    db: &Path,
    index: &Path,
    open_before: u64,
) -> ergon::Result<(Planned, u64)> {
    // A few batches at a time, so that the memory does not depend on the number of files.
    let (batches, mut planned) = mpsc::channel(4);
    let walk = tokio::task::spawn_blocking({
        let (folder, db, index) = (folder.to_owned(), fs::canonicalize(db)?, Index::open(index)?);
        move || plan::walk(&folder, &db, &index, &batches)
    });
    let progress = Progress::new();
    let mut total = open_before;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut walking = true;
    loop {
        tokio::select! {
            batch = planned.recv(), if walking => match batch {
                // Scheduling an id again, after a kill, finds the flow that is there.
                Some(batch) => {
                    let handles = scheduler.schedule_all(batch).await?;
                    total += handles.iter().filter(|handle| !handle.existed()).count() as u64;
                }
                None => walking = false,
            },
            _ = tick.tick() => {
                let Flows { open, .. } = report::flows(&**scheduler.log()).await?;
                progress.show(total.saturating_sub(open), total, walking);
                if !walking && open == 0 {
                    return Ok((walk.await??, total));
                }
            }
        }
    }
}

fn search(words: &[String], db: &Path, limit: usize) -> ergon::Result<ExitCode> {
    let index = Index::open_existing(db, &index_of(db))?;
    let terms: Vec<String> = words.iter().flat_map(|word| words::terms(word)).collect();
    if terms.is_empty() {
        return Err(ergon::Error::new("there is no word of two letters or digits to look for"));
    }
    let (hits, total) = index.search(&terms, limit)?;
    say(format_args!("found in {}: {}", count(total), terms.join(" ")));
    for path in hits {
        say(format_args!("  {path}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(db: &Path, check: bool) -> ergon::Result<ExitCode> {
    let index = Index::open_existing(db, &index_of(db))?;
    let log = SqliteOptions::new(db).create(false).open().await?;
    let flows = report::flows(&log).await?;
    report::print_flows(&log, &flows).await?;
    report::print_index(&index)?;
    if check {
        say(format_args!("digest     {}", index.digest()?));
    }
    report::print_failures(&Scheduler::new(log), &flows).await?;
    Ok(ExitCode::SUCCESS)
}

/// The index of a log: FILE.index.
fn index_of(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(".index");
    name.into()
}

/// An error about a file.
fn at(path: &Path, what: &dyn std::fmt::Display) -> ergon::Error {
    ergon::Error::new(format!("{}: {what}", path.display()))
}
