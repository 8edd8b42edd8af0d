//! Flows that stay where they ran, and sessions.

use std::time::Duration;

use ergon::{
    Admin, Affinity, Filter, FlowHandle, SessionLost, Takeover, WorkerHandle,
    admin::{Cut, Problem, Wait},
    prelude::*,
    session, session_with, set_affinity,
    storage::{ExecutionLog, FlowState, ManualClock},
};
use ergon_tests::{FaultyLog, Gate, Place, Trace, both, note, soon, state_of, until};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(10);
const TAKEOVER: Duration = Duration::from_secs(60);

both!(
    a_flow_goes_on_where_it_ran,
    a_preferred_worker_that_is_gone_is_not_waited_for_long,
    a_session_stays_on_its_worker_over_waits,
    a_session_survives_a_restart_under_the_same_name,
    a_lost_session_is_told_before_any_step_of_it_begins,
    the_loss_of_a_session_is_replayed,
    a_session_after_a_reset_is_another,
    a_worker_that_cannot_tell_of_a_loss_keeps_its_lease_and_gives_the_flow_back,
    a_session_of_a_worker_that_is_heard_of_is_not_taken_over,
    what_never_moves_is_told_of,
    who_is_waited_for_is_told,
    a_session_within_a_session_fails_the_flow,
    the_end_of_a_session_sets_the_flow_free,
    a_flow_that_failed_in_a_session_goes_on_in_it_where_it_was,
    a_flow_that_failed_in_a_session_has_lost_it_elsewhere,
    a_fork_out_of_a_session_has_lost_it_elsewhere,
    a_session_that_was_lost_is_not_when_that_is_taken_back,
    a_session_is_lost_again_after_it_was_taken_back,
    a_worker_whose_slots_are_taken_is_heard_of,
);

/// The name of the worker, for the steps.
struct Name(&'static str);

#[step]
async fn place(label: &str) -> ergon::Result<String> {
    let place = state::<Name>().0;
    note(format!("{label} on {place}"));
    Ok(place.into())
}

/// Waits at the gate, on the worker that it began on.
#[step]
async fn long(label: &str) -> ergon::Result<String> {
    let place = state::<Name>().0;
    note(format!("{label} on {place}"));
    state::<Gate>().pass().await;
    Ok(place.into())
}

#[flow(affinity(prefer = "5s"))]
async fn warm(rounds: u32) -> ergon::Result<Vec<String>> {
    let mut places = Vec::new();
    for _ in 0..rounds {
        places.push(place("work").await?);
        signal::<()>("go").await?;
    }
    Ok(places)
}

#[flow]
async fn convert(file: String) -> ergon::Result<Vec<String>> {
    let mut lost = Vec::new();
    loop {
        let outcome = session(async || {
            place(&format!("load {file}")).await?;
            signal::<()>("go").await?;
            long("convert").await?;
            place("store").await
        });
        match outcome.await {
            Ok(stored) => {
                lost.push(stored?);
                place("report").await?;
                signal::<()>("end").await?;
                return Ok(lost);
            }
            Err(SessionLost { worker, by, .. }) => lost.push(format!("{worker} to {by}")),
        }
    }
}

#[flow]
async fn rooted(twice: bool) -> ergon::Result<String> {
    let there = session_with(Takeover::Never, async || {
        if twice {
            _ = session(async || place("inner").await).await?;
        }
        signal::<()>("go").await?;
        place("work").await
    });
    there.await?
}

/// Works on a file in a session, and fails as long as the gate is closed.
#[flow]
async fn fragile() -> ergon::Result<Vec<String>> {
    let mut places = Vec::new();
    loop {
        let outcome = session(async || {
            place("load").await?;
            mend().await
        });
        match outcome.await {
            Ok(mended) => {
                places.push(mended?);
                return Ok(places);
            }
            Err(SessionLost { worker, by, .. }) => places.push(format!("{worker} to {by}")),
        }
    }
}

#[step(retry = none)]
async fn mend() -> ergon::Result<String> {
    let place = state::<Name>().0;
    note(format!("mend on {place}"));
    if state::<Gate>().is_open() { Ok(place.into()) } else { Err(ergon::Error::new("broken")) }
}

/// Decides in the middle that it is to stay where it is.
#[flow]
async fn settles() -> ergon::Result<String> {
    set_affinity(Affinity::Require { takeover: Takeover::After(Affinity::TAKEOVER_MIN) });
    long("settle").await?;
    signal::<()>("go").await?;
    place("work").await
}

async fn start(log: &FaultyLog, name: &'static str, trace: &Trace, gate: &Gate) -> WorkerHandle {
    let worker = Worker::new(log.clone()).register::<warm>().register::<convert>().register::<rooted>();
    let worker = worker.register::<fragile>().register::<settles>().register::<naps>().slots(1);
    let worker = worker.with_state(trace.clone()).with_state(gate.clone()).with_state(Name(name));
    worker.name(name).lease(LEASE).start().await.unwrap()
}

/// Lets the time pass in steps that no living worker's lease is too short for.
async fn pass(clock: &ManualClock, logs: &[&FaultyLog], time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(SECOND);
        clock.advance(step);
        for log in logs {
            log.at_rest().await;
        }
        left -= step;
    }
}

async fn a_flow_goes_on_where_it_ran(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let ann = start(&log, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(warm(5)).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    let bob_log = log.another();
    let bob = start(&bob_log, "bob", &trace, &gate).await;
    for _ in 0..5 {
        state_of(&log, flow.id(), FlowState::Suspended).await;
        flow.signal("go", &()).await.unwrap();
        until("the signal to be taken", || async { flow.status().await.unwrap().state != FlowState::Scheduled }).await;
    }
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann"; 5]);
    ann.shutdown().await;
    bob.shutdown().await;
}

async fn a_preferred_worker_that_is_gone_is_not_waited_for_long(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(warm(2)).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    dead.crash().await;
    drop(ann);
    let bob = start(&log, "bob", &trace, &gate).await;
    flow.signal("go", &()).await.unwrap();
    pass(&clock, &[&log], SECOND * 4).await;
    assert_eq!(trace.take(), ["work on ann"]);
    pass(&clock, &[&log], SECOND).await;
    state_of(&log, flow.id(), FlowState::Suspended).await;
    assert_eq!(trace.take(), ["work on bob"]);
    flow.signal("go", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann", "bob"]);
    bob.shutdown().await;
}

async fn a_session_stays_on_its_worker_over_waits(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let ann = start(&log, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    let bob_log = log.another();
    let bob = start(&bob_log, "bob", &trace, &gate).await;
    // For long: the worker is heard of though it has nothing to do.
    pass(&clock, &[&log, &bob_log], TAKEOVER * 3).await;
    flow.signal("go", &()).await.unwrap();
    until("the step to begin", || async { trace.count("convert on ann") == 1 }).await;
    gate.open();
    flow.signal("end", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann"]);
    assert_eq!(trace.take()[..3], ["load film on ann", "convert on ann", "store on ann"]);
    ann.shutdown().await;
    bob.shutdown().await;
}

async fn a_session_survives_a_restart_under_the_same_name(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    dead.crash().await;
    drop(ann);
    let bob = start(&log.another(), "bob", &trace, &gate).await;
    flow.signal("go", &()).await.unwrap();
    let again = start(&log, "ann", &trace, &gate).await;
    until("the step to begin", || async { trace.count("convert on ann") == 1 }).await;
    gate.open();
    flow.signal("end", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann"]);
    again.shutdown().await;
    bob.shutdown().await;
}

async fn a_lost_session_is_told_before_any_step_of_it_begins(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    flow.signal("go", &()).await.unwrap();
    until("the step to begin", || async { trace.count("convert on ann") == 1 }).await;
    dead.crash().await;
    drop(ann);
    let bob = start(&log, "bob", &trace, &gate).await;
    pass(&clock, &[&log], SECOND * 55).await;
    assert_eq!(trace.take(), ["load film on ann", "convert on ann"]);
    pass(&clock, &[&log], SECOND * 10).await;
    state_of(&log, flow.id(), FlowState::Suspended).await;
    assert_eq!(trace.take(), ["load film on bob"], "what was local is done again, and nothing before that");
    gate.open();
    flow.signal("go", &()).await.unwrap();
    flow.signal("end", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann to bob", "bob"]);
    assert_eq!(log.flow(flow.id()).await.unwrap().unwrap().info.labels.len(), 0, "nothing is left of the session");
    bob.shutdown().await;
}

async fn a_worker_that_cannot_tell_of_a_loss_keeps_its_lease_and_gives_the_flow_back(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    dead.crash().await;
    drop(ann);
    flow.signal("go", &()).await.unwrap();
    pass(&clock, &[&log], SECOND * 65).await;

    let slow = log.another();
    slow.hold("messages");
    let bob = start(&slow, "bob", &trace, &gate).await;
    until("bob to be about to tell", || async { slow.calls().contains_key("messages") }).await;
    let epoch = log.flow(flow.id()).await.unwrap().unwrap().info.epoch;
    pass(&clock, &[&log], LEASE * 3).await;
    let info = log.flow(flow.id()).await.unwrap().unwrap().info;
    assert_eq!((info.state, info.epoch), (FlowState::Running, epoch), "its lease was renewed all the while");
    soon("the shutdown", bob.shutdown()).await;
    assert_eq!(log.flow(flow.id()).await.unwrap().unwrap().info.state, FlowState::Scheduled, "it was given back");
    assert_eq!(trace.take(), ["load film on ann"]);

    gate.open();
    // It has been bob's since he claimed it.
    pass(&clock, &[&log], SECOND * 65).await;
    let cleo = start(&log, "cleo", &trace, &gate).await;
    flow.signal("go", &()).await.unwrap();
    flow.signal("end", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann to cleo", "cleo"]);
    cleo.shutdown().await;
}

async fn the_loss_of_a_session_is_replayed(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let mut dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    dead.crash().await;
    drop(ann);
    // Each of them loads the film, and dies; the last one is the first again.
    for name in ["bob", "cleo", "ann"] {
        dead = log.another();
        let worker = start(&dead, name, &trace, &gate).await;
        flow.signal("go", &()).await.unwrap();
        pass(&clock, &[&dead], TAKEOVER + SECOND * 10).await;
        until("the step to begin", || async { trace.count(&format!("load film on {name}")) >= 1 }).await;
        if name != "ann" {
            dead.crash().await;
            drop(worker);
            continue;
        }
        gate.open();
        flow.signal("go", &()).await.unwrap();
        flow.signal("end", &()).await.unwrap();
        let all = soon("the result", flow.result()).await.unwrap();
        assert_eq!(all, ["ann to bob", "bob to cleo", "cleo to ann", "ann"]);
        worker.shutdown().await;
    }
}

/// The flow is taken back before it hears of the loss, which is none of the session that it begins then.
async fn a_session_after_a_reset_is_another(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    dead.crash().await;
    drop(ann);
    let bob_log = log.another();
    bob_log.hold("commit");
    let bob = start(&bob_log, "bob", &trace, &gate).await;
    flow.signal("go", &()).await.unwrap();
    clock.advance(TAKEOVER + SECOND * 10);
    let messages = async || log.messages(flow.id(), &[], 0, 10).await.unwrap().len();
    until("the loss to be told", || async { messages().await == 2 }).await;
    Admin::new(log.clone()).reset(flow.id(), Cut::Start).await.unwrap();
    bob_log.free("commit");
    gate.open();
    flow.signal("end", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["bob"]);
    bob.shutdown().await;
}

async fn a_session_of_a_worker_that_is_heard_of_is_not_taken_over(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let ann = start(&log, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    flow.signal("go", &()).await.unwrap();
    until("the step to begin", || async { trace.count("convert on ann") == 1 }).await;
    let bob_log = log.another();
    let bob = start(&bob_log, "bob", &trace, &gate).await;
    // Its lease ends, for it cannot renew it; but it claims, and so it is there.
    log.hold("heartbeat");
    clock.advance(LEASE);
    until("the step to begin again", || async { trace.count("convert on ann") == 2 }).await;
    log.free("heartbeat");
    gate.open();
    flow.signal("end", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann"]);
    ann.shutdown().await;
    bob.shutdown().await;
}

async fn what_never_moves_is_told_of(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(rooted(false)).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    dead.crash().await;
    drop(ann);
    let bob = start(&log, "bob", &trace, &gate).await;
    flow.signal("go", &()).await.unwrap();
    let admin = Admin::new(log.clone());
    assert!(admin.attention(&Filter::all(), None, 10).await.unwrap().is_empty());
    let described = admin.describe(flow.id()).await.unwrap();
    let is_for_ann = |wait: &Wait| matches!(wait, Wait::Worker { bound_to: Some(worker), .. } if &**worker == "ann");
    assert!(described.waits.iter().any(is_for_ann), "{described}");
    assert!(described.to_string().contains("for worker \"ann\", where it ran"), "{described}");
    pass(&clock, &[&log], Affinity::ABANDONED_AFTER * 3).await;
    let attention = admin.attention(&Filter::all(), None, 10).await.unwrap();
    assert_eq!(attention.flows.len(), 1);
    assert_eq!(attention.flows[0].problem, Problem::Abandoned("ann".into()));
    assert!(attention.to_string().contains("bound to worker \"ann\", which is gone"), "{attention}");
    assert_eq!(trace.take(), [""; 0]);
    let again = start(&log.another(), "ann", &trace, &gate).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "ann");
    assert!(admin.attention(&Filter::all(), None, 10).await.unwrap().is_empty());
    again.shutdown().await;
    bob.shutdown().await;
}

#[flow(affinity(require = "2m"))]
async fn naps() -> ergon::Result<String> {
    let before = place("before").await?;
    sleep(LEASE * 2).await;
    Ok(format!("{before}, {}", place("after").await?))
}

/// Also one that slept, and that somebody else has passed over: its timer tells nothing then.
async fn who_is_waited_for_is_told(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(naps()).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    let admin = Admin::new(log.clone());
    let is_for_ann = |wait: &Wait| matches!(wait, Wait::Worker { bound_to: Some(worker), .. } if &**worker == "ann");
    assert!(!admin.describe(flow.id()).await.unwrap().waits.iter().any(is_for_ann), "it sleeps");
    dead.crash().await;
    drop(ann);
    let bob = start(&log, "bob", &trace, &gate).await;
    clock.advance(LEASE * 2);
    until("it to be kept", || async { admin.describe(flow.id()).await.unwrap().waits.iter().any(is_for_ann) }).await;
    pass(&clock, &[&log], Duration::from_secs(130)).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "ann, bob");
    bob.shutdown().await;
}

async fn a_session_within_a_session_fails_the_flow(at: Place) {
    let log = at.log().await;
    let worker = start(&log, "ann", &Trace::new(), &Gate::closed()).await;
    let flow = Scheduler::new(log.clone()).schedule(rooted(true)).await.unwrap();
    let error = soon("the result", flow.result()).await.unwrap_err();
    assert!(format!("{error}").contains("in a session already"), "{error}");
    worker.shutdown().await;
}

async fn the_end_of_a_session_sets_the_flow_free(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let dead = log.another();
    let ann = start(&dead, "ann", &trace, &gate).await;
    let flow = Scheduler::new(log.clone()).schedule(convert("film".into())).await.unwrap();
    flow.signal("go", &()).await.unwrap();
    until("the session to end", || async { trace.count("report on ann") == 1 }).await;
    state_of(&log, flow.id(), FlowState::Suspended).await;
    dead.crash().await;
    drop(ann);
    let bob = start(&log, "bob", &trace, &gate).await;
    flow.signal("end", &()).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann"]);
    bob.shutdown().await;
}

/// A fragile flow that has failed on ann, which is gone then.
async fn failed_on_ann(at: &Place, trace: &Trace, gate: &Gate) -> (FaultyLog, FlowHandle<Vec<String>, ergon::Error>) {
    let log = at.log().await;
    let ann = start(&log.another(), "ann", trace, gate).await;
    let flow = Scheduler::new(log.clone()).schedule(fragile()).id("flow").await.unwrap();
    assert!(soon("the failure", flow.result()).await.unwrap_err().to_string().contains("broken"));
    ann.shutdown().await;
    assert_eq!(trace.take(), ["load on ann", "mend on ann"]);
    gate.open();
    (log, flow)
}

async fn a_flow_that_failed_in_a_session_goes_on_in_it_where_it_was(at: Place) {
    let (trace, gate) = (Trace::new(), Gate::closed());
    let (log, flow) = failed_on_ann(&at, &trace, &gate).await;
    flow.retry().await.unwrap();
    let ann = start(&log, "ann", &trace, &gate).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann"]);
    assert_eq!(trace.take(), ["mend on ann"]);
    ann.shutdown().await;
}

async fn a_flow_that_failed_in_a_session_has_lost_it_elsewhere(at: Place) {
    let (trace, gate) = (Trace::new(), Gate::closed());
    let (log, flow) = failed_on_ann(&at, &trace, &gate).await;
    flow.retry().await.unwrap();
    let bob = start(&log, "bob", &trace, &gate).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann to bob", "bob"]);
    assert_eq!(trace.take(), ["load on bob", "mend on bob"], "nothing of it goes on without the file");
    bob.shutdown().await;
}

async fn a_fork_out_of_a_session_has_lost_it_elsewhere(at: Place) {
    let (trace, gate) = (Trace::new(), Gate::closed());
    let (log, flow) = failed_on_ann(&at, &trace, &gate).await;
    let scheduler = Scheduler::new(log.clone());
    let fork = scheduler.admin().fork(flow.id()).at(Cut::first("mend")).id("fork").await.unwrap();
    let bob = start(&log, "bob", &trace, &gate).await;
    let fork = scheduler.handle::<fragile>(fork);
    assert_eq!(soon("the result", fork.result()).await.unwrap(), ["ann to bob", "bob"]);
    assert_eq!(trace.take(), ["load on bob", "mend on bob"]);
    bob.shutdown().await;
}

/// A fragile flow that has lost its session to bob and was taken back to where it had not.
async fn taken_back(at: &Place, trace: &Trace, gate: &Gate) -> (FaultyLog, FlowHandle<Vec<String>, ergon::Error>) {
    let (log, flow) = failed_on_ann(at, trace, gate).await;
    flow.retry().await.unwrap();
    let bob = start(&log.another(), "bob", trace, gate).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann to bob", "bob"]);
    bob.shutdown().await;
    trace.take().clear();
    let history = flow.history().await.unwrap();
    let told = history.records.iter().find(|record| record.name.starts_with("ergon.session/")).unwrap();
    Admin::new(log.clone()).reset(flow.id(), told.path.clone()).await.unwrap();
    (log, flow)
}

async fn a_session_that_was_lost_is_not_when_that_is_taken_back(at: Place) {
    let (trace, gate) = (Trace::new(), Gate::closed());
    let (log, flow) = taken_back(&at, &trace, &gate).await;
    let ann = start(&log, "ann", &trace, &gate).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann"]);
    assert_eq!(trace.take(), ["mend on ann"]);
    ann.shutdown().await;
}

async fn a_session_is_lost_again_after_it_was_taken_back(at: Place) {
    let (trace, gate) = (Trace::new(), Gate::closed());
    let (log, flow) = taken_back(&at, &trace, &gate).await;
    let cleo = start(&log, "cleo", &trace, &gate).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), ["ann to cleo", "cleo"]);
    assert_eq!(trace.take(), ["load on cleo", "mend on cleo"]);
    cleo.shutdown().await;
}

/// It claims nothing meanwhile, and yet nobody takes over what is bound to it.
async fn a_worker_whose_slots_are_taken_is_heard_of(at: Place) {
    let clock = ManualClock::new();
    let log = at.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let ann_log = log.another();
    let ann = start(&ann_log, "ann", &trace, &gate).await;
    let scheduler = Scheduler::new(log.clone());
    let bound = scheduler.schedule(settles()).await.unwrap();
    gate.let_one_through();
    state_of(&log, bound.id(), FlowState::Suspended).await;
    scheduler.schedule(settles()).await.unwrap();
    until("the slot to be taken", || async { trace.count("settle on ann") == 2 }).await;
    let bob = start(&log, "bob", &trace, &gate).await;
    bound.signal("go", &()).await.unwrap();
    pass(&clock, &[&ann_log, &log], TAKEOVER).await;
    assert_eq!(trace.take(), ["settle on ann"; 2]);
    gate.open();
    assert_eq!(soon("the result", bound.result()).await.unwrap(), "ann");
    ann.shutdown().await;
    bob.shutdown().await;
}
