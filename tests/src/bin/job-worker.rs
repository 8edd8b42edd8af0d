//! A worker in a process of its own: `job-worker LOG DIARY LEASE_MS`. Runs until its standard input ends.

use std::{path::PathBuf, time::Duration};

use ergon::{
    Worker,
    storage::{Durability, SqliteOptions},
};
use ergon_tests::job::{Diary, Job};
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args_os().skip(1);
    let mut path = || PathBuf::from(args.next().expect("job-worker LOG DIARY LEASE_MS"));
    let (log, diary, lease) = (path(), path(), path());
    let lease = lease.to_str().and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    let lease = lease.expect("LEASE_MS is a number");
    let log = SqliteOptions::new(log).durability(Durability::Normal).open().await.expect("the log opens");
    let worker = Worker::new(log).register::<Job>().with_state(Diary::open(&diary)).lease(lease).slots(16);
    let worker = worker.start().await.expect("the worker starts");
    let mut rest = Vec::new();
    let _ = tokio::io::stdin().read_to_end(&mut rest).await;
    worker.shutdown().await;
}
