//! A worker in a process of its own: `job-worker URL DIARY LEASE_MS`. Runs until its standard input ends.

use std::{path::Path, sync::Arc, time::Duration};

use ergon::{StartError, Worker, WorkerHandle};
use ergon_tests::{
    FaultyLog,
    job::{self, Diary, Job},
};
use tokio::io::AsyncReadExt;

/// How long after the log was out of reach it is tried again.
const RETRY: Duration = Duration::from_millis(20);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, diary, lease] = &args[..] else { panic!("job-worker URL DIARY LEASE_MS") };
    let lease = Duration::from_millis(lease.parse().expect("LEASE_MS is a number"));
    let diary = Arc::new(Diary::open(Path::new(diary)));
    let worker = loop {
        match start(url, &diary, lease).await {
            Ok(worker) => break worker,
            // As a supervisor does who starts it again.
            Err(StartError::Log(error)) if error.is_retryable() => tokio::time::sleep(RETRY).await,
            Err(error) => panic!("{error:?}"),
        }
    };
    diary.note_ready();
    let mut rest = Vec::new();
    let _ = tokio::io::stdin().read_to_end(&mut rest).await;
    worker.shutdown().await;
}

async fn start(url: &str, diary: &Arc<Diary>, lease: Duration) -> Result<WorkerHandle, StartError> {
    let log = FaultyLog::new(job::open(url).await?).with_diary(Arc::clone(diary));
    Worker::new(log).register::<Job>().with_state(Arc::clone(diary)).lease(lease).slots(16).start().await
}
