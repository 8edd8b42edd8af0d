//! Flows that run in the calling task.

use std::time::Duration;

use ergon::{
    FlowError,
    prelude::*,
    storage::{Clock, ExecutionLog, FlowState, ManualClock},
};
use ergon_tests::{Fault, FaultyLog, Place, TestClock, Trace, both, note, soon, state_of, within};
use tokio::runtime::Builder;

both!(
    a_flow_runs_in_place,
    waits_are_waited_for,
    children_go_to_the_queue,
    a_dropped_run_is_taken_up_again,
    cancellation_reaches_the_executor,
);

/// Steps with a wait between.
#[flow_type]
#[derive(Clone)]
struct Steps;

#[flow_type]
impl Steps {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let a = self.work("a").await?;
        sleep(Duration::from_secs(10)).await;
        let (b, c) = tokio::try_join!(self.work("b"), self.work("c"))?;
        sleep(Duration::from_secs(1_000)).await;
        Ok(a + &b + &c + &self.work("d").await?)
    }

    #[step]
    async fn work(&self, label: &str) -> ergon::Result<String> {
        note(label);
        Ok(label.into())
    }
}

/// Waits for a word, or hangs.
#[flow_type]
struct Word {
    hangs: bool,
}

#[flow_type]
impl Word {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        if self.hangs {
            self.hang().await?;
        }
        signal("word").await
    }

    #[step]
    async fn hang(&self) -> ergon::Result<()> {
        note("hangs");
        std::future::pending().await
    }
}

/// A parent.
#[flow_type]
struct Parent;

#[flow_type]
impl Parent {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        child(Word { hangs: false }).id("the-child").await
    }
}

async fn a_flow_runs_in_place(place: Place) {
    let log = place.log_at(TestClock::new(100_000)).await;
    let trace = Trace::new();
    let executor = Executor::new(log.clone()).with_state(trace.clone()).lease(Duration::from_secs(1_000_000));
    assert_eq!(soon("the result", async { executor.run(Steps).id("one").await }).await.unwrap(), "abcd");
    assert_eq!(trace.take().len(), 4);
    // Its result is recorded.
    assert_eq!(soon("the result", async { executor.run(Steps).id("one").await }).await.unwrap(), "abcd");
    assert!(trace.take().is_empty());
}

async fn waits_are_waited_for(place: Place) {
    let log = place.log().await;
    let executor = Executor::new(log.clone());
    let handle = Scheduler::new(log.clone()).handle::<Word>(FlowId::new("w").unwrap());
    let (result, ()) =
        tokio::join!(soon("the result", async { executor.run(Word { hangs: false }).id("w").await }), async {
            state_of_soon(&log, handle.id(), FlowState::Suspended).await;
            handle.signal("word", "hello").await.unwrap();
        });
    assert_eq!(result.unwrap(), "hello");
}

/// As [`state_of`], for a flow that is about to exist.
async fn state_of_soon(log: &FaultyLog, id: &FlowId, state: FlowState) {
    ergon_tests::until("the flow to exist", || async { log.flow(id).await.unwrap().is_some() }).await;
    state_of(log, id, state).await;
}

async fn children_go_to_the_queue(place: Place) {
    let log = place.log().await;
    let executor = Executor::new(log.clone());
    // No worker serves the queue of executors: a child goes to the default one.
    let worker = Worker::new(log.clone()).register::<Word>().start().await.unwrap();
    let child = FlowId::new("the-child").unwrap();
    let (result, ()) = tokio::join!(soon("the result", async { executor.run(Parent).await }), async {
        state_of_soon(&log, &child, FlowState::Suspended).await;
        Scheduler::new(log.clone()).signal(&child, "word", "hello").await.unwrap();
    });
    assert_eq!(result.unwrap(), "hello");
    worker.shutdown().await;
}

async fn a_dropped_run_is_taken_up_again(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let executor = Executor::new(log.clone()).with_state(trace.clone()).lease(Duration::from_secs(60));
    let for_a_moment = async || {
        let run = executor.run(Word { hangs: true }).id("w");
        tokio::time::timeout(Duration::from_millis(50), run).await.unwrap_err();
    };
    for_a_moment().await;
    assert_eq!(trace.take(), ["hangs"]);
    // Its lease still lasts.
    for_a_moment().await;
    assert!(trace.take().is_empty());
    clock.advance(Duration::from_secs(60));
    for_a_moment().await;
    assert_eq!(trace.take(), ["hangs"]);
}

async fn cancellation_reaches_the_executor(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let executor = Executor::new(log.clone()).with_state(trace.clone()).lease(Duration::from_secs(60));
    let id = FlowId::new("w").unwrap();
    let (result, ()) =
        tokio::join!(soon("the end", async { executor.run(Word { hangs: true }).id("w").await }), async {
            ergon_tests::until("the step", || async { trace.count("hangs") == 1 }).await;
            Scheduler::new(log.clone()).cancel(&id, "enough").await.unwrap();
            clock.advance(Duration::from_secs(20));
        });
    assert!(matches!(&result, Err(FlowError::Cancelled(reason)) if reason == "enough"), "{result:?}");
}

/// The crash sweep, for an executor.
#[test]
fn a_crash_at_any_write_is_survived() {
    let mut last = None;
    for write in 0.. {
        let clock = TestClock::new(1);
        let trace = Trace::new();
        let runtime = || Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let first = runtime();
        let log = first.block_on(async {
            clock.enter(clock.now(), Duration::ZERO);
            Place::memory().log_at(clock.clone()).await
        });
        let process = log.another();
        process.order(write, Fault::CrashBefore);
        let run = async |log: &FaultyLog| {
            let executor = Executor::new(log.clone()).with_state(trace.clone());
            within(Duration::from_secs(1_000_000), "the result", async { executor.run(Steps).id("one").await }).await
        };
        let stopped_at = first.block_on(async {
            tokio::select! {
                result = run(&process) => last = Some(result.unwrap()),
                () = process.crashed() => {}
            }
            clock.now()
        });
        drop(first);
        clock.enter(stopped_at, Duration::ZERO);
        let second = runtime();
        let result = second.block_on(async {
            clock.enter(stopped_at, Duration::ZERO);
            run(&log).await
        });
        assert_eq!(result.unwrap(), "abcd", "{write}");
        assert!(trace.notes().len() <= 6, "{write}: {:?}", trace.notes());
        if write > 0 && last.is_some() {
            assert!(write > 5, "there are more writes than {write}");
            return;
        }
        last = None;
    }
}

#[tokio::test]
async fn a_worker_leaves_flows_of_executors_alone() {
    let log = Place::memory().log().await;
    let trace = Trace::new();
    let worker = Worker::new(log.clone()).register::<Word>().with_state(trace.clone()).start().await.unwrap();
    let executor = Executor::new(log.clone()).with_state(trace.clone());
    let run =
        tokio::time::timeout(Duration::from_millis(50), async { executor.run(Word { hangs: true }).id("w").await });
    assert!(run.await.is_err());
    assert_eq!(trace.take(), ["hangs"]);
    assert_eq!(worker.running(), 0);
    worker.shutdown().await;
}
