//! Where scopes that clean up are moved and found again.
#![allow(missing_docs)]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ergon::{
    FlowError, Middleware, NextFlow, RunEnd, on_cancel,
    prelude::*,
    saga,
    storage::{CallKind, Cleanup, FlowInfo, FlowState, ManualClock, Phase},
    testing::{Setup, TestRuntime, crash_everywhere},
};
use tokio::sync::Semaphore;

const HOUR: Duration = Duration::from_secs(3_600);

#[flow_type]
enum Work {
    /// Is opened, waits, and then goes on within another scope.
    Moved,
    /// The same, in a combinator that polls only what was woken.
    MovedUnpolled,
    /// Waits for what is not durable before it comes to its scope.
    BehindALock,
}

#[flow_type]
impl Work {
    #[flow(allow(nondeterminism))]
    async fn run(&self) -> ergon::Result<()> {
        match self {
            Self::Moved => {
                let mut trip = Box::pin(self.trip());
                assert!(futures::poll!(&mut trip).is_pending());
                self.note("meanwhile").await?;
                on_cancel(trip, async |_| self.note("at last").await).await
            }
            Self::MovedUnpolled => {
                let mut trips = futures::stream::FuturesUnordered::new();
                trips.push(self.trip());
                assert!(futures::poll!(futures::StreamExt::next(&mut trips)).is_pending());
                self.note("meanwhile").await?;
                let trips = async move { futures::StreamExt::next(&mut trips).await.expect("there is one") };
                on_cancel(trips, async |_| self.note("at last").await).await
            }
            Self::BehindALock => {
                self.note("begins").await?;
                let lock = state::<Arc<Semaphore>>();
                drop(lock.acquire().await.expect("it is open"));
                let waits = saga(async |saga| {
                    saga.undo(|| self.note("undone"));
                    signal::<()>("never").await
                });
                Ok(waits.await?)
            }
        }
    }

    async fn trip(&self) -> ergon::Result<()> {
        let booked = saga(async |saga| {
            saga.undo(|| self.note("undone"));
            self.note("booked").await?;
            signal::<()>("never").await
        });
        Ok(booked.await?)
    }

    #[step]
    async fn note(&self, text: &str) -> ergon::Result<String> {
        Ok(text.to_owned())
    }
}

/// Cleans up when its time is up.
#[flow(timeout = "1h")]
async fn late() -> ergon::Result<()> {
    on_cancel(sleep(100 * HOUR), async |_| note().await).await;
    Ok(())
}

#[step]
async fn note() -> ergon::Result<()> {
    Ok(())
}

fn setup() -> Setup {
    Setup::new().register::<Work>().register::<late>().with_state(Arc::new(Semaphore::new(1)))
}

/// What was noted, in the order in which it was recorded.
async fn notes<T, E>(flow: &FlowHandle<T, E>) -> Vec<String> {
    let records = flow.history().await.unwrap().records;
    let noted = records.iter().filter(|record| record.kind == CallKind::Step && record.phase == Phase::Completed);
    noted.map(|record| String::from_utf8_lossy(&record.payload).replace('"', "")).collect()
}

async fn cancelled(runtime: &TestRuntime, work: Work) -> Vec<String> {
    let flow = runtime.scheduler().schedule(work).id("flow").await.unwrap();
    runtime.idle().await;
    flow.cancel("no more").await.unwrap();
    assert!(matches!(runtime.result(&flow).await, Err(FlowError::Cancelled { .. })));
    notes(&flow).await
}

#[tokio::test]
async fn a_scope_that_was_opened_before_the_one_it_is_in_cleans_up_first() {
    for work in [|| Work::Moved, || Work::MovedUnpolled] {
        let report = crash_everywhere(setup, async |runtime| cancelled(runtime, work()).await).await;
        let (mut before, after) = (report.result[..2].to_vec(), &report.result[2..]);
        before.sort();
        assert_eq!(
            (before, after),
            (vec!["booked".into(), "meanwhile".into()], &["undone".into(), "at last".into()][..])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_not_durable_does_not_lose_what_is_to_be_cleaned_up() {
    let log = InMemoryExecutionLog::new().with_clock(Arc::new(ManualClock::new()));
    let lock = Arc::new(Semaphore::new(1));
    let worker = || Worker::new(log.clone()).register::<Work>().with_state(Arc::clone(&lock)).start();
    let scheduler = Scheduler::new(log.clone());
    // Short, and for longer than a worker waits.
    for (id, held, state) in [
        ("short", Duration::from_millis(300), FlowState::Cancelled),
        ("long", Duration::from_secs(3), FlowState::Stalled),
    ] {
        let former = worker().await.unwrap();
        let flow = scheduler.schedule(Work::BehindALock).id(id).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        former.shutdown().await;
        let taken = lock.acquire().await.unwrap();
        flow.cancel("no more").await.unwrap();
        let present = worker().await.unwrap();
        tokio::time::sleep(held).await;
        drop(taken);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let info = flow.history().await.unwrap().info;
        assert_eq!(info.state, state, "{info:?}");
        if state == FlowState::Stalled {
            let reason = info.reason.unwrap();
            assert!(reason.contains("before it comes to what it has to clean up"), "{reason}");
            flow.retry().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(notes(&flow).await, ["begins", "undone"]);
        assert_eq!(flow.history().await.unwrap().info.state, FlowState::Cancelled);
        present.shutdown().await;
    }
}

/// Which runs were surrounded.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<Vec<Cleanup>>>);

impl Middleware for Runs {
    async fn flow(&self, flow: &FlowInfo, next: NextFlow<'_>) -> ergon::Result<RunEnd> {
        self.0.lock().unwrap().push(flow.cleanup);
        Ok(next.run().await)
    }
}

#[tokio::test]
async fn middleware_surrounds_the_clean_up_after_a_time_limit() {
    let runs = Runs::default();
    let runtime = setup().middleware(runs.clone()).start().await;
    let flow = runtime.scheduler().schedule(late()).await.unwrap();
    assert!(matches!(runtime.result(&flow).await, Err(FlowError::Fault(_))));
    assert_eq!(runs.0.lock().unwrap().last(), Some(&Cleanup::Underway));
}
