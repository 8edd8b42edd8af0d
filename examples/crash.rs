//! Crashes: a worker process is killed (SIGKILL) at random instants, again and again, and no work is lost or
//! done twice.
//!
//! ```text
//! cargo run --example crash
//! ```
//!
//! One sees each kill with how far the flows were, then the proof. Every body of a step writes a line into an
//! append-only file before it does anything else, and what it returns names that line. So the file tells what
//! ran, the log tells what was recorded, and a line behind the recorded one would be a body that ran although its
//! outcome was known. The exit code is 1 if there is one.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use ergon::{
    FlowState, History,
    prelude::*,
    storage::{CallKind, Filter},
};
use serde::{Deserialize, Serialize};

const FLOWS: u32 = 150;
const KILLS: u32 = 12;
const STEPS_PER_FLOW: usize = 8;

/// A flow with everything in it that may be cut off: steps one after another, steps at once, a timer.
#[flow_type]
struct Journey {
    number: u32,
}

/// The outcome of each step: which call it was, and which run of its body this outcome comes from.
#[derive(Serialize, Deserialize)]
struct Stamp {
    call: String,
    run: String,
}

#[flow_type]
impl Journey {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        for leg in 0..3 {
            self.travel(leg).await?;
        }
        sleep(Duration::from_millis(80)).await;
        tokio::try_join!(self.visit("museum"), self.visit("market"), self.visit("market"))?;
        for leg in 3..5 {
            self.travel(leg).await?;
        }
        Ok(())
    }

    #[step]
    async fn travel(&self, leg: u32) -> ergon::Result<Stamp> {
        work(&format!("leg {leg}")).await
    }

    #[step]
    async fn visit(&self, place: &str) -> ergon::Result<Stamp> {
        work(place).await
    }
}

/// Says in the file that it runs, then works for a while.
async fn work(what: &str) -> ergon::Result<Stamp> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let stamp = Stamp {
        call: idempotency_key(), // names the call, whichever process runs it
        run: format!("{}.{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed)),
    };
    let line = format!("{} {} {what} of flow {}\n", stamp.call, stamp.run, flow_id());
    state::<File>().as_ref().write_all(line.as_bytes())?;
    tokio::time::sleep(Duration::from_millis(rand::random_range(2..40))).await;
    Ok(stamp)
}

#[tokio::main]
async fn main() -> ergon::Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (None, _) => supervise().await,
        (Some(word), Some(folder)) if word == "worker" => work_in(folder.as_ref()).await,
        _ => Err(ergon::Error::new("this example takes no arguments")),
    }
}

/// The worker process: works until it is killed, or until the process that started it is gone.
async fn work_in(folder: &Path) -> ergon::Result<ExitCode> {
    let log = SqliteExecutionLog::open(folder.join("journeys.db")).await?;
    let runs = OpenOptions::new().append(true).create(true).open(folder.join("runs.txt"))?;
    let _worker = Worker::new(log)
        .register::<Journey>()
        .with_state(runs)
        .slots(8)
        .lease(Duration::from_millis(300)) // how long a worker that stands still keeps its flows; one that was killed is known to be dead
        .start()
        .await?;
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    Ok(ExitCode::SUCCESS)
}

fn start_worker(folder: &Path) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).arg("worker").arg(folder).stdin(Stdio::piped()).spawn()
}

async fn supervise() -> ergon::Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let log = SqliteExecutionLog::open(folder.path().join("journeys.db")).await?;
    let scheduler = Scheduler::new(log);
    let flows = scheduler.schedule_all((0..FLOWS).map(|number| Journey { number })).await?;

    let mut worker = start_worker(folder.path())?;
    let mut kills = 0;
    while kills < KILLS {
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..500))).await;
        worker.kill()?; // SIGKILL: the process gets no chance to do anything
        worker.wait()?;
        kills += 1;
        let [done, cut_off] = count(&scheduler).await?;
        println!("kill {kills:>2}: {done:>3} of {FLOWS} flows completed, {cut_off:>2} cut off while they ran");
        worker = start_worker(folder.path())?;
        if done == flows.len() {
            break;
        }
    }
    for flow in &flows {
        flow.result().await?;
    }
    worker.kill()?;
    worker.wait()?;

    let mut histories = Vec::new();
    for flow in &flows {
        histories.push(flow.history().await?);
    }
    let runs = fs::read_to_string(folder.path().join("runs.txt"))?;
    let violations = report(kills, &runs, &histories)?;
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many flows are completed, and how many are marked as running.
async fn count(scheduler: &Scheduler) -> ergon::Result<[usize; 2]> {
    let flows = scheduler.log().list(&Filter::all(), None, FLOWS as usize).await?.flows;
    Ok([FlowState::Completed, FlowState::Running].map(|state| flows.iter().filter(|flow| flow.state == state).count()))
}

/// Compares what ran with what was recorded. Returns how often the promise was broken.
fn report(kills: u32, runs: &str, histories: &[History]) -> ergon::Result<usize> {
    // The runs of each call, in the order in which they began.
    let mut bodies: HashMap<&str, Vec<&str>> = HashMap::new();
    for line in runs.lines() {
        let mut words = line.split(' ');
        let (call, run) = words.next().zip(words.next()).ok_or_else(|| ergon::Error::new("a line is cut off"))?;
        bodies.entry(call).or_default().push(run);
    }
    let started: usize = bodies.values().map(Vec::len).sum();

    let mut violations = Vec::new();
    let mut outcomes = 0;
    let mut again = 0;
    for history in histories {
        let id = &history.info.id;
        let steps = history.records.iter().filter(|record| record.kind == CallKind::Step && record.phase.is_outcome());
        let mut steps_ended = 0;
        for record in steps {
            steps_ended += 1;
            let stamp: Stamp = serde_json::from_slice(&record.payload)?;
            let call = format!("{} of flow {id}", record.name);
            // Taken out, so that a second outcome of the same call finds nothing.
            match bodies.remove(&*stamp.call) {
                None => violations.push(format!("{call}: recorded twice, or never ran")),
                Some(runs) => {
                    again += runs.len() - 1;
                    if runs.last() != Some(&&*stamp.run) {
                        violations.push(format!("{call}: ran again after {} was recorded: {runs:?}", stamp.run));
                    }
                }
            }
        }
        outcomes += steps_ended;
        if history.info.state != FlowState::Completed || steps_ended != STEPS_PER_FLOW {
            violations.push(format!("flow {id}: {} with {steps_ended} outcomes", history.info.state));
        }
    }
    violations.extend(bodies.into_keys().map(|call| format!("call {call}: ran and was never recorded")));

    println!();
    println!("flows completed          {:>6}", histories.len());
    println!("processes killed         {kills:>6}");
    println!("step outcomes recorded   {outcomes:>6}");
    println!("step bodies run          {started:>6}");
    println!("  of these a second time {again:>6}   (cut off before their outcome was recorded)");
    println!("violations               {:>6}   (bodies run after their outcome was recorded)", violations.len());
    for violation in &violations {
        println!("  {violation}");
    }
    Ok(violations.len())
}
