//! Things that meet at an unlucky moment in the engine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use ergon::{
    FlowError, Timestamp,
    prelude::*,
    storage::{CallKind, Clock, ExecutionLog, FlowState, Limits, ManualClock, Phase},
};
use ergon_tests::{Fault, FaultyLog, Gate, Place, TestClock, Trace, both, note, soon, state_of, until};
use futures::future::BoxFuture;

const LEASE: Duration = Duration::from_secs(1_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

both!(
    a_limit_that_passes_during_a_commit_costs_nothing,
    a_child_that_ends_before_its_call_is_made_again_is_heard,
    an_unreadable_mailbox_is_asked_at_intervals,
    an_unreadable_history_is_asked_at_intervals,
    a_child_whose_call_was_dropped_at_the_end_is_started_once,
    a_child_that_is_started_before_all_is_replayed_is_not_forgotten,
    code_that_ends_while_it_is_suspended_is_replayed,
    a_wait_in_memory_gives_way_to_a_shutdown,
    a_commit_that_is_refused_for_good_stalls,
    an_end_that_is_refused_for_good_stalls,
);

/// Where code is late.
#[derive(Clone)]
struct Late(Gate);

/// Goes through one unlucky moment.
#[flow_type]
struct Moment {
    which: String,
}

#[flow_type]
impl Moment {
    #[flow(timeout = "1h", allow(nondeterminism))]
    async fn run(&self) -> ergon::Result<String> {
        match self.which.as_str() {
            "gate" => {
                let passed = self.pass().await?;
                self.note("after").await.map(|()| passed)
            }
            "late child" => {
                self.note("before").await?;
                // A replay comes to the call later than the child to its end.
                state::<Late>().0.pass().await;
                child(Kid).await
            }
            "mailbox" => tokio::select! {
                word = signal("word") => word,
                passed = self.pass() => passed,
            },
            "history" => {
                let many = (0..1_100).map(|_| self.quiet());
                futures::future::try_join_all(many).await?;
                signal("word").await
            }
            "orphan" => {
                self.note("before").await?;
                drop(child(Kid).id("orphan").start());
                signal("word").await
            }
            "last words" => {
                let mut unheard = std::pin::pin!(self.unheard());
                let word: String = tokio::select! {
                    biased;
                    () = async { unheard.as_mut().await.unwrap_or_default() } => "heard".into(),
                    word = signal("word") => word?,
                };
                // The first life waits here; the next one has an outcome yet to be released when its code ends.
                state::<Gate>().pass().await;
                drop(child(Kid).id("orphan").start());
                Ok(word)
            }
            "ends" => tokio::select! {
                () = sleep(HOUR / 2) => Ok("durable".into()),
                () = async { state::<Gate>().pass().await } => Ok("not durable".into()),
            },
            _ => {
                sleep(HOUR / 2).await;
                Ok("slept".into())
            }
        }
    }

    #[step]
    async fn pass(&self) -> ergon::Result<String> {
        note("began");
        state::<Gate>().pass().await;
        Ok("passed".into())
    }

    #[step]
    async fn note(&self, what: &str) -> ergon::Result<()> {
        note(what);
        Ok(())
    }

    /// Ends in the pass in which a signal comes, and not by itself.
    #[step]
    async fn unheard(&self) -> ergon::Result<()> {
        let trace = ergon_tests::trace();
        note("began");
        std::future::poll_fn(|_| if trace.count("go") > 0 { Poll::Ready(()) } else { Poll::Pending }).await;
        note("ended");
        Ok(())
    }

    #[step]
    async fn quiet(&self) -> ergon::Result<()> {
        Ok(())
    }
}

/// A child.
#[flow_type]
struct Kid;

#[flow_type]
impl Kid {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.grow().await
    }

    #[step]
    async fn grow(&self) -> ergon::Result<String> {
        note("grew");
        state::<Gate>().pass().await;
        Ok("grown up".into())
    }
}

fn worker(log: &FaultyLog, trace: &Trace, gate: &Gate) -> Worker {
    let worker = Worker::new(log.clone()).register::<Moment>().register::<Kid>();
    worker.with_state(trace.clone()).with_state(gate.clone()).lease(LEASE)
}

async fn schedule(log: &FaultyLog, which: &str) -> FlowHandle<String, ergon::Error> {
    Scheduler::new(log.clone()).schedule(Moment { which: which.into() }).await.unwrap()
}

/// A clock that counts how often it is read.
#[derive(Debug, Clone)]
struct CountingClock {
    clock: ManualClock,
    reads: Arc<AtomicU64>,
}

impl Clock for CountingClock {
    fn now(&self) -> Timestamp {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Clock::now(&self.clock)
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        self.clock.sleep_until(at)
    }
}

async fn a_limit_that_passes_during_a_commit_costs_nothing(place: Place) {
    let clock = CountingClock { clock: ManualClock::new(), reads: Arc::default() };
    let log = place.log_with(Arc::new(clock.clone()), Limits::default()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    // A runtime of its own, which a flow that spins would keep to itself.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let worker = runtime.spawn(worker(&process, &trace, &gate).start()).await.unwrap().unwrap();
    let flow = schedule(&log, "gate").await;
    until("the step to begin", || async { trace.count("began") == 1 }).await;
    process.hold("commit");
    gate.open();
    until("the commit", || async { process.calls().contains_key("commit") }).await;
    clock.clock.advance(2 * HOUR);
    let before = clock.reads.load(Ordering::Relaxed);
    let turns = async {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
    };
    soon("others to have their turn", runtime.spawn(turns)).await.unwrap();
    let reads = clock.reads.load(Ordering::Relaxed) - before;
    assert!(reads < 50, "it looked at the clock {reads} times");
    process.free("commit");
    assert_eq!(
        soon("the limit", flow.result()).await.unwrap_err().to_string(),
        "the flow failed: the flow exceeded its time limit"
    );
    soon("the shutdown", runtime.spawn(worker.shutdown())).await.unwrap();
    runtime.shutdown_background();
}

async fn a_child_that_ends_before_its_call_is_made_again_is_heard(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let late = Gate::closed();
    late.let_one_through();
    let first = worker(&log, &trace, &gate).with_state(Late(late.clone())).parked_max(0).start().await.unwrap();
    let flow = schedule(&log, "late child").await;
    until("the child to grow", || async { trace.count("grew") == 1 }).await;
    let epoch = state_of(&log, flow.id(), FlowState::Suspended).await.epoch;
    gate.open();
    until("the replay", || async { flow.status().await.unwrap().epoch > epoch }).await;
    log.at_rest().await;
    late.open();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "grown up");
    assert_eq!(trace.take(), ["before", "grew"]);
    first.shutdown().await;
}

async fn an_unreadable_mailbox_is_asked_at_intervals(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    process.break_down("messages", true);
    let worker = worker(&process, &trace, &gate).start().await.unwrap();
    let flow = schedule(&log, "mailbox").await;
    until("the step to begin", || async { trace.count("began") == 1 }).await;
    let asked = || process.calls().get("messages").copied().unwrap_or_default();
    until("the first question", || async { asked() > 0 }).await;
    // Each message is a hint; hints must not be what it asks at.
    let before = asked();
    for number in 0..200 {
        flow.signal("another word", &number).await.unwrap();
        tokio::task::yield_now().await;
    }
    until("another question", || async { asked() > before + 1 }).await;
    assert!(asked() < before + 50, "{} questions", asked() - before);
    flow.signal("word", "heard").await.unwrap();
    process.break_down("messages", false);
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "heard");
    worker.shutdown().await;
}

async fn an_unreadable_history_is_asked_at_intervals(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let first = worker(&log, &trace, &gate).start().await.unwrap();
    let flow = schedule(&log, "history").await;
    state_of(&log, flow.id(), FlowState::Suspended).await;
    first.shutdown().await;
    let process = log.another();
    process.break_down("history", true);
    let second = worker(&process, &trace, &gate).start().await.unwrap();
    flow.signal("word", "read").await.unwrap();
    let asked = || process.calls().get("history").copied().unwrap_or_default();
    let began = std::time::Instant::now();
    until("some questions", || async { asked() >= 4 }).await;
    // Pauses of 20, 40 and 80 ms.
    assert!(began.elapsed() >= Duration::from_millis(140));
    assert_eq!(flow.status().await.unwrap().state, FlowState::Running);
    process.break_down("history", false);
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "read");
    second.shutdown().await;
}

async fn a_child_whose_call_was_dropped_at_the_end_is_started_once(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let worker = worker(&log, &trace, &gate).parked_max(0).start().await.unwrap();
    let flow = schedule(&log, "orphan").await;
    let kid = |id: &str| Scheduler::new(log.clone()).handle::<Kid>(FlowId::new(id).unwrap());
    until("the child", || async { kid("orphan").status().await.is_ok() }).await;
    state_of(&log, flow.id(), FlowState::Suspended).await;
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    assert_eq!(history.last().map(|record| (record.kind, record.phase)), Some((CallKind::Child, Phase::Pending)));
    assert_eq!(soon("the child's result", kid("orphan").result()).await.unwrap(), "grown up");
    // The replay makes the call again, drops it again, and starts nothing.
    flow.signal("word", "done").await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "done");
    assert_eq!(trace.take(), ["before", "grew"]);
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    let of_the_child: Vec<_> = history.iter().filter(|record| record.kind == CallKind::Child).collect();
    assert_eq!(of_the_child.len(), 1, "nobody waits for it: {of_the_child:?}");
    worker.shutdown().await;
}

async fn a_child_that_is_started_before_all_is_replayed_is_not_forgotten(place: Place) {
    let log = place.log_at(TestClock::new(1_000)).await;
    let (trace, gate, opened) = (Trace::new(), Gate::closed(), Gate::closed());
    opened.open();
    let process = log.another();
    let first = worker(&process, &trace, &gate).lease(HOUR / 60).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Moment { which: "last words".into() }).await.unwrap();
    until("the step to begin", || async { trace.count("began") == 1 }).await;
    trace.add("go");
    flow.signal("word", "said").await.unwrap();
    until("two outcomes", || async { flow.status().await.unwrap().records == 2 }).await;
    assert_eq!(trace.take(), ["began", "go", "ended"]);
    process.crash().await;
    drop(first);
    let second = worker(&log, &trace, &opened).start().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "said");
    let kid = Scheduler::new(log.clone()).handle::<Kid>(FlowId::new("orphan").unwrap());
    assert_eq!(soon("the child's result", kid.result()).await.unwrap(), "grown up");
    assert_eq!(trace.take(), ["grew"]);
    second.shutdown().await;
}

async fn code_that_ends_while_it_is_suspended_is_replayed(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    process.hold("commit");
    let worker = worker(&process, &trace, &gate).start().await.unwrap();
    let flow = schedule(&log, "ends").await;
    until("the suspension to be asked for", || async { process.calls().contains_key("commit") }).await;
    // The code goes on because of something that no log knows of, and ends.
    gate.open();
    tokio::task::yield_now().await;
    process.free("commit");
    state_of(&log, flow.id(), FlowState::Suspended).await;
    until("the slot to be free", || async { worker.running() == 0 }).await;
    clock.advance(HOUR / 2);
    let result = soon("the result", flow.result()).await;
    assert!(matches!(result.as_deref(), Ok("durable" | "not durable")), "{result:?}");
    worker.shutdown().await;
}

async fn a_wait_in_memory_gives_way_to_a_shutdown(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let first = worker(&log, &trace, &gate).moment(HOUR).grace(LEASE).start().await.unwrap();
    let flow = schedule(&log, "timer").await;
    until("the timer", || async { flow.status().await.unwrap().records == 1 }).await;
    assert_eq!(flow.status().await.unwrap().state, FlowState::Running);
    soon("the shutdown", first.shutdown()).await;
    let info = flow.status().await.unwrap();
    assert_eq!((info.state, info.records), (FlowState::Scheduled, 1));
    let second = worker(&log, &trace, &gate).start().await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    clock.advance(HOUR / 2);
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "slept");
    second.shutdown().await;
}

async fn a_commit_that_is_refused_for_good_stalls(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let process = log.another();
    process.order(2, Fault::Reject);
    let worker = worker(&process, &trace, &gate).with_state(Late(gate.clone())).start().await.unwrap();
    let flow = schedule(&log, "late child").await;
    let error = soon("the flow to stall", flow.result()).await.unwrap_err();
    let FlowError::Stalled(reason) = error else { panic!("{error:?}") };
    assert_eq!(reason, "the log refused what the flow wrote: it cannot be, as ordered");
    assert_eq!(flow.status().await.unwrap().records, 0);
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "grown up");
    worker.shutdown().await;
}

/// The last step's outcome and the flow's end are one commit: the step runs again when someone has looked into it.
async fn an_end_that_is_refused_for_good_stalls(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let process = log.another();
    // After the claim and the outcome of the step at the gate.
    process.order(3, Fault::Reject);
    let worker = worker(&process, &trace, &gate).start().await.unwrap();
    let flow = schedule(&log, "gate").await;
    let error = soon("the flow to stall", flow.result()).await.unwrap_err();
    let FlowError::Stalled(reason) = error else { panic!("{error:?}") };
    assert_eq!(reason, "the log refused what the flow wrote: it cannot be, as ordered");
    assert_eq!(trace.count("after"), 1);
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "passed");
    assert_eq!(trace.count("after"), 2);
    worker.shutdown().await;
}
