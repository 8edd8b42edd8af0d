//! Several worker processes on one file: they share the flows, one is killed, the others take over what it had.
//!
//! ```text
//! cargo run --example workers
//! ```
//!
//! One sees which worker ran how much, and for each flow that the killed worker left behind which of its steps
//! were done by whom: what was recorded before the kill stays, the rest is done by another.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    process::{Child, Command, Stdio},
};

use ergon::{Entry, FlowState, prelude::*};

const WORKERS: [&str; 3] = ["ann", "bob", "cleo"];
const VICTIM: usize = 1;
const FLOWS: u32 = 60;

/// A flow whose result says who did which part of it.
#[flow_type]
struct Parcel {
    number: u32,
}

#[flow_type]
impl Parcel {
    #[flow]
    async fn run(&self) -> ergon::Result<Vec<String>> {
        Ok(vec![self.pack().await?, self.weigh().await?, self.send().await?])
    }

    #[step]
    async fn pack(&self) -> ergon::Result<String> {
        self.handle().await
    }

    #[step]
    async fn weigh(&self) -> ergon::Result<String> {
        self.handle().await
    }

    #[step]
    async fn send(&self) -> ergon::Result<String> {
        self.handle().await
    }
}

impl Parcel {
    /// Takes a while, and says who did it.
    async fn handle(&self) -> ergon::Result<String> {
        tokio::time::sleep(Duration::from_millis(40 + 20 * u64::from(self.number % 5))).await;
        Ok(state::<Name>().0.clone())
    }
}

/// The name of the worker.
struct Name(String);

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next(), args.next(), args.next()) {
        (None, ..) => supervise().await,
        (Some(word), Some(file), Some(name)) if word == "worker" => work(&file, name).await,
        _ => Err(ergon::Error::new("this example takes no arguments")),
    }
}

/// A worker process: works until it is killed, or until the process that started it closes its input.
async fn work(file: &str, name: String) -> ergon::Result<()> {
    let worker = Worker::new(SqliteExecutionLog::open(file).await?)
        .register::<Parcel>()
        .name(&*name)
        .with_state(Name(name))
        .slots(4)
        .lease(Duration::from_millis(500)) // how soon others take over when this process dies
        .start()
        .await?;
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    worker.shutdown().await;
    Ok(())
}

fn start_worker(file: &Path, name: &str) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).arg("worker").arg(file).arg(name).stdin(Stdio::piped()).spawn()
}

async fn supervise() -> ergon::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("parcels.db");
    let scheduler = Scheduler::new(SqliteExecutionLog::open(&file).await?);

    // This process only schedules and waits; it hears of what the others do through the file.
    let flows = (1..=FLOWS).map(|number| Entry::new(Parcel { number }).id(format!("parcel-{number}")));
    let flows = scheduler.schedule_all(flows).await?;
    let mut workers = WORKERS.iter().map(|name| start_worker(&file, name)).collect::<io::Result<Vec<_>>>()?;
    println!("{FLOWS} flows, {} worker processes: {}", workers.len(), WORKERS.join(", "));

    // Kill one in the middle of its work. Nobody takes its flows over before it is dead.
    let victim = WORKERS[VICTIM];
    flows[FLOWS as usize / 3].result().await?;
    let mut left = BTreeSet::new();
    while left.is_empty() {
        for flow in &flows {
            let now = flow.status().await?;
            if now.state == FlowState::Running && now.worker.as_deref() == Some(victim) {
                left.insert(flow.id().clone());
            }
        }
    }
    workers[VICTIM].kill()?;
    workers[VICTIM].wait()?;
    // What it has ended since then.
    for flow in &flows {
        let now = flow.status().await?;
        if now.state.is_final() && now.worker.as_deref() == Some(victim) {
            left.remove(flow.id());
        }
    }
    println!("{victim} was killed (SIGKILL) with {} flows in its hands\n", left.len());

    let mut steps: BTreeMap<String, u32> = BTreeMap::new();
    for flow in &flows {
        let [pack, weigh, send] = <[String; 3]>::try_from(flow.result().await?).unwrap_or_default();
        if left.contains(flow.id()) {
            println!("{:>10}: packed by {pack:<5} weighed by {weigh:<5} sent by {send}", flow.id());
        }
        for name in [pack, weigh, send] {
            *steps.entry(name).or_default() += 1;
        }
    }
    println!();
    for (name, steps) in &steps {
        println!("{name:>5} ran {steps:>3} steps");
    }
    println!("all {FLOWS} flows completed, {} of them taken over from {victim}", left.len());

    // Closing their input lets the others end by themselves.
    for mut worker in workers {
        drop(worker.stdin.take());
        worker.wait()?;
    }
    Ok(())
}
