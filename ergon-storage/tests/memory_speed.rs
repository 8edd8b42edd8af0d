//! How fast the in-memory log is. Not run by itself: `cargo test --release -p ergon-storage --test memory_speed --
//! --ignored --nocapture`.
#![cfg(feature = "memory")]

use std::time::{Duration, Instant};

use ergon_storage::{
    CallKind, CallPath, ClaimRequest, ClaimTarget, Commit, ExecutionLog, FlowId, InMemoryExecutionLog, NewFlow, Next,
    Phase, PrunePolicy, Record, Start,
};

const FLOWS: u32 = 200_000;
const COMMITS: u32 = 5;

fn record(log: &InMemoryExecutionLog, seq: u32) -> Record {
    let now = log.clock().now();
    Record {
        seq,
        at: now,
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: 7,
        attempt: 1,
        started_at: now,
        due_at: None,
        reference: None,
        payload: "{}".into(),
    }
}

async fn run(log: &InMemoryExecutionLog, prefix: &str) -> Duration {
    let flows: Vec<_> = (0..FLOWS)
        .map(|number| NewFlow::new(FlowId::new(format!("{prefix}-{number}")).unwrap(), "Order", 1, "{}"))
        .collect();
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = 16;
    let started = Instant::now();
    for batch in flows.chunks(16) {
        log.enqueue(batch.to_vec()).await.unwrap();
        for claimed in log.claim(request.clone()).await.unwrap().flows {
            for number in 1..=COMMITS {
                let mut commit = Commit::new(claimed.lease.clone(), number);
                commit.records.push(record(log, number));
                if number == COMMITS {
                    commit.next = Next::Complete { result: "{}".into() };
                }
                log.commit(commit).await.unwrap();
            }
        }
    }
    started.elapsed()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn flows_of_five_commits() {
    let log = InMemoryExecutionLog::new();
    for prefix in ["empty", "among 200,000 ended ones"] {
        let elapsed = run(&log, prefix).await;
        println!("{prefix}: {:.0} flows/s", f64::from(FLOWS) / elapsed.as_secs_f64());
    }
    let policy = PrunePolicy::older_than(Duration::ZERO).with_limit(u32::MAX);
    assert_eq!(log.prune(&policy).await.unwrap(), u64::from(FLOWS) * 2);
    let later = |number: u32| {
        let id = FlowId::new(format!("later-{number}")).unwrap();
        NewFlow::new(id, "Order", 1, "{}").with_start(Start::After(Duration::from_secs(86_400))).with_priority(1)
    };
    log.enqueue((0..1_000_000).map(later).collect()).await.unwrap();
    let elapsed = run(&log, "backlog").await;
    println!("behind 1,000,000 that are not due: {:.0} flows/s", f64::from(FLOWS) / elapsed.as_secs_f64());
}
