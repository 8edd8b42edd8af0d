//! Children that live on their own: started exactly once, or refused where their flow hears of it.

use std::time::Duration;

use ergon::{
    ErrorKind,
    prelude::*,
    storage::{ExecutionLog, FlowState, ManualClock, Phase},
};
use ergon_tests::{Fault, FaultyLog, Place, TestClock, Trace, both, note, soon, state_of, until};

const LEASE: Duration = Duration::from_secs(60);

both!(
    a_refused_start_is_heard_of,
    a_start_is_told_the_same_after_a_crash_at_any_write,
    a_refusal_behind_many_messages_is_found,
    a_start_waits_for_the_log,
    a_start_beside_a_long_wait_is_told_at_once,
);

/// Starts an errand, and notes what it is told.
#[flow_type]
struct Sends {
    errand: String,
    beside: bool,
}

#[flow_type]
impl Sends {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        self.say("before").await?;
        let start = child(Errand).id(&self.errand).start_detached();
        let told = if self.beside {
            // Both are awaited, and one of them for long.
            let (told, ()) = tokio::join!(
                async {
                    let told = start.await;
                    self.say("told").await.map(|()| told)
                },
                sleep(Duration::from_secs(3_600))
            );
            told?
        } else {
            start.await
        };
        let told = match told {
            Ok(id) => format!("started {id}"),
            Err(error) if error.kind() == ErrorKind::Conflict => error.to_string(),
            Err(error) => return Err(error),
        };
        self.say(&told).await?;
        Ok(told)
    }

    #[step]
    async fn say(&self, what: &str) -> ergon::Result<()> {
        note(what);
        Ok(())
    }
}

/// The child.
#[flow_type]
struct Errand;

#[flow_type]
impl Errand {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        self.go().await
    }

    #[step]
    async fn go(&self) -> ergon::Result<()> {
        note(format!("went for {}", ergon::flow_id()));
        Ok(())
    }
}

const REFUSED: &str =
    r#"the child flow was not started: the id "taken" belongs to a flow that this call did not start"#;

async fn worker(log: &FaultyLog, trace: &Trace, parked: usize) -> ergon::WorkerHandle {
    let worker = Worker::new(log.clone()).register::<Sends>().register::<Errand>().with_state(trace.clone());
    worker.parked_max(parked).lease(LEASE).start().await.unwrap()
}

/// A stranger's flow that has the id, far away.
async fn taken(log: &FaultyLog) -> FlowHandle<(), ergon::Error> {
    Scheduler::new(log.clone()).schedule(Errand).id("taken").delay(Duration::from_secs(1_000_000)).await.unwrap()
}

fn sends(errand: &str) -> Sends {
    Sends { errand: errand.into(), beside: false }
}

async fn a_refused_start_is_heard_of(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let stranger = taken(&log).await;
    let worker = worker(&log, &trace, 0).await;
    let flow = Scheduler::new(log.clone()).schedule(sends("taken")).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), REFUSED);
    assert_eq!(stranger.status().await.unwrap().state, FlowState::Scheduled);
    assert_eq!(trace.take(), ["before", REFUSED]);
    worker.shutdown().await;
}

async fn a_start_is_told_the_same_after_a_crash_at_any_write(place: Place) {
    for errand in ["free", "taken"] {
        let told = if errand == "taken" { REFUSED } else { "started free" };
        for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer, Fault::Refuse] {
            for write in 1.. {
                let place = if place.is_file() { Place::sqlite() } else { Place::memory() };
                // Leases end by themselves, in a fraction of a second.
                let log = place.log_at(TestClock::new(400)).await;
                let trace = Trace::new();
                taken(&log).await;
                let flow = Scheduler::new(log.clone()).schedule(sends(errand)).id("sends").await.unwrap();
                let process = log.another();
                process.order(write, fault);
                let first = worker(&process, &trace, 10).await;
                let crashed = soon("the end of a life", async {
                    tokio::select! {
                        biased;
                        () = process.crashed() => true,
                        _ = flow.result() => false,
                    }
                });
                let crashed = crashed.await;
                drop(first);
                let second = worker(&log, &trace, 10).await;
                assert_eq!(soon("the result", flow.result()).await.unwrap(), told, "{fault:?} at {write}");
                if errand == "free" {
                    until("the child", || async { trace.count("went for free") > 0 }).await;
                }
                let history = log.history(flow.id(), 0, 100).await.unwrap();
                let starts = history.iter().filter(|record| &*record.name == "Errand");
                let phases: Vec<_> = starts.map(|record| record.phase).collect();
                let end = if errand == "taken" { Phase::Failed } else { Phase::Completed };
                assert_eq!(phases, [Phase::Pending, end], "{fault:?} at {write}");
                soon("the shutdown", second.shutdown()).await;
                if !crashed && process.writes() < write {
                    assert!(write > 2, "there are more writes than {write}");
                    break;
                }
            }
        }
    }
}

async fn a_refusal_behind_many_messages_is_found(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    taken(&log).await;
    let flow = Scheduler::new(log.clone()).schedule(sends("taken")).await.unwrap();
    for number in 0..250 {
        flow.signal("nobody waits for it", &number).await.unwrap();
    }
    // The process dies with the answer to the start on its way: the second write.
    let process = log.another();
    process.order(2, Fault::CrashAfter);
    let first = worker(&process, &trace, 10).await;
    soon("the crash", process.crashed()).await;
    drop(first);
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    assert_eq!(history.last().map(|record| (&*record.name, record.phase)), Some(("Errand", Phase::Pending)));
    clock.advance(LEASE);
    let second = worker(&log, &trace, 10).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), REFUSED);
    second.shutdown().await;
}

async fn a_start_waits_for_the_log(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let process = log.another();
    let worker = worker(&process, &trace, 10).await;
    process.hold("messages");
    let flow = Scheduler::new(log.clone()).schedule(sends("free")).await.unwrap();
    until("the question", || async { process.calls().contains_key("messages") }).await;
    let history = log.history(flow.id(), 0, 100).await.unwrap();
    assert_eq!(history.last().map(|record| record.phase), Some(Phase::Pending));
    assert_eq!(trace.count("started free"), 0);
    process.free("messages");
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "started free");
    worker.shutdown().await;
}

async fn a_start_beside_a_long_wait_is_told_at_once(place: Place) {
    for parked in [0, 10] {
        let place = if place.is_file() { Place::sqlite() } else { Place::memory() };
        let clock = ManualClock::new();
        let log = place.log_at(clock.clone()).await;
        let trace = Trace::new();
        taken(&log).await;
        let worker = worker(&log, &trace, parked).await;
        let flow = Scheduler::new(log.clone()).schedule(Sends { errand: "taken".into(), beside: true }).await.unwrap();
        until("it to be told", || async { trace.count("told") == 1 }).await;
        state_of(&log, flow.id(), FlowState::Suspended).await;
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(soon("the result", flow.result()).await.unwrap(), REFUSED);
        worker.shutdown().await;
    }
}
