//! Everybody has a turn: whatever one branch of a flow is about, the others, messages and orders are heard.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ergon::{
    FlowError, SqliteExecutionLog, WorkerHandle,
    prelude::*,
    storage::{ExecutionLog, FlowState},
};

const STOP: Mailbox<String> = Mailbox::new("stop");
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the second of two steps has begun; or, of [`Case::CallIsGone`], whether the code is another by now.
type Flag = Arc<AtomicBool>;

#[flow_type]
enum Case {
    BesideAStream,
    TimersThatAreDue,
    QuickSteps,
    QuickStepsFor(Duration),
    CallIsGone,
}

#[flow_type]
impl Case {
    #[flow(allow(nondeterminism))]
    async fn run(&self) -> ergon::Result<String> {
        match self {
            Self::BesideAStream => {
                let (streamed, second) = tokio::join!(self.streams(), async {
                    self.tick().await?;
                    self.begins().await
                });
                second?;
                streamed
            }
            Self::TimersThatAreDue => loop {
                sleep(Duration::ZERO).await;
            },
            Self::QuickSteps => tokio::select! {
                why = STOP.recv() => why,
                never = self.ticks() => never,
            },
            Self::QuickStepsFor(limit) => tokio::select! {
                none = STOP.recv_timeout(*limit) => Ok(none?.is_none().to_string()),
                never = self.ticks() => never,
            },
            Self::CallIsGone => {
                if !state::<Flag>().load(Ordering::SeqCst) {
                    self.tick().await?;
                    return STOP.recv().await;
                }
                std::future::poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    std::task::Poll::Pending
                })
                .await
            }
        }
    }

    async fn ticks(&self) -> ergon::Result<String> {
        loop {
            self.tick().await?;
        }
    }

    #[step]
    async fn tick(&self) -> ergon::Result<()> {
        Ok(())
    }

    /// Emits until the other step has begun, and says whether it has.
    #[step]
    async fn streams(&self) -> ergon::Result<String> {
        let flag = state::<Flag>();
        for item in 0..20_000 {
            if flag.load(Ordering::SeqCst) {
                return Ok("both ran".into());
            }
            ergon::emit("items", &item)?;
            tokio::task::yield_now().await;
        }
        Ok("starved".into())
    }

    #[step]
    async fn begins(&self) -> ergon::Result<()> {
        state::<Flag>().store(true, Ordering::SeqCst);
        Ok(())
    }
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

async fn worker(log: impl ExecutionLog + 'static) -> WorkerHandle {
    Worker::new(log).register::<Case>().with_state(Flag::default()).start().await.unwrap()
}

/// A flow with more than this many records.
async fn under_way<T, E>(flow: &FlowHandle<T, E>) {
    in_time("the flow to be under way", async {
        while flow.history().await.unwrap().info.records < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_step_begins_beside_one_that_always_has_something_to_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = SqliteExecutionLog::open(dir.path().join("log.db")).await.unwrap();
    let worker = worker(log.clone()).await;
    let flow = Scheduler::new(log).schedule(Case::BesideAStream).await.unwrap();
    assert_eq!(in_time("both steps", flow.result()).await.unwrap(), "both ran");
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_that_are_due_already_do_not_keep_a_cancellation_from_being_heard() {
    let dir = tempfile::tempdir().unwrap();
    let memory: Arc<dyn ExecutionLog> = Arc::new(InMemoryExecutionLog::new());
    let file = Arc::new(SqliteExecutionLog::open(dir.path().join("log.db")).await.unwrap());
    for log in [memory, file] {
        let worker = worker(Arc::clone(&log)).await;
        let scheduler = Scheduler::new(Arc::clone(&log));
        let flow = scheduler.schedule(Case::TimersThatAreDue).await.unwrap();
        under_way(&flow).await;
        flow.cancel("enough").await.unwrap();
        assert!(matches!(in_time("the end", flow.result()).await, Err(FlowError::Cancelled { .. })));
        // Nor a shutdown, which gives the flow back.
        let flow = scheduler.schedule(Case::TimersThatAreDue).await.unwrap();
        under_way(&flow).await;
        in_time("the shutdown", worker.shutdown()).await;
        assert_eq!(flow.history().await.unwrap().info.state, FlowState::Scheduled);
    }
}

#[tokio::test]
async fn messages_come_to_a_flow_whose_steps_are_quick() {
    let log = InMemoryExecutionLog::new();
    let worker = worker(log.clone()).await;
    let flow = Scheduler::new(log).schedule(Case::QuickSteps).await.unwrap();
    under_way(&flow).await;
    flow.send(&STOP, &"enough".to_owned()).await.unwrap();
    assert_eq!(in_time("the message", flow.result()).await.unwrap(), "enough");
    worker.shutdown().await;
}

#[tokio::test]
async fn a_limit_of_a_wait_comes_to_a_flow_whose_steps_are_quick() {
    let log = InMemoryExecutionLog::new();
    let worker = worker(log.clone()).await;
    let flow = Scheduler::new(log).schedule(Case::QuickStepsFor(Duration::from_millis(20))).await.unwrap();
    assert_eq!(in_time("the limit", flow.result()).await.unwrap(), "true");
    worker.shutdown().await;
}

#[tokio::test]
async fn code_that_never_rests_and_misses_a_call_is_stalled() {
    let log = InMemoryExecutionLog::new();
    let (old, new) = (Flag::default(), Flag::new(true.into()));
    let worker = |flag: Flag| Worker::new(log.clone()).register::<Case>().with_state(flag);
    let former = worker(old).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Case::CallIsGone).await.unwrap();
    in_time("the wait", async {
        while flow.history().await.unwrap().info.state != FlowState::Suspended {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    former.shutdown().await;
    let present = worker(new).start().await.unwrap();
    flow.send(&STOP, &"go".to_owned()).await.unwrap();
    let stalled = in_time("the stall", async {
        loop {
            let history = flow.history().await.unwrap();
            if history.info.state == FlowState::Stalled {
                return history.info.reason.unwrap_or_default();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(stalled.contains("tick"), "{stalled}");
    present.shutdown().await;
}
