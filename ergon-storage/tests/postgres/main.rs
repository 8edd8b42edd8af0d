//! What the PostgreSQL log does beyond the laws of every log: how it is connected, and what it does when connections,
//! servers and answers are lost.
#![cfg(feature = "postgres")]

mod connecting;
mod crowds;
mod hints;
mod losses;
mod time;

use std::time::Duration;

use ergon_storage::{
    CallKind, CallPath, Channel, ClaimRequest, ClaimTarget, Commit, Enqueued, Error, ExecutionLog, Filter, FlowId,
    FlowState, Lease, NewFlow, NewMessage, Next, Parent, Phase, PostgresExecutionLog, PostgresOptions, PrunePolicy,
    Record, Timestamp, Wake, Watch,
};
use ergon_test_servers::{Postgres, fresh_name};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn id(name: &str) -> FlowId {
    FlowId::new(name).unwrap()
}

fn flow(name: &str) -> NewFlow {
    NewFlow::new(id(name), "Order", 1, &b"{}"[..])
}

fn child(name: &str, parent: &str, path: u32) -> NewFlow {
    flow(name).with_parent(Parent { id: id(parent), path: CallPath::top(path), detached: false })
}

fn record(seq: u32) -> Record {
    Record {
        seq,
        at: Timestamp::EPOCH,
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: 7,
        attempt: 1,
        started_at: Timestamp::EPOCH,
        due_at: None,
        reference: None,
        payload: "7".into(),
    }
}

/// A commit of one step.
fn step(lease: &Lease, number: u32) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.records = vec![record(number)];
    commit
}

fn going(lease: &Lease, number: u32, next: Next) -> Commit {
    let mut commit = Commit::new(lease.clone(), number);
    commit.next = next;
    commit
}

fn complete() -> Next {
    Next::Complete { result: "7".into() }
}

fn suspend(channels: &[Channel]) -> Next {
    Next::suspend(Wake { at: None, channels: channels.to_vec() })
}

/// A log of its own on the shared server.
fn options() -> PostgresOptions {
    PostgresOptions::new(Postgres::shared().url()).schema(fresh_name())
}

async fn connect() -> PostgresExecutionLog {
    options().connect().await.unwrap()
}

async fn start(log: &PostgresExecutionLog, name: &str) -> Lease {
    assert_eq!(log.enqueue(vec![flow(name)]).await.unwrap(), [Enqueued::Created]);
    take(log, name).await
}

async fn take(log: &PostgresExecutionLog, name: &str) -> Lease {
    let claimed = log.claim(ClaimRequest::new("worker", ClaimTarget::Flow(id(name)))).await.unwrap();
    claimed.flows.into_iter().next().expect("it is due").lease
}

async fn refused(options: PostgresOptions) -> Error {
    let error = options.connect().await.expect_err("this is refused");
    for text in [format!("{error:?}"), error.to_string()] {
        assert!(!text.contains("secret"), "no error names the password: {text}");
    }
    error
}

async fn hinted(watch: &mut Watch, why: &str) {
    let hint = tokio::time::timeout(PATIENCE, watch.changed()).await;
    assert!(hint.is_ok(), "there is a hint after {why}");
}

/// Asks a log everything that it can be asked about some of its flows.
async fn ask_everything(log: &PostgresExecutionLog, name: &str) {
    let names: Vec<String> = (0..8).map(|number| format!("{name}-{number}")).collect();
    log.enqueue(names.iter().map(|name| flow(name).with_priority(1)).collect()).await.unwrap();
    assert_eq!(log.enqueue(vec![flow(&names[0])]).await.unwrap(), [Enqueued::Existing { same: true }]);
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = names.len();
    let claimed = log.claim(request.clone()).await.unwrap().flows;
    assert!(claimed.iter().all(|flow| flow.info.id.as_str().starts_with(name)), "higher priorities go first");
    let leases: Vec<_> = claimed.into_iter().map(|flow| flow.lease).collect();
    log.heartbeat(&leases, SECOND * 30).await.unwrap();
    for (number, lease) in leases.iter().enumerate() {
        log.send(NewMessage::new(lease.flow.clone(), Channel::signal("go"), "7").with_key("k")).await.unwrap();
        log.messages(&lease.flow, &[Channel::signal("go")], 0, 10).await.unwrap();
        log.messages(&lease.flow, &[], 0, 10).await.unwrap();
        let mut commit = step(lease, 1);
        match number {
            0..3 => commit.children = vec![child(&format!("{}/1", lease.flow), lease.flow.as_str(), 1)],
            3 => commit.consumed = vec![1],
            4 => commit.next = suspend(&[Channel::signal("stop")]),
            5 => commit.next = complete(),
            6 => commit.next = Next::Stall { reason: "diverged".into(), build: "build-1".into() },
            _ => commit.next = Next::Fail { error: "".into(), reason: "broken".into(), again: vec![CallPath::top(1)] },
        }
        log.commit(commit).await.unwrap();
        log.flow(&lease.flow).await.unwrap();
        log.history(&lease.flow, 0, 10).await.unwrap();
    }
    let child = take(log, &format!("{}/1", leases[0].flow)).await;
    log.commit(going(&child, 1, complete())).await.unwrap();
    log.send(NewMessage::new(leases[4].flow.clone(), Channel::signal("stop"), "7")).await.unwrap();
    log.list(&Filter::all().with_state(FlowState::Failed), None, 10).await.unwrap();
    log.list(&Filter::all().with_parent(leases[0].flow.clone()), None, 10).await.unwrap();
    log.list(&Filter::all(), None, 10).await.unwrap();
    log.retry(&leases[7].flow).await.unwrap();
    log.reoffer(&[("Order".into(), 1)], "build-2").await.unwrap();
    log.cancel(&leases[0].flow, "enough").await.unwrap();
    log.release(&leases[1]).await.unwrap();
    log.claim(request).await.unwrap();
    assert!(log.delete(&leases[5].flow).await.unwrap());
    log.prune(&PrunePolicy::older_than(Duration::ZERO).with_limit(2)).await.unwrap();
}
