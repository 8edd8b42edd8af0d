//! Polls a flow's code, pass by pass, without touching a log.
//!
//! A [`Machine`] owns the future of one flow and its journal. [`advance`](Machine::advance) polls it as far as it
//! gets and says what must happen next; whoever drives it commits, waits, and calls again.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll, Wake, Waker},
};

use ergon_storage::{ClaimedFlow, Timestamp};
use futures::task::AtomicWaker;

use crate::{
    cleanup::cleanup_failed,
    context::{Context, FlowContext, Halt, Within},
    error::{Error, ErrorKind},
    flow::{FlowEnd, FlowFuture},
    journal::{CleaningUp, Journal},
};

/// What must happen before a flow can go on.
#[derive(Debug)]
pub(crate) enum Progress {
    /// What the journal has collected must become durable.
    Flush,
    /// Nothing to do until the flow is woken, or something of [`Journal::wake`](crate::journal::Journal::wake)
    /// comes.
    Wait,
    /// The flow asked to be polled again and again; others should have a turn.
    Yield,
    /// The code has ended.
    Ended(FlowEnd),
    /// The code cannot go on with this history.
    Stalled(String),
    /// The history has something that the code does not come to, for this reason, unless it is still going to after
    /// something that is not durable.
    Missing(String),
}

/// What to do about a wait that is not durable.
const WAIT: &str =
    "it may go another way when it is replayed: do the waiting in a step, or with a durable timer or signal";

/// What to do about one that keeps a flow from what it has to clean up.
const MISSES_SCOPES: &str = "the flow was cancelled, and its code waits for something that is not durable before it comes to \
    what it has to clean up: do the waiting in a step, and retry the flow, or abandon it";

/// Whether bodies of steps may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effects {
    Allowed,
    /// The worker is shutting down: what runs may end, nothing new begins. A body begins all the same of which it is
    /// durable that it does, for no other worker would let it.
    Held,
    /// The lease may have ended: what runs may end, nothing begins.
    Lapsed,
    /// Nothing may happen that did not happen before.
    Replayed,
}

pub(crate) struct Machine {
    flow: Arc<FlowContext>,
    within: Within,
    future: FlowFuture,
    waker: Arc<RootWaker>,
    root: Waker,
    /// The flow's code may go on in the next pass because of something durable.
    awaited: bool,
    /// A wait that is not durable was reported once.
    reported: bool,
    /// For how many turns in a row code that does not rest has held up whatever follows on an outcome that it has not
    /// taken.
    held_up: u32,
    suspended_at_epoch: u64,
}

impl Machine {
    /// How often in a row a flow may ask to be polled again before anything else happens.
    const YIELDS_MAX: u32 = 32;

    pub(crate) fn new(flow: Arc<FlowContext>, future: FlowFuture) -> Self {
        let waker = Arc::new(RootWaker { woken: AtomicBool::new(true), task: AtomicWaker::new() });
        let root = Waker::from(Arc::clone(&waker));
        Self {
            within: Within::new(Context::of_flow(Arc::clone(&flow))),
            flow,
            future,
            waker,
            root,
            awaited: true,
            reported: false,
            held_up: 0,
            suspended_at_epoch: u64::MAX,
        }
    }

    pub(crate) fn flow(&self) -> &Arc<FlowContext> {
        &self.flow
    }

    /// True when this machine is where the log says that the flow is: the claim followed on the lease under which
    /// the flow was suspended, or the history still ends with the same record; and it has told what this one has.
    pub(crate) fn fits(&self, claimed: &ClaimedFlow) -> bool {
        let flow = &self.flow;
        let ClaimedFlow { info, history, .. } = claimed;
        let (seq, last, emitted) = {
            let journal = flow.journal();
            (journal.seq(), journal.last(), journal.emitted())
        };
        let unbroken = || self.suspended_at_epoch.checked_add(1) == Some(info.epoch);
        let unchanged =
            || history.len() == info.records as usize && history.last().map(|last| (last.seq, last.at)) == last;
        (flow.created_at, flow.run) == (info.created_at, info.run)
            && (seq, emitted) == (info.records, info.emitted)
            && (unbroken() || unchanged())
    }

    /// Notes under which lease the flow was suspended.
    pub(crate) fn suspended(&mut self, epoch: u64) {
        self.suspended_at_epoch = epoch;
    }

    /// Ready when the flow was woken since the last pass; the task of `cx` is woken when it is.
    pub(crate) fn poll_woken(&self, cx: &task::Context<'_>) -> Poll<()> {
        self.waker.task.register(cx.waker());
        if self.waker.woken.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// True when the flow was woken since the last pass.
    pub(crate) fn is_woken(&self) -> bool {
        self.waker.woken.load(Ordering::Acquire)
    }

    /// Polls the flow's code as far as it gets; `now` is the present instant.
    pub(crate) fn advance(&mut self, effects: Effects, now: Timestamp) -> Progress {
        let Self { flow, within, future, waker, root, awaited, reported, held_up, .. } = self;
        let mut yields = 0;
        let mut now = now;
        // Code has run since the clock was read, perhaps for long.
        let mut late = false;
        loop {
            let mut restless = false;
            let mut journal;
            if waker.woken.swap(false, Ordering::AcqRel) {
                let mut polled = match pass(within, future, root) {
                    Ok(polled) => polled,
                    Err(error) if flow.journal().cleanup_cause().is_none() => Poll::Ready(FlowEnd::fault(&error)),
                    Err(error) => return Progress::Ended(FlowEnd::fault(&in_cleanup(flow, error))),
                };
                match flow.take_halt() {
                    None => {}
                    Some(Halt::Fault(error)) => return Progress::Ended(FlowEnd::fault(&in_cleanup(flow, error))),
                    Some(Halt::Stall(reason)) => return Progress::Stalled(reason),
                    Some(Halt::Continue(input)) => {
                        // The run is over: what its code holds is dropped, as it is when code returns.
                        drop_code(flow, within, future);
                        polled = Poll::Ready(FlowEnd::Continued { input });
                    }
                }
                restless = waker.woken.load(Ordering::Acquire);
                if restless && polled.is_pending() && yields < Self::YIELDS_MAX {
                    // A combinator that yields, or one branch that has something for another. A combinator may poll its
                    // branches in another order next time, so what the code calls until it rests belongs together.
                    yields += 1;
                    continue;
                }
                journal = flow.journal();
                late = !journal.minds_time();
                if !late {
                    now = flow.env.clock.now();
                }
                if let Err(progress) = seal(flow, &mut journal, *awaited, reported, now) {
                    return progress;
                }
                if let Poll::Ready(end) = polled {
                    let end = journal.end_of(end);
                    if let Some(divergence) = journal.missing_call() {
                        return Progress::Stalled(divergence.to_string());
                    }
                    journal.start_orphans(now);
                    return Progress::Ended(end);
                }
                // A body that wakes itself wakes the code with it, which is no sign of a wait that is not durable.
                *awaited &= restless;
            } else {
                journal = flow.journal();
            }
            // While the code does not rest, one may follow on another only when that one was taken; or when the code has
            // had so many turns that it is not on its way to take it.
            let holds_up = restless && journal.hands_over() && *held_up < Self::YIELDS_MAX;
            let released = match effects {
                Effects::Replayed => journal.release_recorded() == Some(true),
                Effects::Allowed if journal.starts_next() => false,
                Effects::Held if journal.starts_intended() => false,
                _ if holds_up => false,
                // Timers that are due already, one after another, say: the log, and whoever gives orders, must have a turn.
                _ if journal.is_full() => journal.release_recorded() == Some(true),
                _ => journal.release(now),
            };
            // What comes after the last outcome before a cancellation is the clean-up.
            let released = released || !holds_up && journal.begin_cleanup();
            *held_up = if released || !restless { 0 } else { *held_up + u32::from(holds_up) };
            if released {
                *awaited = true;
                waker.woken.store(true, Ordering::Release);
                yields = 0;
                continue;
            }
            if let Some(divergence) = journal.missing_call() {
                return Progress::Missing(divergence.to_string());
            }
            if journal.misses_scopes() {
                return Progress::Missing(MISSES_SCOPES.into());
            }
            if let Some(end) = end_of_cleanup(&mut journal, restless) {
                return Progress::Ended(end);
            }
            let present = || if std::mem::take(&mut late) { flow.env.clock.now() } else { now };
            if begin_bodies(&mut journal, effects, now, present) {
                waker.woken.store(true, Ordering::Release);
                yields = 0;
                continue;
            }
            match effects {
                Effects::Allowed => journal.write_beats(now),
                // There may be no other time.
                Effects::Held | Effects::Lapsed => journal.write_beats(Timestamp::MAX),
                Effects::Replayed => {}
            }
            return match (journal.has_batch(), restless) {
                (true, _) => Progress::Flush,
                (false, true) => Progress::Yield,
                (false, false) => Progress::Wait,
            };
        }
    }
}

/// Lets the bodies begin that may. True when there are such.
fn begin_bodies(journal: &mut Journal, effects: Effects, now: Timestamp, present: impl FnOnce() -> Timestamp) -> bool {
    match effects {
        Effects::Allowed if journal.wants_grant(now) => {
            let now = present();
            journal.intend(now);
            let can_begin = journal.can_grant();
            if can_begin {
                journal.grant(now);
            }
            can_begin
        }
        Effects::Held if journal.can_grant_intended() => {
            journal.grant_intended(present());
            true
        }
        _ => false,
    }
}

/// How a flow ends whose clean-up is over, or does not go on, of code that can go no further.
fn end_of_cleanup(journal: &mut Journal, restless: bool) -> Option<FlowEnd> {
    match journal.cleaning_up() {
        CleaningUp::Done => Some(journal.end_of_cleanup()),
        CleaningUp::Unpolled(scope) if !restless => {
            let why = format!(
                "the scope at {} is no longer polled; poll what has something to clean up until it ends, or drop it, and \
                 retry the flow, or abandon it",
                scope.place()
            );
            Some(FlowEnd::fault(&cleanup_failed(journal.cleanup_cause().as_ref(), &why)))
        }
        CleaningUp::AwaitsOver(scope, call) if !restless => {
            let why = format!(
                "the scope at {} waits for {call}, which was called before the cancellation, and which that has ended; let the \
                 clean-up make calls of its own, and retry the flow, or abandon it",
                scope.place()
            );
            Some(FlowEnd::fault(&cleanup_failed(journal.cleanup_cause().as_ref(), &why)))
        }
        CleaningUp::No | CleaningUp::Goes | CleaningUp::Unpolled(_) | CleaningUp::AwaitsOver(..) => None,
    }
}

/// Polls the flow's code once.
fn pass(within: &mut Within, future: &mut FlowFuture, root: &Waker) -> Result<Poll<FlowEnd>, Error> {
    let mut cx = task::Context::from_waker(root);
    // Out of tokio's budget a combinator would return without having polled its branches, and the outcome just
    // released would not be taken before the next one is.
    let polled = catch_unwind(AssertUnwindSafe(|| {
        within.run(|| pin!(tokio::task::unconstrained(future.as_mut())).poll(&mut cx))
    }));
    polled.map_err(|panic| Error::panic("the flow", &*panic))
}

/// An error of the flow's code, which says so if that was cleaning up.
fn in_cleanup(flow: &FlowContext, error: Error) -> Error {
    let journal = flow.journal();
    match journal.cleanup_cause() {
        Some(cause) if error.kind() != ErrorKind::Cleanup => cleanup_failed(Some(&cause), &error),
        _ => error,
    }
}

/// Settles the places of the calls made in a pass; `awaited` says whether the code had reason to go on.
fn seal(
    flow: &FlowContext,
    journal: &mut Journal,
    awaited: bool,
    reported: &mut bool,
    now: Timestamp,
) -> Result<(), Progress> {
    // Code that goes on for no reason that is recorded is reported with the first call that it makes.
    let unfounded = if awaited { None } else { journal.first_made() };
    let sealed = journal.seal(now);
    if let Some(refusal) = journal.take_refusal() {
        let error = crate::context::invalid(format!("{}: {}", refusal.call, refusal.message));
        return Err(Progress::Ended(FlowEnd::fault(&error)));
    }
    match (sealed, unfounded) {
        (Err(divergence), _) => Err(Progress::Stalled(divergence.to_string())),
        (Ok(()), Some(call)) if flow.env.observer.is_some() => {
            let message = format!("the flow waited for something that is not durable before it called {call}; {WAIT}");
            Err(Progress::Ended(FlowEnd::fault(&crate::context::invalid(message))))
        }
        (Ok(()), Some(call)) if !*reported => {
            *reported = true;
            tracing::warn!(
                flow = %flow.id,
                "the flow waited for something that is not durable before it called {call}; {WAIT}"
            );
            Ok(())
        }
        (Ok(()), _) => Ok(()),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop_code(&self.flow, &mut self.within, &mut self.future);
    }
}

/// Drops what the code owns, within its context; a panic in doing so must not spread.
fn drop_code(flow: &FlowContext, within: &mut Within, future: &mut FlowFuture) {
    let future = std::mem::replace(future, Box::pin(std::future::pending()));
    if catch_unwind(AssertUnwindSafe(|| within.run(|| drop(future)))).is_err() {
        tracing::warn!(flow = %flow.id, "a value of the flow panicked when it was dropped");
    }
}

/// Remembers that the flow was woken, and wakes whatever task drives it now.
struct RootWaker {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for RootWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ergon_storage::{
        ClaimRequest, ClaimTarget, Commit, ExecutionLog, FlowId, InMemoryExecutionLog, ManualClock, NewFlow, Next,
        Record, Timestamp,
    };

    use super::*;
    use crate::{
        context::{Env, Identity, States},
        meter::Meters,
        middleware::Layers,
    };

    const AT: Timestamp = Timestamp::from_micros(1_000_000);

    /// A claim of a flow with three records.
    async fn claimed() -> ClaimedFlow {
        let clock = ManualClock::new();
        let log = InMemoryExecutionLog::new().with_clock(Arc::new(clock));
        let id = FlowId::new("flow").unwrap();
        log.enqueue(vec![NewFlow::new(id.clone(), "Type", 1, "")]).await.unwrap();
        let request = || ClaimRequest::new("worker", ClaimTarget::Flow(id.clone()));
        let first = log.claim(request()).await.unwrap().flows.remove(0);
        let mut commit = Commit::new(first.lease, 1);
        commit.records = (1..=3).map(record).collect();
        commit.next = Next::suspend(ergon_storage::Wake { at: Some(Timestamp::EPOCH), channels: Vec::new() });
        log.commit(commit.clone()).await.unwrap();
        log.release(&commit.lease).await.unwrap();
        log.claim(request()).await.unwrap().flows.remove(0)
    }

    fn record(seq: u32) -> Record {
        Record {
            seq,
            at: AT.saturating_add(Duration::from_secs(seq.into())),
            path: ergon_storage::CallPath::top(seq),
            kind: ergon_storage::CallKind::Step,
            phase: ergon_storage::Phase::Completed,
            name: "step".into(),
            args_hash: 0,
            attempt: 1,
            started_at: AT,
            due_at: None,
            reference: None,
            payload: "null".into(),
        }
    }

    /// The machine of that flow, suspended with these records under this epoch.
    fn machine(claimed: &ClaimedFlow, records: Vec<Record>, epoch: u64) -> Machine {
        let states = States::default();
        let (clock, meters) = (Arc::new(ManualClock::new()), Meters::default());
        let env = Env {
            clock,
            states,
            payload_bytes_max: 1,
            observer: None,
            log: None,
            meters,
            layers: Layers::default(),
            presence: crate::session::Presence::default(),
        };
        let journal = Box::new(Journal::new(records, AT));
        let flow = FlowContext::new(Identity::of(&claimed.info), Arc::new(env), journal);
        let mut machine = Machine::new(Arc::new(flow), Box::pin(std::future::pending()));
        machine.suspended(epoch);
        machine
    }

    #[tokio::test]
    async fn a_parked_machine_is_used_only_where_its_flow_still_is() {
        let claimed = claimed().await;
        assert_eq!((claimed.info.epoch, claimed.history.len()), (2, 3));
        let records = || (1..=3).map(record).collect::<Vec<_>>();
        let fits = |records, epoch, claimed: &ClaimedFlow| machine(claimed, records, epoch).fits(claimed);
        assert!(fits(records(), 1, &claimed), "nobody had the flow since");
        // Others had it, but added nothing, and the whole history is there to show it.
        let others =
            ClaimedFlow { info: ergon_storage::FlowInfo { epoch: 7, ..claimed.info.clone() }, ..claimed.clone() };
        assert!(fits(records(), 1, &others));
        let mut page = others.clone();
        page.history.truncate(2);
        assert!(!fits(records(), 1, &page), "it cannot be told");
        // Others had it, and it has as many records as before, but not the same.
        let mut others = others;
        others.history[2].at = AT;
        assert!(!fits(records(), 1, &others));
        assert!(!fits(records()[..2].to_vec(), 1, &claimed), "it went on elsewhere");
        let mut anew = claimed.clone();
        anew.info.created_at = AT;
        assert!(!machine(&claimed, records(), 1).fits(&anew), "another flow of the same id");
        // Two runs that have recorded nothing look alike but for their numbers.
        let mut next_run = claimed.clone();
        (next_run.info.run, next_run.info.records) = (2, 0);
        next_run.history.clear();
        assert!(!machine(&claimed, Vec::new(), 1).fits(&next_run), "another run of the same flow");
        next_run.info.run = 1;
        assert!(machine(&claimed, Vec::new(), 1).fits(&next_run));
    }
}
