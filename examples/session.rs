//! A local file that several steps work on: a session keeps the flow on the worker that has the file. The worker is
//! killed; another one takes over, hears that the session is lost, and downloads again.
//!
//! Then a flow that has no session, and prefers the worker that ran it last, for what that one has in memory; and one that
//! insists on it: that worker is killed, and the flow waits until it is back.
//!
//! ```text
//! cargo run --example session
//! ```
//!
//! It takes twenty seconds: for so long a worker may be silent before it counts as gone.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use ergon::{Affinity, FlowState, Takeover, prelude::*, session_with};
use futures::StreamExt;

const LINES: u32 = 1_000;
const ROUNDS: u32 = 8;

#[flow_type]
struct Convert {
    name: String,
}

#[flow_type]
impl Convert {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        loop {
            let converted = session_with(Takeover::After(Duration::from_secs(15)), async || {
                let lines = self.download().await?;
                println!("  {lines} lines are on the disk");
                // However long it takes, the file is here when the flow goes on.
                signal::<()>("convert").await?;
                self.convert().await?;
                self.upload().await
            });
            match converted.await {
                Ok(uploaded) => return uploaded,
                Err(lost) => println!("  {lost}: download it again"),
            }
        }
    }

    #[step]
    async fn download(&self) -> ergon::Result<usize> {
        println!("  {} downloads {}", state::<Place>().name, self.name);
        let text = (1..=LINES).map(|line| format!("line {line}")).collect::<Vec<_>>().join("\n");
        fs::write(self.local("txt"), &text)?;
        Ok(text.lines().count())
    }

    #[step]
    async fn convert(&self) -> ergon::Result<()> {
        println!("  {} converts {}", state::<Place>().name, self.name);
        let text = fs::read_to_string(self.local("txt"))?;
        fs::write(self.local("out"), text.to_uppercase())?;
        Ok(())
    }

    #[step]
    async fn upload(&self) -> ergon::Result<String> {
        let text = fs::read_to_string(self.local("out"))?;
        Ok(format!(
            "{} lines, by {}, ending with {:?}",
            text.lines().count(),
            state::<Place>().name,
            text.lines().last()
        ))
    }

    /// A file on the machine of the worker.
    fn local(&self, kind: &str) -> PathBuf {
        state::<Place>().folder.join(&self.name).with_extension(kind)
    }
}

/// Says after each round who did it. Due again, it waits for that worker for five seconds before it goes anywhere.
#[flow(affinity(prefer = "5s"))]
async fn chat(rounds: u32) -> ergon::Result<BTreeSet<String>> {
    let mut workers = BTreeSet::new();
    for _ in 0..rounds {
        let worker = answer().await?;
        set_status(&worker)?;
        workers.insert(worker);
        // It is nowhere meanwhile.
        sleep(Duration::from_millis(200)).await;
    }
    Ok(workers)
}

#[step]
async fn answer() -> ergon::Result<String> {
    Ok(state::<Place>().name.clone())
}

/// What a worker has for itself: here a folder stands for a machine.
#[derive(Clone)]
struct Place {
    name: String,
    folder: PathBuf,
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let mut args = std::env::args().skip(1);
    match (args.next(), args.next(), args.next()) {
        (None, ..) => supervise().await,
        (Some(word), Some(folder), Some(name)) if word == "worker" => work(Path::new(&folder), name).await,
        _ => Err(ergon::Error::new("this example takes no arguments")),
    }
}

/// A worker process: works until it is killed, or until the process that started it closes its input.
async fn work(folder: &Path, name: String) -> ergon::Result<()> {
    let place = Place { folder: folder.join(&name), name };
    fs::create_dir_all(&place.folder)?;
    let worker = Worker::new(SqliteExecutionLog::open(folder.join("log.db")).await?)
        .register::<Convert>()
        .register::<chat>()
        .name(&*place.name) // what flows are bound to
        .with_state(place)
        .start()
        .await?;
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    worker.shutdown().await;
    Ok(())
}

fn start_worker(folder: &Path, name: &str) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).arg("worker").arg(folder).arg(name).stdin(Stdio::piped()).spawn()
}

async fn supervise() -> ergon::Result<()> {
    let folder = tempfile::tempdir()?;
    let scheduler = Scheduler::new(SqliteExecutionLog::open(folder.path().join("log.db")).await?);
    let mut ann = start_worker(folder.path(), "ann")?;
    let flow = scheduler.schedule(Convert { name: "film".into() }).await?;
    while flow.status().await?.state != FlowState::Suspended {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ann.kill()?;
    ann.wait()?;
    println!("ann was killed (SIGKILL), with the file on her disk; bob starts");
    let mut bob = start_worker(folder.path(), "bob")?;
    flow.signal("convert", &()).await?;

    // The first signal was taken by the session that was lost, or waits for the next one: another does no harm.
    while flow.status().await?.worker.as_deref() != Some("bob") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    flow.signal("convert", &()).await.ok();
    println!("{}", flow.result().await?);
    println!("\n{}", flow.history().await?);

    ann = start_worker(folder.path(), "ann")?;
    let workers = scheduler.schedule(chat(ROUNDS)).await?.result().await?;
    println!("{ROUNDS} rounds, preferably on one worker: {}", names(&workers));

    // Whoever schedules a flow may ask for more than its type does.
    let insists = Affinity::Require { takeover: Takeover::Never };
    let flow = scheduler.schedule(chat(ROUNDS)).affinity(insists).await?;
    let mut status = flow.watch_status::<String>();
    let first = status.next().await.transpose()?.map(|status| status.value).unwrap_or_default();
    let worker = if first == "ann" { &mut ann } else { &mut bob };
    worker.kill()?;
    worker.wait()?;
    println!("{first} was killed after the first round, and starts again");
    *worker = start_worker(folder.path(), &first)?;
    println!("{ROUNDS} rounds, on no other worker: {}", names(&flow.result().await?));

    for mut worker in [ann, bob] {
        drop(worker.stdin.take());
        worker.wait()?;
    }
    Ok(())
}

fn names(workers: &BTreeSet<String>) -> String {
    workers.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
