//! Workers in processes of their own on one file, which are killed, paused and continued.

use std::time::Duration;

use ergon_tests::fleet::{self, Fleet, sqlite_url};
use tempfile::TempDir;

/// Workers on a new file.
async fn on_a_file(lease: Duration) -> (Fleet, TempDir) {
    let directory = TempDir::new().expect("a directory");
    let url = sqlite_url(&directory.path().join("log.db"));
    (Fleet::new(env!("CARGO_BIN_EXE_job-worker"), &url, lease).await, directory)
}

#[tokio::test]
async fn a_worker_that_is_killed_again_and_again_finishes_every_flow() {
    let (fleet, _directory) = on_a_file(Duration::from_millis(300)).await;
    fleet::killed_at_random(&fleet, 1).await;
}

#[tokio::test]
async fn two_workers_that_are_killed_in_turn_finish_every_flow() {
    let (fleet, _directory) = on_a_file(Duration::from_millis(300)).await;
    fleet::killed_at_random(&fleet, 2).await;
}

#[tokio::test]
async fn two_processes_share_a_queue_and_run_each_step_once() {
    let (fleet, _directory) = on_a_file(Duration::from_secs(30)).await;
    fleet::share_a_queue(&fleet).await;
}

#[tokio::test]
async fn a_zombie_changes_nothing() {
    let (fleet, _directory) = on_a_file(Duration::from_millis(200)).await;
    fleet::a_zombie_changes_nothing(&fleet).await;
}
