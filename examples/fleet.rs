//! A fleet: workers wherever they are, on one log that a URL names. Run each line in a terminal of its own, the first
//! one as often as you like, on any machine that reaches the log:
//!
//! ```text
//! cargo run --example fleet -- work
//! cargo run --example fleet -- send 1000
//! cargo run --example fleet -- status
//! ```
//!
//! The log is the file `fleet.db` unless `--log URL` or the variable `ERGON_LOG` says otherwise: `redis://HOST` and
//! `postgres://USER:PASSWORD@HOST/DATABASE` are for several machines. Stop a worker with Ctrl-C and it gives back what it
//! was doing; kill it, and others take over when its leases end.

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use clap::{Parser, Subcommand};
use ergon::{Admin, Entry, Filter, prelude::*};

#[derive(Parser)]
#[command(about = "Workers on one log, and something to do for them")]
struct Args {
    /// Where the log is: a file, or a Redis or PostgreSQL server.
    #[arg(long, global = true, env = "ERGON_LOG", default_value = "sqlite:fleet.db", value_name = "URL")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run flows until Ctrl-C.
    Work {
        /// What to call this worker; its process number, unless said.
        #[arg(long)]
        name: Option<String>,
        /// How many flows to run at once.
        #[arg(long, default_value_t = 64)]
        slots: usize,
        /// How many seconds after its death others take over what it was doing.
        #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
        lease: f64,
    },
    /// Schedule flows, wait until all are done, and say who ran how much.
    Send {
        /// How many flows.
        count: u32,
        /// A name for this batch: the same batch is not sent twice.
        #[arg(long, default_value = "parcel")]
        batch: String,
    },
    /// Explain one flow.
    Show {
        /// Its id.
        id: FlowId,
    },
    /// Count the flows, and tell what needs a person.
    Status {
        /// Of this batch alone.
        #[arg(long)]
        batch: Option<String>,
    },
}

/// A flow whose result says who did which part of it.
#[flow_type]
struct Parcel {
    number: u32,
}

#[flow_type]
impl Parcel {
    #[flow]
    async fn run(&self) -> ergon::Result<Vec<String>> {
        let packed = self.pack().await?;
        let weighed = self.weigh().await?;
        sleep(Duration::from_millis(20)).await; // until it is fetched
        Ok(vec![packed, weighed, self.send().await?])
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
    /// Takes a moment, and says who did it.
    async fn handle(&self) -> ergon::Result<String> {
        tokio::time::sleep(Duration::from_millis(u64::from(self.number % 10))).await;
        Ok(state::<Name>().0.clone())
    }
}

/// The name of the worker.
struct Name(String);

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> ergon::Result<()> {
    let log = ergon::open(&args.log).await?;
    match args.command {
        Command::Work { name, slots, lease } => {
            let name = name.unwrap_or_else(|| std::process::id().to_string());
            let lease = Duration::try_from_secs_f64(lease)?;
            let worker = Worker::new(log).register::<Parcel>().name(&*name).with_state(Name(name.clone()));
            let worker = worker.slots(slots).lease(lease).start().await?;
            println!("{name} works; Ctrl-C stops it");
            asked_to_stop().await?;
            worker.shutdown().await;
            println!("{name} has given back what it was doing");
            Ok(())
        }
        Command::Send { count, batch } => send(&Scheduler::new(log), count, &batch).await,
        Command::Show { id } => {
            println!("{}", Admin::new(log).describe(&id).await?);
            Ok(())
        }
        Command::Status { batch } => {
            let filter = batch.map_or_else(Filter::all, |batch| Filter::all().with_label("batch", batch));
            let admin = Admin::new(log);
            for count in admin.counts(&filter).await? {
                println!("{:>8} {} {}", count.flows, count.flow_type, count.state);
            }
            println!("{}", admin.attention(&filter, None, 20).await?);
            Ok(())
        }
    }
}

async fn send(scheduler: &Scheduler, count: u32, batch: &str) -> ergon::Result<()> {
    let begun = Instant::now();
    let flows =
        (1..=count).map(|number| Entry::new(Parcel { number }).id(format!("{batch}-{number}")).label("batch", batch));
    let flows = scheduler.schedule_all(flows).await?;
    let new = flows.iter().filter(|flow| !flow.existed()).count();
    println!("{new} flows are scheduled, {} were there", flows.len() - new);
    let mut steps: BTreeMap<String, u32> = BTreeMap::new();
    for flow in &flows {
        for name in flow.result().await? {
            *steps.entry(name).or_default() += 1;
        }
    }
    println!("all {count} are done after {:.1} s", begun.elapsed().as_secs_f64());
    for (name, steps) in steps {
        println!("{name:>10} ran {steps:>6} steps");
    }
    Ok(())
}

/// Returns upon Ctrl-C, or when the system asks the process to end, as it does before it takes the machine down.
async fn asked_to_stop() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            asked = tokio::signal::ctrl_c() => asked,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}
