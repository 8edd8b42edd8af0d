//! What each release has written, the code of today reads, replays, and goes on with.

use std::{fs, path::Path, sync::Arc};

use ergon::{Admin, FlowError, FlowState, InMemoryExecutionLog, storage::ExecutionLog, testing::Setup};
use ergon_tests::{
    golden::{self, FLOWS, Journey, parcel},
    soon,
};

async fn log_of(release: &Path, folder: &Path) -> Arc<dyn ExecutionLog> {
    Arc::new(golden::log_of(release, folder).await)
}

async fn lines_of(release: &Path) -> Arc<dyn ExecutionLog> {
    let log = InMemoryExecutionLog::new().with_clock(golden::later());
    let lines = fs::read_to_string(release.join(golden::LINES)).unwrap();
    let report = Admin::new(log.clone()).import(lines.lines().map(Ok)).await.unwrap();
    assert!(report.imported > FLOWS.len() as u64, "with their children");
    Arc::new(log)
}

async fn are_replayed(log: Arc<dyn ExecutionLog>) {
    let setup = Setup::new().register::<Journey>().register::<parcel>();
    for (how, state, _) in FLOWS {
        let history = golden::handle(Arc::clone(&log), how).history().await.unwrap();
        assert_eq!(history.info.state, state, "{how}");
        setup.replay::<Journey>(&history).unwrap();
    }
}

async fn go_on(log: Arc<dyn ExecutionLog>) {
    let worker = golden::worker(Arc::clone(&log)).start().await.unwrap();
    golden::send_the_last(Arc::clone(&log)).await;
    for (how, _, end) in FLOWS {
        let flow = golden::handle(Arc::clone(&log), how);
        let result = soon(how, flow.result()).await;
        match (end, &result) {
            (Ok(expected), Ok(result)) => assert_eq!(result, expected, "{how}"),
            (Err(FlowState::Failed), Err(FlowError::Failed(error))) => assert_eq!(error.to_string(), "as it must"),
            (Err(FlowState::Cancelled), Err(FlowError::Cancelled { .. })) => {}
            _ => panic!("{how}: {result:?}"),
        }
    }
    worker.shutdown().await;
}

#[tokio::test]
async fn logs_are_replayed_and_go_on() {
    for release in golden::releases() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_of(&release, dir.path()).await;
        are_replayed(Arc::clone(&log)).await;
        go_on(log).await;
    }
}

#[tokio::test]
async fn lines_are_replayed_and_go_on() {
    for release in golden::releases() {
        let log = lines_of(&release).await;
        are_replayed(Arc::clone(&log)).await;
        go_on(log).await;
    }
}
