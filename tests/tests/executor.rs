//! Flows that run in the calling task.

use std::{collections::HashMap, time::Duration};

use ergon::{
    FlowError,
    prelude::*,
    storage::{Clock, ErrorKind, ExecutionLog, FlowState, ManualClock},
};
use ergon_tests::{Fault, FaultyLog, Place, TestClock, Trace, both, note, soon, state_of, within};
use tokio::runtime::Builder;

both!(
    a_flow_runs_in_place,
    waits_are_waited_for,
    children_go_to_the_queue,
    a_dropped_run_is_taken_up_again,
    cancellation_reaches_the_executor,
    the_lease_is_renewed,
    a_flow_of_another_version_is_refused,
    a_value_with_a_map_is_the_same_each_time,
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

async fn the_lease_is_renewed(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let lease = Duration::from_secs(60);
    let executor = Executor::new(log.clone()).with_state(trace.clone()).lease(lease);
    let id = FlowId::new("w").unwrap();
    let mut run = std::pin::pin!(async { executor.run(Word { hangs: true }).id("w").await });
    let renewed = async {
        ergon_tests::until("the step", || async { trace.count("hangs") == 1 }).await;
        for _ in 0..10 {
            let heartbeats = || log.calls().get("heartbeat").copied().unwrap_or_default();
            let before = heartbeats();
            clock.advance(lease / 3);
            ergon_tests::until("the renewal", || async { heartbeats() > before }).await;
            let until = clock.now().saturating_add(lease);
            ergon_tests::until("the new end of the lease", || async {
                log.flow(&id).await.unwrap().unwrap().info.due_at == Some(until)
            })
            .await;
        }
    };
    tokio::select! {
        result = &mut run => panic!("it hangs: {result:?}"),
        () = renewed => {}
    }
    let info = log.flow(&id).await.unwrap().unwrap().info;
    assert_eq!((info.state, info.epoch), (FlowState::Running, 1));
    assert_eq!(trace.take(), ["hangs"]);
}

/// Two versions of one flow.
macro_rules! version {
    ($name:ident: $version:literal) => {
        mod $name {
            use super::*;

            #[flow_type(name = "versioned", version = $version)]
            pub(super) struct Versioned;

            #[flow_type]
            impl Versioned {
                #[flow]
                async fn run(&self) -> ergon::Result<u32> {
                    let word: String = signal("word").await?;
                    note(format!("{word} in version {}", $version));
                    Ok($version)
                }
            }
        }
    };
}

version!(first: 1);
version!(second: 2);

async fn a_flow_of_another_version_is_refused(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let executor = Executor::new(log.clone()).with_state(trace.clone());
    let run = async { executor.run(first::Versioned).id("v").await };
    tokio::time::timeout(Duration::from_millis(50), run).await.unwrap_err();
    let id = FlowId::new("v").unwrap();
    state_of(&log, &id, FlowState::Suspended).await;
    Scheduler::new(log.clone()).signal(&id, "word", "said").await.unwrap();
    let refused = executor.run(second::Versioned).id("v").await.unwrap_err();
    let FlowError::Log(refused) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("the flow has version 1 of its type, this code is version 2"), "{refused}");
    assert!(trace.take().is_empty());
    assert_eq!(soon("the result", async { executor.run(first::Versioned).id("v").await }).await.unwrap(), 1);
    // What has ended has ended, for all versions.
    assert_eq!(executor.run(second::Versioned).id("v").await.unwrap(), 1);
    assert_eq!(trace.take(), ["said in version 1"]);
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

/// Counts.
#[flow_type]
struct Tally {
    votes: HashMap<String, u32>,
}

#[flow_type]
impl Tally {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        Ok(self.votes.values().sum())
    }
}

/// Each map of the same entries has an order of its own, as in a program that was started again.
async fn a_value_with_a_map_is_the_same_each_time(place: Place) {
    let log = place.log().await;
    let executor = Executor::new(log.clone());
    let tally = |more: u32| Tally { votes: (0..20).map(|n| (format!("candidate {n}"), n + more)).collect() };
    for _ in 0..5 {
        assert_eq!(executor.run(tally(0)).id("tally").await.unwrap(), 190);
        assert!(Scheduler::new(log.clone()).schedule(tally(0)).id("tally").await.is_ok());
    }
    let error = executor.run(tally(1)).id("tally").await.unwrap_err();
    assert!(matches!(&error, FlowError::Log(error) if error.kind() == ErrorKind::Conflict), "{error:?}");
}
