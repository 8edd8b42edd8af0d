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

use ergon_storage::ClaimedFlow;
use futures::task::AtomicWaker;

use crate::{
    context::{Context, FlowContext, Halt},
    error::Error,
    flow::{FlowEnd, FlowFuture},
    journal::Divergence,
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
    /// The history has a call that the code does not make, unless it is still going to after something that is
    /// not durable.
    Missing(Divergence),
}

/// Whether bodies of steps may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effects {
    Allowed,
    /// The worker is shutting down: what runs may end, nothing new begins.
    Held,
}

pub(crate) struct Machine {
    context: Context,
    future: FlowFuture,
    waker: Arc<RootWaker>,
    root: Waker,
    /// The flow's code may go on in the next pass because of something durable.
    awaited: bool,
    /// A wait that is not durable was reported once.
    reported: bool,
    suspended_at_epoch: u64,
}

impl Machine {
    /// How often in a row a flow may ask to be polled again before others have a turn.
    const YIELDS_MAX: u32 = 32;

    pub(crate) fn new(flow: Arc<FlowContext>, future: FlowFuture) -> Self {
        let waker = Arc::new(RootWaker { woken: AtomicBool::new(true), task: AtomicWaker::new() });
        let root = Waker::from(Arc::clone(&waker));
        Self {
            context: Context::of_flow(flow),
            future,
            waker,
            root,
            awaited: true,
            reported: false,
            suspended_at_epoch: u64::MAX,
        }
    }

    pub(crate) fn flow(&self) -> &Arc<FlowContext> {
        &self.context.flow
    }

    /// True when this machine is where the log says that the flow is: the claim followed on the lease under which
    /// the flow was suspended, or the history still ends with the same record.
    pub(crate) fn fits(&self, claimed: &ClaimedFlow) -> bool {
        let flow = &self.context.flow;
        let ClaimedFlow { info, history, .. } = claimed;
        let (seq, last) = {
            let journal = flow.journal();
            (journal.seq(), journal.last())
        };
        let unbroken = || self.suspended_at_epoch.checked_add(1) == Some(info.epoch);
        let unchanged =
            || history.len() == info.records as usize && history.last().map(|last| (last.seq, last.at)) == last;
        flow.created_at == info.created_at && seq == info.records && (unbroken() || unchanged())
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

    /// Polls the flow's code as far as it gets.
    pub(crate) fn advance(&mut self, effects: Effects) -> Progress {
        let mut yields = 0;
        let flow = Arc::clone(&self.context.flow);
        loop {
            if self.waker.woken.swap(false, Ordering::AcqRel) {
                let polled = self.pass();
                if let Some(halt) = flow.take_halt() {
                    return match halt {
                        Halt::Fault(error) => Progress::Ended(FlowEnd::fault(&error)),
                        Halt::Stall(reason) => Progress::Stalled(reason),
                    };
                }
                match self.seal() {
                    Ok(()) => {}
                    Err(progress) => return progress,
                }
                if let Poll::Ready(end) = polled {
                    let mut journal = flow.journal();
                    if let Some(divergence) = journal.missing_call() {
                        return Progress::Stalled(divergence.to_string());
                    }
                    journal.start_orphans(flow.env.clock.now());
                    return Progress::Ended(end);
                }
                if self.waker.woken.load(Ordering::Acquire) {
                    // Woken while it was polled: a combinator that yields, which changes nothing.
                    yields += 1;
                    if yields > Self::YIELDS_MAX {
                        return Progress::Yield;
                    }
                    continue;
                }
                self.awaited = false;
            }
            let now = flow.env.clock.now();
            let mut journal = flow.journal();
            if journal.release(now) {
                self.awaited = true;
                self.waker.woken.store(true, Ordering::Release);
                continue;
            }
            if let Some(divergence) = journal.missing_call() {
                return Progress::Missing(divergence);
            }
            if journal.wants_grant(now) && effects == Effects::Allowed && !journal.must_flush() {
                journal.grant(now);
                self.waker.woken.store(true, Ordering::Release);
                continue;
            }
            return if journal.has_batch() { Progress::Flush } else { Progress::Wait };
        }
    }

    fn pass(&mut self) -> Poll<FlowEnd> {
        let mut cx = task::Context::from_waker(&self.root);
        let future = &mut self.future;
        // Out of tokio's budget a combinator would return without having polled its branches, and the outcome just
        // released would not be taken before the next one is.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            self.context.enter(|| pin!(tokio::task::unconstrained(future.as_mut())).poll(&mut cx))
        }));
        polled.unwrap_or_else(|panic| Poll::Ready(FlowEnd::fault(&Error::panic("the flow", &*panic))))
    }

    fn seal(&mut self) -> Result<(), Progress> {
        let flow = &self.context.flow;
        let mut journal = flow.journal();
        let first = journal.seal(flow.env.clock.now());
        if let Some(refusal) = journal.take_refusal() {
            let error = crate::context::invalid(format!("{}: {}", refusal.call, refusal.message));
            return Err(Progress::Ended(FlowEnd::fault(&error)));
        }
        match first {
            Err(divergence) => Err(Progress::Stalled(divergence.to_string())),
            Ok(Some(call)) if !self.awaited && !self.reported => {
                self.reported = true;
                tracing::warn!(
                    flow = %flow.id,
                    "the flow waited for something that is not durable before it called {call}; it may go another \
                     way when it is replayed: do the waiting in a step, or with a durable timer or signal"
                );
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What the code owns is dropped within its context, and a panic in doing so must not spread.
        let future = std::mem::replace(&mut self.future, Box::pin(std::future::pending()));
        if catch_unwind(AssertUnwindSafe(|| self.context.enter(|| drop(future)))).is_err() {
            tracing::warn!(flow = %self.context.flow.id, "a value of the flow panicked when it was dropped");
        }
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
