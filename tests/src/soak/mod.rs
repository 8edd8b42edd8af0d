//! Real workers and clients on real servers, killed, stopped and cut off at random for as long as one likes, and a verifier
//! at the end.
//!
//! `errand` is what is done, and what it must come to; `client` asks for it; `storm` starts everything and lets things go
//! wrong, as `trouble` draws them; `server` is where the log lies; `verify` looks at what is left.

mod client;
mod errand;
mod problems;
mod server;
mod storm;
mod trouble;
mod verify;
#[cfg(test)]
mod verify_tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ergon::{Worker, storage::ExecutionLog};
use tokio::io::AsyncReadExt;

use self::{client::Client, errand::Errand};
pub use self::{
    server::Backend,
    storm::{Report, soak},
    verify::Findings,
};
use crate::{
    FaultyLog,
    job::{self, Diary},
};

/// How long after the log was out of reach it is tried again.
const RETRY: Duration = Duration::from_millis(30);

/// The file in a soak's folder in which processes note what they do.
fn diary(folder: &Path) -> PathBuf {
    folder.join("diary")
}

/// A worker in this process, until its standard input ends.
///
/// # Panics
///
/// When the log refuses.
pub async fn work(url: &str, folder: &Path) {
    let notes = Arc::new(Diary::open(&diary(folder)));
    let worker = loop {
        let log = job::open(url).await;
        let started = match log {
            Ok(log) => worker(log, Arc::clone(&notes)).start().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match started {
            Ok(worker) => break worker,
            // As a supervisor does who starts it again.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    end_of_input().await;
    worker.shutdown().await;
}

/// A client in this process, until its standard input ends.
pub async fn ask(url: &str, folder: &Path, part: (usize, usize)) {
    let log = loop {
        match job::open(url).await {
            Ok(log) => break log,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let client = Client::new(log, folder, part);
    let stops = AtomicBool::new(false);
    let told = async {
        end_of_input().await;
        stops.store(true, Ordering::Release);
    };
    futures::future::join(client.run(folder, &stops), told).await;
}

fn worker(log: Arc<dyn ExecutionLog>, notes: Arc<Diary>) -> Worker {
    let log = FaultyLog::new(log).with_diary(Arc::clone(&notes));
    let worker = Worker::new(log).register::<Errand>().with_state(notes);
    worker.lease(storm::LEASE).slots(16).deliveries_max(u32::MAX)
}

async fn end_of_input() {
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
}
