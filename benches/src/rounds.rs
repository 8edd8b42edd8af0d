//! Running rounds, each in a process of its own, in turn.

use std::{
    collections::HashMap,
    env,
    error::Error,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    case::{Case, System},
    measure::Measure,
    report::Row,
    stats::Summary,
    work,
};

/// How long a round may take before it is given up.
const ROUND_MAX: Duration = Duration::from_secs(15 * 60);

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) cases: Vec<Case>,
    pub(crate) rounds: u32,
    /// On the disk that is measured.
    pub(crate) dir: PathBuf,
}

impl Plan {
    /// Runs everything; the rows, and how many rounds failed.
    pub(crate) fn run(&self) -> Result<(Vec<Row>, usize), Box<dyn Error>> {
        fs::create_dir_all(&self.dir)?;
        let mut rows = Vec::new();
        let mut failures = 0;
        for cases in self.cases.chunk_by(|a, b| a.work == b.work) {
            let mut figures = Figures::default();
            for round in 1..=self.rounds {
                for case in cases {
                    eprint!("{case}, round {round} of {} … ", self.rounds);
                    let start = Instant::now();
                    match self.round(case) {
                        Ok(measures) => {
                            eprintln!("{:.1} s", start.elapsed().as_secs_f64());
                            figures.add(*case, measures);
                        }
                        Err(error) => {
                            eprintln!("failed: {error}");
                            failures += 1;
                        }
                    }
                }
            }
            rows.extend(figures.rows());
        }
        Ok((rows, failures))
    }

    fn round(&self, case: &Case) -> Result<Vec<Measure>, Box<dyn Error>> {
        let dir = tempfile::Builder::new().prefix("round-").tempdir_in(&self.dir)?;
        let mut command = Command::new(program(case.system)?);
        command.arg("round").args(arguments(case)).arg("--dir").arg(dir.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        // What a round prints is far less than what a pipe holds.
        let status = wait(&mut child, ROUND_MAX)?;
        let mut printed = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut printed)?;
        }
        if !status.success() {
            return Err(format!("it ended with {status}").into());
        }
        Ok(serde_json::from_str(&printed)?)
    }
}

/// The program that runs the rounds of a system. It is given `round`, the fields of a [`Case`] and an empty folder as
/// `--dir`, and prints a JSON list of [`Measure`]s.
pub(crate) fn program(system: System) -> io::Result<PathBuf> {
    match system {
        System::Ergon | System::Raw => env::current_exe(),
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

/// One round, in this process.
pub(crate) fn one(case: &Case, dir: &Path) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measures = runtime.block_on(work::round(case, dir)).map_err(|error| error.to_string())?;
    println!("{}", serde_json::to_string(&measures)?);
    Ok(())
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
