//! What the measurements of the logs share, so that they measure the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use ergon_storage::{
    CallKind, CallPath, ClaimRequest, ClaimTarget, ClaimedFlow, Clock, Commit, Committed, ExecutionLog, FlowId,
    NewFlow, Next, Phase, Record, SystemClock,
};
use tokio::sync::mpsc;

const STEPS: u32 = 5;

/// A small flow.
pub(crate) fn flow(name: &str, number: usize) -> NewFlow {
    NewFlow::new(FlowId::new(format!("{name}-{number:08}")).unwrap(), "Order", 1, &br#"{"id":"a","cents":7}"#[..])
}

/// A claim of so many of them.
pub(crate) fn request(limit: usize) -> ClaimRequest {
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let mut request = ClaimRequest::new("worker", target);
    request.limit = limit;
    request
}

fn record(seq: u32) -> Record {
    let at = SystemClock.now();
    Record {
        seq,
        at,
        path: CallPath::top(seq),
        kind: CallKind::Step,
        phase: Phase::Completed,
        name: "charge".into(),
        args_hash: 0x1234_5678_9abc_def0,
        attempt: 1,
        started_at: at,
        due_at: None,
        reference: None,
        payload: r#"{"payment":"p-1234567"}"#.into(),
    }
}

/// Five steps, the last of them in one commit with the end.
pub(crate) async fn run(log: &impl ExecutionLog, claimed: ClaimedFlow) {
    for seq in 1..=STEPS {
        let mut commit = Commit::new(claimed.lease.clone(), seq);
        commit.records.push(record(seq));
        if seq == STEPS {
            commit.next = Next::Complete { result: "null".into() };
        }
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    }
}

/// Enqueues, claims in batches and runs all flows with `slots` tasks; flows per second.
pub(crate) async fn drain(log: &(impl ExecutionLog + Clone), flows: usize, slots: usize) -> f64 {
    let start = Instant::now();
    for first in (0..flows).step_by(256) {
        let batch = (first..flows.min(first + 256)).map(|number| flow("drain", number)).collect();
        log.enqueue(batch).await.unwrap();
    }
    let done = Arc::new(AtomicUsize::new(0));
    let (free, mut freed) = mpsc::unbounded_channel();
    let mut room = slots;
    while done.load(Ordering::Relaxed) < flows {
        while let Ok(()) = freed.try_recv() {
            room += 1;
        }
        let claimed = if room > 0 { log.claim(request(room)).await.unwrap().flows } else { Vec::new() };
        if claimed.is_empty() {
            if freed.recv().await.is_some() {
                room += 1;
            }
            continue;
        }
        room -= claimed.len();
        for claimed in claimed {
            let (log, free, done) = (log.clone(), free.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                run(&log, claimed).await;
                done.fetch_add(1, Ordering::Relaxed);
                free.send(()).unwrap();
            });
        }
    }
    let flows = u32::try_from(flows).unwrap();
    f64::from(flows) / start.elapsed().as_secs_f64()
}
