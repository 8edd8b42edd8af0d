//! Code around flows and steps.

use std::{
    fmt::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use ergon::{
    ErrorKind, FlowError, FlowState, NextFlow, NextStep, RunEnd, StepRun,
    prelude::*,
    storage::{ExecutionLog, FlowInfo},
};
use ergon_tests::{FaultyLog, Place, both, soon, state_of};
use expect_test::expect;

/// Notes what it surrounds, under a name.
#[derive(Clone)]
struct Notes {
    name: &'static str,
    lines: Arc<Mutex<String>>,
}

impl Notes {
    fn new(name: &'static str) -> Self {
        Self { name, lines: Arc::default() }
    }

    fn beside(&self, name: &'static str) -> Self {
        Self { name, lines: Arc::clone(&self.lines) }
    }

    fn note(&self, text: &str) {
        let mut lines = self.lines.lock().unwrap();
        writeln!(lines, "{}: {text}", self.name).unwrap();
    }

    fn take(&self) -> String {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

impl Middleware for Notes {
    async fn flow(&self, flow: &FlowInfo, next: NextFlow<'_>) -> ergon::Result<RunEnd> {
        self.note(&format!("{} {} begins", flow.flow_type, flow.id));
        let end = next.run().await;
        self.note(&format!("{} {end:?}", flow.id));
        Ok(end)
    }

    async fn step(&self, step: &StepRun, next: NextStep<'_>) -> ergon::Result<()> {
        // It runs where the body does.
        assert_eq!((flow_id(), attempt()), (step.flow.id.clone(), step.attempt));
        self.note(&format!("{} {} begins, attempt {}", step.name, step.path, step.attempt));
        let outcome = next.run().await;
        self.note(&format!("{} {outcome:?}", step.name));
        outcome
    }
}

#[flow_type(name = "Trip")]
struct Trip {}

#[flow_type]
impl Trip {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        let there = self.go().await?;
        sleep(Duration::from_millis(200)).await;
        Ok(there + self.back().await?)
    }

    #[step]
    async fn go(&self) -> ergon::Result<u32> {
        Ok(1)
    }

    #[step(retry(max_attempts = 3, backoff = "1ms"))]
    async fn back(&self) -> ergon::Result<u32> {
        match attempt() {
            1 => Err(ergon::Error::new("fog")),
            2 => panic!("storm"),
            _ => Ok(2),
        }
    }
}

async fn bodies_are_surrounded_and_replays_are_not(place: Place) {
    let outer = Notes::new("outer");
    let log = place.log().await;
    // Nothing stays in memory: the second run replays the first.
    let worker = Worker::new(log.clone()).register::<Trip>().parked_max(0);
    let worker = worker.middleware(outer.clone()).middleware(outer.beside("inner")).start().await.unwrap();
    let trip = Scheduler::new(log).schedule(Trip {}).id("t").await.unwrap();
    assert_eq!(soon("the trip", trip.result()).await.unwrap(), 3);
    worker.shutdown().await;
    expect![[r#"
        outer: Trip t begins
        inner: Trip t begins
        outer: go 1 begins, attempt 1
        inner: go 1 begins, attempt 1
        inner: go Ok(())
        outer: go Ok(())
        inner: t Suspended
        outer: t Suspended
        outer: Trip t begins
        inner: Trip t begins
        outer: back 3 begins, attempt 1
        inner: back 3 begins, attempt 1
        inner: back Err(fog)
        outer: back Err(fog)
        outer: back 3 begins, attempt 2
        inner: back 3 begins, attempt 2
        inner: back Err(step "back" panicked: storm)
        outer: back Err(step "back" panicked: storm)
        outer: back 3 begins, attempt 3
        inner: back 3 begins, attempt 3
        inner: back Ok(())
        outer: back Ok(())
        inner: t Ended(Completed)
        outer: t Ended(Completed)
    "#]]
    .assert_eq(&outer.take());
}

#[flow_type(name = "Single")]
struct Single {}

#[flow_type]
impl Single {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        self.only().await
    }

    #[step(retry(max_attempts = 3, backoff = "1ms"))]
    async fn only(&self) -> ergon::Result<u32> {
        Ok(state::<AtomicU32>().fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Makes trouble.
#[derive(Clone, Copy)]
enum Guard {
    RefuseOnce,
    Refuse,
    PanicBefore,
    PanicAfter,
    Skip,
    ChangeOutcome,
    RefuseFlow,
    RefuseFlowForNow,
    PanicAtFlow,
    DropFlow,
}

impl Middleware for Guard {
    async fn flow(&self, flow: &FlowInfo, next: NextFlow<'_>) -> ergon::Result<RunEnd> {
        match self {
            Self::RefuseFlow => Err(ergon::Error::permanent(format!("nobody vouches for {}", flow.id))),
            Self::RefuseFlowForNow if flow.epoch < 3 => {
                let error = ergon::Error::new("the guard has a break");
                Err(error.with_retry_after(Duration::from_millis(20)))
            }
            Self::PanicAtFlow => panic!("no guard today"),
            Self::DropFlow if flow.epoch == 1 => {
                tokio::select! {
                    biased;
                    end = next.run() => Ok(end),
                    () = std::future::ready(()) => Ok(RunEnd::Suspended),
                }
            }
            _ => Ok(next.run().await),
        }
    }

    async fn step(&self, step: &StepRun, next: NextStep<'_>) -> ergon::Result<()> {
        match self {
            Self::RefuseOnce if step.attempt == 1 => Err(ergon::Error::new("not yet")),
            Self::Refuse => Err(ergon::Error::permanent(format!("{} is not allowed", step.name))),
            Self::PanicBefore if step.attempt == 1 => panic!("before"),
            Self::PanicAfter if step.attempt == 1 => {
                let _ = next.run().await;
                panic!("after");
            }
            Self::Skip => Ok(()),
            Self::ChangeOutcome => {
                next.run().await?;
                Err(ergon::Error::permanent("it went too well"))
            }
            _ => next.run().await,
        }
    }
}

/// What becomes of a flow under this guard: how often its body ran, if it came to its end.
async fn under(log: &FaultyLog, id: &str, guard: impl Middleware) -> Result<u32, FlowError<ergon::Error>> {
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(Single {}).id(id).await.unwrap();
    let worker = Worker::new(log.clone()).register::<Single>().with_state(AtomicU32::new(0));
    let worker = worker.middleware(guard).start().await.unwrap();
    let result = soon("the guarded flow", flow.result()).await;
    worker.shutdown().await;
    result
}

/// Panics before there is a future.
struct Eager;

impl Middleware for Eager {
    fn flow(&self, flow: &FlowInfo, next: NextFlow<'_>) -> impl Future<Output = ergon::Result<RunEnd>> + Send {
        assert!(flow.id.as_str().is_empty(), "no guard at all");
        async { Ok(next.run().await) }
    }
}

#[tokio::test]
async fn a_panic_before_there_is_a_future_is_one_too() {
    let log = Place::memory().log().await;
    match under(&log, "eager", Eager).await {
        Err(FlowError::Stalled(text)) => assert!(text.ends_with("panicked: no guard at all"), "{text}"),
        other => panic!("{other:?}"),
    }
}

async fn a_step_can_be_refused_but_not_changed(place: Place) {
    let log = place.log().await;
    assert_eq!(under(&log, "once", Guard::RefuseOnce).await.unwrap(), 1, "the first attempt ran no body");
    match under(&log, "never", Guard::Refuse).await {
        Err(FlowError::Failed(error)) => assert_eq!(error.to_string(), "only is not allowed"),
        other => panic!("{other:?}"),
    }
    match under(&log, "skipped", Guard::Skip).await {
        Err(FlowError::Failed(error)) => {
            assert_eq!(error.to_string(), "a middleware did not run step \"only\", and gave no error for it");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(under(&log, "changed", Guard::ChangeOutcome).await.unwrap(), 1, "what is done is done");
}

async fn a_panic_of_a_middleware_is_a_failed_attempt_until_the_body_has_ended(place: Place) {
    let log = place.log().await;
    assert_eq!(under(&log, "before", Guard::PanicBefore).await.unwrap(), 1);
    assert_eq!(under(&log, "after", Guard::PanicAfter).await.unwrap(), 1, "what is done is done");
}

async fn a_refused_flow_is_stalled_and_nothing_is_lost(place: Place) {
    let log = place.log().await;
    for (id, guard, reason) in [
        ("refused", Guard::RefuseFlow, "a middleware refused the flow: nobody vouches for refused"),
        (
            "panic",
            Guard::PanicAtFlow,
            "a middleware refused the flow: a middleware of the flow panicked: no guard today",
        ),
    ] {
        match under(&log, id, guard).await {
            Err(FlowError::Stalled(text)) => assert_eq!(text, reason),
            other => panic!("{other:?}"),
        }
        let flow = Scheduler::new(log.clone()).handle::<Single>(FlowId::new(id).unwrap());
        flow.retry().await.unwrap();
        let worker = Worker::new(log.clone()).register::<Single>().with_state(AtomicU32::new(0)).start().await.unwrap();
        assert_eq!(soon("the flow that is allowed now", flow.result()).await.unwrap(), 1);
        worker.shutdown().await;
    }
}

async fn a_flow_that_is_refused_for_now_is_claimed_again(place: Place) {
    let log = place.log().await;
    assert_eq!(under(&log, "later", Guard::RefuseFlowForNow).await.unwrap(), 1);
    let info = log.flow(&FlowId::new("later").unwrap()).await.unwrap().unwrap().info;
    assert_eq!((info.state, info.epoch), (FlowState::Completed, 3), "refused twice");
    let executor = Executor::new(log.clone()).with_state(AtomicU32::new(0)).middleware(Guard::RefuseFlowForNow);
    assert_eq!(soon("the executor's flow", executor.run(Single {}).id("e").into_future()).await.unwrap(), 1);
}

/// It would be refused again and again otherwise, as fast as it can be claimed.
async fn a_flow_whose_time_is_up_fails_though_it_is_refused(place: Place) {
    #[flow_type]
    struct Hasty {}

    #[flow_type]
    impl Hasty {
        #[flow(timeout = "50ms")]
        async fn run(&self) -> ergon::Result<u32> {
            Ok(1)
        }
    }

    struct NotToday;

    impl Middleware for NotToday {
        async fn flow(&self, _: &FlowInfo, _: NextFlow<'_>) -> ergon::Result<RunEnd> {
            Err(ergon::Error::new("not today").with_retry_after(Duration::from_secs(24 * 3600)))
        }
    }

    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Hasty>().middleware(NotToday).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Hasty {}).id("hasty").await.unwrap();
    let error = soon("the end of the time limit", flow.result()).await.unwrap_err();
    assert!(matches!(&error, FlowError::Fault(error) if error.kind() == ErrorKind::Timeout), "{error:?}");
    assert!(flow.status().await.unwrap().epoch <= 3);
    let executor = Executor::new(log).middleware(NotToday);
    let error = soon("the executor's flow", executor.run(Hasty {}).id("e").into_future()).await.unwrap_err();
    assert!(matches!(&error, FlowError::Fault(error) if error.kind() == ErrorKind::Timeout), "{error:?}");
    worker.shutdown().await;
}

async fn a_flow_that_is_dropped_by_a_middleware_goes_on_later(place: Place) {
    let log = place.log().await;
    assert_eq!(under(&log, "dropped", Guard::DropFlow).await.unwrap(), 1);
}

async fn an_executor_has_middleware_too(place: Place) {
    let notes = Notes::new("note");
    let log = place.log().await;
    let executor =
        |guard| Executor::new(log.clone()).with_state(AtomicU32::new(0)).middleware(notes.clone()).middleware(guard);
    assert_eq!(executor(Guard::RefuseOnce).run(Single {}).id("e").await.unwrap(), 1);
    expect![[r"
        note: Single e begins
        note: only 1 begins, attempt 1
        note: only Err(not yet)
        note: only 1 begins, attempt 2
        note: only Ok(())
        note: e Ended(Completed)
    "]]
    .assert_eq(&notes.take());
    let refused = executor(Guard::RefuseFlow).run(Single {}).id("r").await.unwrap_err();
    assert!(matches!(refused, FlowError::Stalled(_)), "{refused}");
    let info = state_of(&log, &FlowId::new("r").unwrap(), FlowState::Stalled).await;
    assert_eq!(info.records, 0);
    assert_eq!(log.history(&info.id, 0, 10).await.unwrap(), []);
}

both!(
    bodies_are_surrounded_and_replays_are_not,
    a_step_can_be_refused_but_not_changed,
    a_panic_of_a_middleware_is_a_failed_attempt_until_the_body_has_ended,
    a_refused_flow_is_stalled_and_nothing_is_lost,
    a_flow_that_is_refused_for_now_is_claimed_again,
    a_flow_whose_time_is_up_fails_though_it_is_refused,
    a_flow_that_is_dropped_by_a_middleware_goes_on_later,
    an_executor_has_middleware_too,
);
