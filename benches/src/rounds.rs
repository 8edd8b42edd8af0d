//! Running rounds, each in a process of its own, in turn.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ergon_bench_round::{Case, Failure, Measure, Summary, Work};

use crate::{peers::Programs, report::Row, servers::Servers};

/// How long a round may take before it is given up.
const ROUND_MAX: Duration = Duration::from_secs(15 * 60);
/// How long a peer's round may take; their sizes are such that most take a few seconds.
const PEER_ROUND_MAX: Duration = Duration::from_secs(120);

/// How often the sleepers are done at most: their rounds take the better part of a minute each, by the clock.
const SLEEPERS_ROUNDS_MAX: u32 = 3;

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) cases: Vec<Case>,
    pub(crate) rounds: u32,
    /// On the disk that is measured.
    pub(crate) dir: PathBuf,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    /// Rounds of ours, or of the limit, that have no figures.
    pub(crate) failures: usize,
    /// What is missing of the peers, in words.
    pub(crate) missing: Vec<String>,
}

impl Plan {
    /// Runs everything.
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        fs::create_dir_all(&self.dir)?;
        let mut outcome = Outcome::default();
        // Before the first round: nothing is measured beside a compiler.
        let programs = Programs::build(self.cases.iter().map(|case| case.system))?;
        let mut servers = Servers::default();
        outcome
            .missing
            .extend(programs.missing().map(|package| format!("the peer {package}, which could not be built")));
        for cases in self.cases.chunk_by(|a, b| a.work == b.work) {
            let mut figures = Figures::default();
            // A peer that has failed once is not waited for again.
            let mut given_up = HashSet::new();
            let rounds = match cases[0].work {
                Work::Sleepers => self.rounds.min(SLEEPERS_ROUNDS_MAX),
                _ => self.rounds,
            };
            for round in 1..=rounds {
                for case in cases {
                    let Some(program) = programs.find(case.system).filter(|_| !given_up.contains(case)) else {
                        continue;
                    };
                    eprint!("{case}, round {round} of {rounds} … ");
                    let start = Instant::now();
                    match self.round(case, program, &mut servers) {
                        Ok(measures) => {
                            eprintln!("{:.1} s", start.elapsed().as_secs_f64());
                            figures.add(*case, measures);
                        }
                        Err(error) if case.system.is_peer() => {
                            eprintln!("failed: {error}");
                            outcome.missing.push(format!("{case} with {} flows: {error}", case.size));
                            given_up.insert(*case);
                        }
                        Err(error) => {
                            eprintln!("failed: {error}");
                            outcome.failures += 1;
                        }
                    }
                }
            }
            outcome.rows.extend(figures.rows());
        }
        Ok(outcome)
    }

    fn round(&self, case: &Case, program: &Path, servers: &mut Servers) -> Result<Vec<Measure>, Failure> {
        let database = servers.database(case.backend, case.durability)?;
        let dir = tempfile::Builder::new().prefix("round-").tempdir_in(&self.dir)?;
        let mut command = Command::new(program);
        command.arg("round").args(arguments(case)).arg("--dir").arg(dir.path());
        command.args(database.iter().map(|database| format!("--server={}", database.url())));
        // Some peers log much, and to where their figures go.
        let mut child = command.env("RUST_LOG", "off").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        // What a round prints is far less than what a pipe holds.
        let status = wait(&mut child, if case.system.is_peer() { PEER_ROUND_MAX } else { ROUND_MAX })?;
        let mut printed = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut printed)?;
        }
        if !status.success() {
            return Err(format!("it ended with {status}").into());
        }
        let figures = printed.lines().last().ok_or("it has printed nothing")?;
        Ok(serde_json::from_str(figures)?)
    }
}

fn arguments(case: &Case) -> Vec<String> {
    let Case { work, system, backend, durability, concurrency, size } = case;
    vec![
        format!("--work={work}"),
        format!("--system={system}"),
        format!("--backend={backend}"),
        format!("--durability={durability}"),
        format!("--concurrency={concurrency}"),
        format!("--size={size}"),
    ]
}

fn wait(child: &mut Child, limit: Duration) -> io::Result<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("it did not end within {limit:?}")));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The figures of all rounds, in the order in which they first came.
#[derive(Debug, Default)]
struct Figures {
    order: Vec<(Case, String, String)>,
    values: HashMap<(Case, String, String), Vec<f64>>,
}

impl Figures {
    fn add(&mut self, case: Case, measures: Vec<Measure>) {
        for Measure { metric, unit, value } in measures {
            let key = (case, metric, unit);
            let values = self.values.entry(key.clone()).or_default();
            if values.is_empty() {
                self.order.push(key);
            }
            values.push(value);
        }
    }

    fn rows(self) -> impl Iterator<Item = Row> {
        let Self { order, values } = self;
        order.into_iter().filter_map(move |key| {
            let summary = Summary::of(values.get(&key)?)?;
            let (case, metric, unit) = key;
            Some(Row::new(&case, metric, unit, summary))
        })
    }
}
