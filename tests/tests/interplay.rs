//! Bodies, messages, suspensions and crashes that meet in one flow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use ergon::{
    prelude::*,
    storage::{Channel, ExecutionLog, FlowState, ManualClock, NewMessage},
};
use ergon_tests::{Fault, FaultyLog, Gate, Place, Trace, both, note, soon, state_of, trace, until};
use tokio::sync::Notify;

const LEASE: Duration = Duration::from_secs(1_000);
const SECOND: Duration = Duration::from_secs(1);

both!(
    a_call_inside_a_step_keeps_its_key_over_a_crash,
    a_body_goes_on_only_when_the_outcome_it_got_is_durable,
    a_body_that_wakes_itself_stops_no_other,
    a_body_that_wakes_itself_has_a_time_limit,
    nothing_begins_while_a_suspension_is_written,
    an_attempt_is_not_made_by_two_workers_at_once,
    a_message_to_a_wait_that_is_not_polled_wakes_the_flow_once,
    a_message_that_was_handed_over_is_not_given_to_another_wait,
    the_end_of_a_child_that_is_not_called_again_wakes_the_flow_once,
    a_body_goes_on_only_when_the_end_of_its_wait_is_durable,
    calls_inside_a_step_keep_their_keys_in_another_order,
    a_signal_that_a_body_let_go_is_delivered_once,
    a_signal_that_a_body_has_not_taken_outlasts_a_crash,
    a_signal_behind_many_others_is_in_time,
    a_signal_that_cannot_be_read_is_in_time,
    a_signal_that_cannot_be_read_beside_another_is_in_time,
    a_hand_over_that_is_not_taken_stops_no_other,
);

/// How often a process has written or claimed.
fn turns(process: &FaultyLog) -> u64 {
    let calls = process.calls();
    ["claim", "commit"].iter().filter_map(|method| calls.get(method)).sum()
}

/// A step that calls two others at once, the first of which takes long.
#[flow_type]
struct Nests;

#[flow_type]
impl Nests {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        self.outer().await
    }

    #[step]
    async fn outer(&self) -> ergon::Result<u32> {
        let (slow, quick) = tokio::try_join!(self.slow(), self.quick())?;
        note("outer goes on");
        Ok(slow + quick)
    }

    #[step]
    async fn slow(&self) -> ergon::Result<u32> {
        note(idempotency_key());
        state::<Gate>().pass().await;
        Ok(1)
    }

    #[step]
    async fn quick(&self) -> ergon::Result<u32> {
        Ok(2)
    }
}

fn nests(log: &FaultyLog, trace: &Trace, gate: &Gate) -> Worker {
    Worker::new(log.clone()).register::<Nests>().with_state(trace.clone()).with_state(gate.clone()).lease(LEASE)
}

/// What has its outcome is not made again, and takes no place of its own: the others must not move up.
async fn a_call_inside_a_step_keeps_its_key_over_a_crash(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    let process = log.another();
    let first = nests(&process, &trace, &gate).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Nests).await.unwrap();
    until("one outcome", || async { flow.status().await.unwrap().records == 1 }).await;
    process.crash().await;
    drop(first);
    clock.advance(LEASE);
    let second = nests(&log, &trace, &gate).start().await.unwrap();
    until("the other one again", || async { trace.notes().len() == 2 }).await;
    let keys = trace.take();
    assert_eq!(keys[0], keys[1]);
    gate.open();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    second.shutdown().await;
}

/// What a body does may be an effect, and must not hang on what a crash would undo.
async fn a_body_goes_on_only_when_the_outcome_it_got_is_durable(place: Place) {
    let log = place.log().await;
    let (trace, gate) = (Trace::new(), Gate::closed());
    gate.open();
    let process = log.another();
    process.hold("commit");
    let worker = nests(&process, &trace, &gate).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Nests).await.unwrap();
    until("the commit", || async { process.calls().contains_key("commit") }).await;
    process.at_rest().await;
    assert_eq!(trace.count("outer goes on"), 0);
    process.free("commit");
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    assert_eq!(trace.count("outer goes on"), 1);
    worker.shutdown().await;
}

/// A body that has itself polled again and again, beside other steps or alone.
#[flow_type]
struct Restless {
    alone: bool,
}

#[flow_type]
impl Restless {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        if self.alone {
            return self.spin().await;
        }
        tokio::try_join!(self.spin(), async {
            self.note("one").await?;
            self.note("two").await
        })?;
        Ok(())
    }

    #[step(retry = none, timeout = "1h")]
    async fn spin(&self) -> ergon::Result<()> {
        let trace = trace();
        note("spins");
        while trace.count("two") == 0 {
            give_way().await;
        }
        Ok(())
    }

    #[step]
    async fn note(&self, what: &str) -> ergon::Result<()> {
        note(what);
        Ok(())
    }
}

/// Has itself polled again at once, as some runtimes and combinators do to give way; tokio's own `yield_now` waits for
/// the others.
async fn give_way() {
    let mut given = false;
    std::future::poll_fn(move |cx| {
        if given {
            return Poll::Ready(());
        }
        given = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn restless(log: &FaultyLog, trace: &Trace) -> Worker {
    Worker::new(log.clone()).register::<Restless>().with_state(trace.clone()).lease(100 * LEASE)
}

/// The body ends only when the other steps have: were they held up by it, the flow would never end.
async fn a_body_that_wakes_itself_stops_no_other(place: Place) {
    let log = place.log().await;
    let trace = Trace::new();
    let worker = restless(&log, &trace).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Restless { alone: false }).await.unwrap();
    soon("the result", flow.result()).await.unwrap();
    assert_eq!(trace.count("two"), 1);
    worker.shutdown().await;
}

/// The limit is looked at although the flow never waits.
async fn a_body_that_wakes_itself_has_a_time_limit(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let worker = restless(&log, &trace).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Restless { alone: true }).await.unwrap();
    until("the body to spin", || async { trace.count("spins") == 1 }).await;
    clock.advance(SECOND * 3_600);
    let error = soon("the limit", flow.result()).await.unwrap_err().to_string();
    assert!(error.contains("time limit"), "{error}");
    worker.shutdown().await;
}

/// Has the flows of a worker polled, for no reason that a log knows of.
#[derive(Clone, Default)]
struct Tick(Arc<Notify>);

impl Tick {
    /// Has the flow of the process polled again and again.
    async fn some(&self, process: &FaultyLog) {
        for _ in 0..3 {
            self.0.notify_one();
            process.at_rest().await;
        }
    }
}

/// A step that is tried again, beside something that has the flow polled.
#[flow_type]
struct Ticks;

#[flow_type]
impl Ticks {
    #[flow(allow(nondeterminism))]
    async fn run(&self) -> ergon::Result<u32> {
        let ticks = async {
            loop {
                state::<Tick>().0.notified().await;
            }
        };
        tokio::select! {
            done = self.again() => done,
            () = ticks => Ok(0),
        }
    }

    #[step(retry(max_attempts = 2, backoff = "1s", jitter = 0.0))]
    async fn again(&self) -> ergon::Result<u32> {
        note(format!("attempt {}", attempt()));
        if attempt() == 1 { Err(ergon::Error::new("not yet")) } else { Ok(attempt()) }
    }
}

fn ticks(log: &FaultyLog, trace: &Trace, tick: &Tick) -> Worker {
    Worker::new(log.clone()).register::<Ticks>().with_state(trace.clone()).with_state(tick.clone()).lease(LEASE)
}

/// A flow whose first attempt has been recorded: to be suspended until the next one, it has nothing more to write.
async fn tried_once(log: &FaultyLog) -> FlowHandle<u32, ergon::Error> {
    let trace = Trace::new();
    // It waits in memory until the shutdown.
    let worker = ticks(log, &trace, &Tick::default()).moment(60 * SECOND).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Ticks).await.unwrap();
    until("the attempt", || async { flow.status().await.unwrap().records == 1 }).await;
    worker.shutdown().await;
    flow
}

/// As soon as the log has taken a suspension, the flow may be another worker's.
async fn nothing_begins_while_a_suspension_is_written(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = tried_once(&log).await;
    let (process, trace, tick) = (log.another(), Trace::new(), Tick::default());
    process.hold("commit");
    let worker = ticks(&process, &trace, &tick).start().await.unwrap();
    until("the suspension", || async { process.calls().contains_key("commit") }).await;
    clock.advance(SECOND);
    tick.some(&process).await;
    assert_eq!(trace.take(), [""; 0]);
    process.free("commit");
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 2);
    assert_eq!(trace.take(), ["attempt 2"]);
    worker.shutdown().await;
}

/// As above, where the log has taken the suspension and the worker never hears of it.
async fn an_attempt_is_not_made_by_two_workers_at_once(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = tried_once(&log).await;
    let (process, unaware, aware, tick) = (log.another(), Trace::new(), Trace::new(), Tick::default());
    process.order(2, Fault::LoseAnswer);
    (3..1_000).for_each(|write| process.order(write, Fault::Refuse));
    // Its only slot is taken for as long as it does not know.
    let first = ticks(&process, &unaware, &tick).slots(1).grace(Duration::ZERO).start().await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    let second = ticks(&log, &aware, &Tick::default()).start().await.unwrap();
    clock.advance(SECOND);
    tick.some(&process).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 2);
    tick.some(&process).await;
    assert_eq!(aware.take(), ["attempt 2"]);
    assert_eq!(unaware.take(), [""; 0]);
    first.shutdown().await;
    second.shutdown().await;
}

/// Two waits for the same signal, the first of which is not polled while the second one waits.
#[flow_type]
struct TwoWaits;

#[flow_type]
impl TwoWaits {
    #[flow]
    async fn run(&self) -> ergon::Result<Vec<u32>> {
        let mut first = std::pin::pin!(signal::<u32>("go"));
        tokio::select! {
            early = &mut first => return Ok(vec![early?]),
            done = self.work() => done?,
        }
        let second = signal("go").await?;
        Ok(vec![first.await?, second])
    }

    #[step]
    async fn work(&self) -> ergon::Result<()> {
        Ok(())
    }
}

/// Nor does it keep the flow from sleeping.
async fn a_message_to_a_wait_that_is_not_polled_wakes_the_flow_once(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let worker = |log: &FaultyLog| Worker::new(log.clone()).register::<TwoWaits>().lease(LEASE);
    // More than are read at once.
    for others in [0_u32, 150] {
        let process = log.another();
        let first = worker(&process).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(TwoWaits).await.unwrap();
        state_of(&log, flow.id(), FlowState::Suspended).await;
        for number in 0..others {
            flow.signal("another", &number).await.unwrap();
        }
        flow.signal("go", &1).await.unwrap();
        until("the signal's record", || async { flow.status().await.unwrap().records == 2 }).await;
        rests(&process).await;
        assert_eq!(flow.status().await.unwrap().state, FlowState::Suspended);
        process.crash().await;
        drop(first);
        clock.advance(LEASE);
        let process = log.another();
        let second = worker(&process).start().await.unwrap();
        rests(&process).await;
        assert_eq!(flow.status().await.unwrap().state, FlowState::Suspended);
        flow.signal("go", &2).await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), [1, 2], "{others} others");
        second.shutdown().await;
    }
}

/// Sees to it that a process does nothing for a while.
async fn rests(process: &FaultyLog) {
    let before = turns(process);
    process.at_rest().await;
    let turns = turns(process) - before;
    assert!(turns < 5, "{turns} turns while nothing happened");
}

/// Waits for a signal, works without looking at it, takes it, and waits for the next one.
#[flow_type]
struct Works;

#[flow_type]
impl Works {
    #[flow]
    async fn run(&self) -> ergon::Result<Vec<u32>> {
        let mut first = std::pin::pin!(signal::<u32>("stop"));
        tokio::select! {
            early = &mut first => return Ok(vec![early?]),
            done = self.work("quick") => done?,
        }
        // Its id is no number of a message, though it looks like one.
        drop(child(Kid { waits: true }).id("151").start_detached());
        self.work("long").await?;
        Ok(vec![first.await?, signal("stop").await?])
    }

    #[step]
    async fn work(&self, what: &str) -> ergon::Result<()> {
        note(what);
        if what == "long" {
            state::<Gate>().pass().await;
        }
        Ok(())
    }
}

fn works(log: &FaultyLog, trace: &Trace, gate: &Gate) -> Worker {
    Worker::new(log.clone()).register::<Works>().with_state(trace.clone()).with_state(gate.clone()).lease(LEASE)
}

/// It stays in the mailbox until it is taken, and after a crash it may be read long after its record.
async fn a_message_that_was_handed_over_is_not_given_to_another_wait(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    // More than are read at once.
    for others in [0_u32, 150] {
        let (trace, gate) = (Trace::new(), Gate::closed());
        let process = log.another();
        let first = works(&process, &trace, &gate).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Works).await.unwrap();
        until("the long work", || async { trace.count("long") == 1 }).await;
        for number in 0..others {
            flow.signal("another", &number).await.unwrap();
        }
        flow.signal("stop", &1).await.unwrap();
        until("the signal's record", || async { flow.status().await.unwrap().records == 3 }).await;
        process.crash().await;
        drop(first);
        clock.advance(LEASE);
        gate.open();
        let second = works(&log, &trace, &gate).start().await.unwrap();
        until("the long work again", || async { trace.count("long") == 2 }).await;
        state_of(&log, flow.id(), FlowState::Suspended).await;
        flow.signal("stop", &2).await.unwrap();
        assert_eq!(soon("the result", flow.result()).await.unwrap(), [1, 2], "{others} others");
        second.shutdown().await;
    }
}

/// The parent of two, one of which its code no longer calls once it is mended.
#[flow_type]
struct Parent;

#[flow_type]
impl Parent {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        let patient = child(Kid { waits: true }).id("patient").start();
        // Stands for another version of the code.
        if !state::<Arc<AtomicBool>>().load(Ordering::SeqCst) {
            child(Kid { waits: false }).id("broken").await?;
        }
        patient.await
    }
}

/// Waits for a signal, or fails until it is mended.
#[flow_type]
struct Kid {
    waits: bool,
}

#[flow_type]
impl Kid {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        if self.waits {
            return signal("go").await;
        }
        if state::<Arc<AtomicBool>>().load(Ordering::SeqCst) { Ok(0) } else { Err(ergon::Error::new("broken")) }
    }
}

/// The code may still come to its call, so its end stays in the mailbox; the log would wake the flow for it.
async fn the_end_of_a_child_that_is_not_called_again_wakes_the_flow_once(place: Place) {
    let log = place.log().await;
    let (process, mended) = (log.another(), Arc::new(AtomicBool::new(false)));
    let worker = Worker::new(process.clone()).register::<Parent>().register::<Kid>();
    let worker = worker.with_state(Arc::clone(&mended)).lease(LEASE).start().await.unwrap();
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(Parent).await.unwrap();
    soon("the failure", flow.result()).await.unwrap_err();
    mended.store(true, Ordering::SeqCst);
    let (broken, patient) = (FlowId::new("broken").unwrap(), FlowId::new("patient").unwrap());
    scheduler.retry(&broken).await.unwrap();
    state_of(&log, &broken, FlowState::Completed).await;
    let epoch = flow.status().await.unwrap().epoch;
    flow.retry().await.unwrap();
    until("the parent to be claimed", || async { flow.status().await.unwrap().epoch > epoch }).await;
    let before = turns(&process);
    process.at_rest().await;
    let turns = turns(&process) - before;
    assert!(turns < 5, "{turns} turns while nothing happened");
    log.send(NewMessage::new(patient, Channel::signal("go"), "7")).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 7);
    worker.shutdown().await;
}

/// A step that waits for an answer, though not for long.
#[flow_type]
struct Asks;

#[flow_type]
impl Asks {
    #[flow]
    async fn run(&self) -> ergon::Result<Option<u32>> {
        self.ask().await
    }

    #[step]
    async fn ask(&self) -> ergon::Result<Option<u32>> {
        let answer = signal("answer").timeout(SECOND).await?;
        note("went on");
        Ok(answer)
    }
}

/// What a body does after a wait may hang on how it ended, which a crash must not undo.
async fn a_body_goes_on_only_when_the_end_of_its_wait_is_durable(place: Place) {
    for answers in [false, true] {
        let clock = ManualClock::new();
        let log = place.log_at(clock.clone()).await;
        let (process, trace) = (log.another(), Trace::new());
        process.hold("commit");
        let worker = Worker::new(process.clone()).register::<Asks>().with_state(trace.clone()).lease(LEASE);
        let worker = worker.moment(LEASE).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Asks).await.unwrap();
        until("the commit", || async { process.calls().contains_key("commit") }).await;
        if answers {
            flow.signal("answer", &7).await.unwrap();
        } else {
            clock.advance(2 * SECOND);
        }
        until("the mailbox to be read", || async { process.calls().contains_key("messages") }).await;
        process.at_rest().await;
        assert_eq!(trace.count("went on"), 0, "answers: {answers}");
        process.free("commit");
        assert_eq!(soon("the result", flow.result()).await.unwrap(), answers.then_some(7));
        assert_eq!(trace.count("went on"), 1);
        worker.shutdown().await;
    }
}

/// Pays three at once. Who comes first is not durable.
#[flow_type]
struct Pays;

#[flow_type]
impl Pays {
    #[flow]
    async fn run(&self) -> ergon::Result<()> {
        self.all().await
    }

    #[step]
    async fn all(&self) -> ergon::Result<()> {
        let (trace, turned) = (trace(), state::<Arc<AtomicBool>>().load(Ordering::SeqCst));
        let after = |payments| {
            let trace = trace.clone();
            async move {
                while trace.notes().len() < payments {
                    tokio::task::yield_now().await;
                }
            }
        };
        let ada = async {
            after(if turned { 4 } else { 0 }).await;
            tokio::try_join!(self.pay("ada"), self.pay("ada"))
        };
        let bob = async {
            after(2).await;
            self.pay("bob").await
        };
        tokio::try_join!(ada, bob)?;
        Ok(())
    }

    #[step]
    async fn pay(&self, whom: &str) -> ergon::Result<()> {
        note(format!("{whom} {}", idempotency_key()));
        state::<Gate>().pass().await;
        Ok(())
    }
}

/// A body may make its calls in another order when it starts again, and nobody must be paid twice for it.
async fn calls_inside_a_step_keep_their_keys_in_another_order(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (trace, gate, turned) = (Trace::new(), Gate::closed(), Arc::new(AtomicBool::new(false)));
    let worker = |log: &FaultyLog| {
        let worker = Worker::new(log.clone()).register::<Pays>().with_state(trace.clone()).with_state(gate.clone());
        worker.with_state(Arc::clone(&turned)).lease(LEASE)
    };
    let process = log.another();
    let first = worker(&process).start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Pays).await.unwrap();
    until("all payments", || async { trace.notes().len() == 3 }).await;
    process.crash().await;
    drop(first);
    clock.advance(LEASE);
    turned.store(true, Ordering::SeqCst);
    let second = worker(&log).start().await.unwrap();
    until("all payments again", || async { trace.notes().len() == 6 }).await;
    let (mut before, mut after) = (trace.notes()[..3].to_vec(), trace.notes()[3..].to_vec());
    before.sort();
    after.sort();
    assert_eq!(before, after);
    before.dedup();
    assert_eq!(before.len(), 3, "{before:?}");
    gate.open();
    soon("the result", flow.result()).await.unwrap();
    second.shutdown().await;
}

/// A step whose first attempt gets a signal and does not look at it.
#[flow_type]
struct Overlooks;

#[flow_type]
impl Overlooks {
    #[flow]
    async fn run(&self) -> ergon::Result<(u32, u32)> {
        let first = self.take().await?;
        Ok((first, signal("x").await?))
    }

    #[step(retry(max_attempts = 2, backoff = "1ms"))]
    async fn take(&self) -> ergon::Result<u32> {
        let wait = signal("x");
        if attempt() == 2 {
            return wait.await;
        }
        // Ready in the pass in which the signal comes, and looked at first.
        let mut polls = 0;
        let other = std::future::poll_fn(move |_| {
            polls += 1;
            if polls > 1 { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            biased;
            () = other => Err(ergon::Error::new("the other came first")),
            got = wait => got,
        }
    }
}

/// The next attempt finds it answered in the history, so nobody else gets it.
async fn a_signal_that_a_body_let_go_is_delivered_once(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Overlooks>().start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Overlooks).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    flow.signal("x", &1).await.unwrap();
    flow.signal("x", &2).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), (1, 2));
    worker.shutdown().await;
}

/// Leaves a step that waits alone for a while.
#[flow_type]
struct Leaves;

#[flow_type]
impl Leaves {
    #[flow]
    async fn run(&self) -> ergon::Result<(u32, u32)> {
        let mut step = std::pin::pin!(self.take());
        tokio::select! {
            early = &mut step => return Ok((early?, 0)),
            () = sleep(SECOND) => {}
        }
        let _: u32 = signal("go").await?;
        // The step has not gone on yet: what came for it is not for this one.
        let other = signal("x").await?;
        Ok((step.await?, other))
    }

    #[step]
    async fn take(&self) -> ergon::Result<u32> {
        note("waits");
        signal("x").await
    }
}

/// It is neither lost nor given to another wait, though the one that it was handed to had no time to look.
async fn a_signal_that_a_body_has_not_taken_outlasts_a_crash(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let trace = Trace::new();
    let worker = |log: &FaultyLog| {
        let worker = Worker::new(log.clone()).register::<Leaves>().with_state(trace.clone());
        worker.lease(LEASE).moment(LEASE).start()
    };
    let process = log.another();
    let first = worker(&process).await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Leaves).await.unwrap();
    // Later it would have no turn to begin.
    until("the body", || async { trace.count("waits") == 1 }).await;
    clock.advance(SECOND);
    until("its end", || async { flow.status().await.unwrap().records == 2 }).await;
    flow.signal("x", &1).await.unwrap();
    until("the signal's record", || async { flow.status().await.unwrap().records == 3 }).await;
    process.crash().await;
    drop(first);
    clock.advance(LEASE);
    let second = worker(&log).await.unwrap();
    flow.signal("go", &0).await.unwrap();
    until("the second wait", || async { flow.status().await.unwrap().records == 4 }).await;
    flow.signal("x", &2).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), (1, 2));
    second.shutdown().await;
}

/// Waits for an approval, though not for long.
#[flow_type]
struct Approves;

#[flow_type]
impl Approves {
    #[flow]
    async fn run(&self) -> ergon::Result<Option<String>> {
        signal("approval").timeout(60 * SECOND).await
    }
}

/// The flow comes back after the limit, and a claim does not carry all of its mail.
async fn a_signal_behind_many_others_is_in_time(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let worker = || Worker::new(log.clone()).register::<Approves>().parked_max(0).lease(LEASE).start();
    let first = worker().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Approves).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    first.shutdown().await;
    for number in 0..150 {
        flow.signal("another", &number).await.unwrap();
    }
    flow.signal("approval", "ada").await.unwrap();
    clock.advance(120 * SECOND);
    let second = worker().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap().as_deref(), Some("ada"));
    second.shutdown().await;
}

/// The limit passes while the log does not say what has come.
async fn a_signal_that_cannot_be_read_is_in_time(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    for comes in [false, true] {
        let process = log.another();
        process.break_down("messages", true);
        let worker = Worker::new(process.clone()).register::<Approves>().lease(LEASE).moment(LEASE);
        let worker = worker.start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Approves).await.unwrap();
        until("the wait", || async { flow.status().await.unwrap().records == 1 }).await;
        if comes {
            flow.signal("approval", "ada").await.unwrap();
        }
        clock.advance(120 * SECOND);
        let asked = || process.calls().get("messages").copied().unwrap_or_default();
        let before = asked();
        until("more questions", || async { asked() >= before + 2 }).await;
        assert_eq!(flow.status().await.unwrap().records, 1, "nobody knows yet");
        process.break_down("messages", false);
        let result = soon("the result", flow.result()).await.unwrap();
        assert_eq!(result.as_deref(), comes.then_some("ada"));
        worker.shutdown().await;
    }
}

/// Waits for two signals, one of them with a limit.
#[flow_type]
struct ApprovesBeside;

#[flow_type]
impl ApprovesBeside {
    #[flow]
    async fn run(&self) -> ergon::Result<(Option<String>, u32)> {
        tokio::try_join!(signal("approval").timeout(60 * SECOND), signal("number"))
    }
}

/// The limit passes while the log says what has come for another wait, and not what has come for this one.
async fn a_signal_that_cannot_be_read_beside_another_is_in_time(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let process = log.another();
    process.break_down("signal:approval", true);
    let worker = Worker::new(process.clone()).register::<ApprovesBeside>().lease(LEASE).moment(LEASE);
    let worker = worker.start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(ApprovesBeside).await.unwrap();
    until("the waits", || async { flow.status().await.unwrap().records == 1 }).await;
    flow.signal("approval", "ada").await.unwrap();
    clock.advance(120 * SECOND);
    flow.signal("number", &7).await.unwrap();
    let asked = || process.calls().get("messages").copied().unwrap_or_default();
    let before = asked();
    until("more questions", || async { asked() >= before + 4 }).await;
    assert_eq!(flow.status().await.unwrap().records, 1, "nobody knows yet");
    process.break_down("signal:approval", false);
    let result = soon("the result", flow.result()).await.unwrap();
    assert_eq!(result, (Some("ada".to_owned()), 7));
    worker.shutdown().await;
}

/// Waits for a signal and looks at another one, beside a body that has itself polled again and again.
#[flow_type]
struct Spins;

#[flow_type]
impl Spins {
    #[flow]
    async fn run(&self) -> ergon::Result<(u32, u32)> {
        let waits = async {
            let mut held = std::pin::pin!(signal("x"));
            assert!(futures::poll!(held.as_mut()).is_pending());
            let other = signal("y").await?;
            self.stop().await?;
            Ok((held.await?, other))
        };
        Ok(tokio::try_join!(waits, self.spin())?.0)
    }

    #[step]
    async fn stop(&self) -> ergon::Result<()> {
        note("stop");
        Ok(())
    }

    #[step]
    async fn spin(&self) -> ergon::Result<()> {
        let trace = trace();
        while trace.count("stop") == 0 {
            give_way().await;
        }
        Ok(())
    }
}

/// The code does not rest, and is not about to take what it was handed either.
async fn a_hand_over_that_is_not_taken_stops_no_other(place: Place) {
    let log = place.log().await;
    let worker = Worker::new(log.clone()).register::<Spins>().with_state(Trace::new()).lease(LEASE);
    let worker = worker.start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Spins).await.unwrap();
    flow.signal("x", &1).await.unwrap();
    until("the signal's record", || async { flow.status().await.unwrap().records == 1 }).await;
    flow.signal("y", &2).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), (1, 2));
    worker.shutdown().await;
}
