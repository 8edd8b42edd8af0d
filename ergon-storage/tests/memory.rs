//! The in-memory log.

#![cfg(feature = "memory")]

use std::sync::Arc;

use ergon_storage::{
    ClaimRequest, ClaimTarget, Commit, Committed, ExecutionLog, FlowId, FlowState, InMemoryExecutionLog, NewFlow, Next,
};

#[tokio::test]
async fn a_flow_runs_to_its_end() {
    let log: Arc<dyn ExecutionLog> = Arc::new(InMemoryExecutionLog::new());
    let id = FlowId::new("order-7").unwrap();
    log.enqueue(vec![NewFlow::new(id.clone(), "Order", 1, &b"{}"[..])]).await.unwrap();
    let target = ClaimTarget::Queues { queues: ["default".into()].into(), types: [("Order".into(), 1)].into() };
    let claimed = log.claim(ClaimRequest::new("worker", target)).await.unwrap();
    let lease = claimed.flows[0].lease.clone();
    let mut commit = Commit::new(lease, 1);
    commit.next = Next::Complete { result: "done".into() };
    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
    let flow = log.flow(&id).await.unwrap().unwrap();
    assert_eq!((flow.info.state, &*flow.result), (FlowState::Completed, &b"done"[..]));
}
