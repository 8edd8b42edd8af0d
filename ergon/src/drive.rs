//! Runs one leased flow: polls its [`Machine`], commits what it collects, waits, and lets go in time.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU8, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use ergon_storage::{
    ClaimedFlow, Commit, Committed, ErrorKind, ExecutionLog, FlowState, Lease, NewFlow, Next, Timestamp, Topic, Wake,
    Watch,
};
use futures::{future::BoxFuture, task::AtomicWaker};

use crate::{
    context::{Env, FlowContext, Halt},
    error::Error,
    executor::Executor,
    flow::{FlowDef, FlowEnd},
    journal::{Batch, Journal},
    machine::{Effects, Machine, Progress},
};

/// What driving needs to know.
#[derive(Debug, Clone)]
pub(crate) struct DriveOptions {
    /// A wait shorter than this is waited for with the flow in memory and its lease held.
    pub(crate) moment: Duration,
    /// How long a flow whose code misses a recorded call may go on waiting for something that is not durable,
    /// before it is stalled.
    pub(crate) patience: Duration,
    /// Which code this is.
    pub(crate) build: Arc<str>,
}

/// How driving ended.
pub(crate) enum Driven {
    /// The flow is in its final state, or stalled.
    Ended(FlowState),
    /// The flow waits in the log. The machine may be kept to spare the replay.
    Suspended(Box<Machine>),
    /// The flow was given back.
    Released,
    /// The lease is gone, or the log does not answer: another worker goes on.
    Lost,
}

/// What a flow that is being driven is told from outside: orders, and how long its lease lasts.
#[derive(Debug)]
pub(crate) struct Control {
    order: AtomicU8,
    /// Until then, in microseconds, the lease is certain to hold.
    until: AtomicI64,
    task: AtomicWaker,
}

impl Control {
    const RUN: u8 = 0;
    const DRAIN: u8 = 1;
    const DROP: u8 = 2;

    /// For a flow whose lease is certain to hold until then.
    pub(crate) fn new(until: Timestamp) -> Self {
        let (order, until) = (AtomicU8::new(Self::RUN), AtomicI64::new(until.as_micros()));
        Self { order, until, task: AtomicWaker::new() }
    }

    /// The lease was renewed.
    pub(crate) fn renewed(&self, until: Timestamp) {
        self.until.store(until.as_micros(), Ordering::Release);
    }

    /// Until then the lease is certain to hold.
    pub(crate) fn until(&self) -> Timestamp {
        Timestamp::from_micros(self.until.load(Ordering::Acquire))
    }

    /// Let running bodies end, begin nothing new, then give the flow back.
    pub(crate) fn drain(&self) {
        self.order.fetch_max(Self::DRAIN, Ordering::AcqRel);
        self.task.wake();
    }

    /// Drop the flow at once: the lease is gone.
    pub(crate) fn drop_flow(&self) {
        self.order.fetch_max(Self::DROP, Ordering::AcqRel);
        self.task.wake();
    }

    fn order(&self) -> u8 {
        self.order.load(Ordering::Acquire)
    }
}

/// Makes the machine of a claimed flow, reading the rest of its history.
pub(crate) async fn load(
    log: &dyn ExecutionLog,
    env: &Arc<Env>,
    def: &FlowDef,
    claimed: ClaimedFlow,
) -> Result<Machine, ergon_storage::Error> {
    const PAGE: usize = 5_000;
    let ClaimedFlow { info, input, mut history, messages, .. } = claimed;
    while history.len() < info.records as usize {
        let after = history.last().map_or(0, |record| record.seq);
        let page = log.history(&info.id, after, PAGE).await?;
        if page.is_empty() {
            let message = format!("the history ends after record {after}, it should have {}", info.records);
            return Err(ergon_storage::Error::new(ErrorKind::Corrupt, message).with_flow(&info.id));
        }
        history.extend(page);
    }
    let began_at = info.started_at.unwrap_or(info.created_at);
    let mut journal = Journal::new(history, began_at);
    journal.receive(messages);
    // Nobody claims from the queue of executors: the children of their flows go to workers.
    let queue = if *info.queue == *Executor::QUEUE { NewFlow::DEFAULT_QUEUE.into() } else { info.queue };
    let flow = FlowContext::new(info.id.clone(), info.created_at, queue, Arc::clone(env), journal);
    let future = (def.begin)(&input, env.payload_bytes_max).unwrap_or_else(|error| {
        flow.halt(Halt::Stall(format!(
            "{error}; give the changed type the old form, or give the flow a new version, then retry the flow"
        )));
        Box::pin(std::future::pending())
    });
    Ok(Machine::new(Arc::new(flow), future))
}

/// Drives a flow until it ends, waits for long, or must be let go.
pub(crate) struct Drive {
    log: Arc<dyn ExecutionLog>,
    lease: Lease,
    deadline_at: Option<Timestamp>,
    options: DriveOptions,
    control: Arc<Control>,
    machine: Option<Box<Machine>>,
    commits: u32,
    flight: Option<Flight>,
    timer: Option<(Timestamp, BoxFuture<'static, ()>)>,
    mail: Option<BoxFuture<'static, Watch>>,
    /// Since when the code misses a recorded call.
    missing: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// A commit that is under way.
struct Flight {
    end: Option<FlowState>,
    done: BoxFuture<'static, Result<Committed, ergon_storage::Error>>,
}

/// Something that happened while a flow was waited for.
enum Event {
    Woken,
    Ordered,
    Committed(Option<FlowState>, Result<Committed, ergon_storage::Error>),
    Due,
    Mail,
    OutOfPatience,
}

impl Drive {
    pub(crate) fn new(
        log: Arc<dyn ExecutionLog>,
        lease: Lease,
        deadline_at: Option<Timestamp>,
        options: DriveOptions,
        control: Arc<Control>,
        machine: Box<Machine>,
    ) -> Self {
        Self {
            log,
            lease,
            deadline_at,
            options,
            control,
            machine: Some(machine),
            commits: 0,
            flight: None,
            timer: None,
            mail: None,
            missing: None,
        }
    }

    pub(crate) async fn run(mut self) -> Driven {
        loop {
            let Some(machine) = &mut self.machine else { return Driven::Lost };
            let flow = Arc::clone(machine.flow());
            let now = flow.env.clock.now();
            if now >= self.control.until() {
                // This process was paused, or the log kept it waiting: another worker may run the flow by now.
                self.control.drain();
            }
            let effects = match self.control.order() {
                Control::RUN => Effects::Allowed,
                Control::DRAIN => Effects::Held,
                _ => return Driven::Lost,
            };
            if self.flight.is_none() && self.deadline_at.is_some_and(|deadline| deadline <= now) {
                return self.time_is_up().await;
            }
            let progress = machine.advance(effects);
            let mut due = None;
            match progress {
                Progress::Ended(end) => return self.end(end).await,
                Progress::Stalled(reason) => return self.stall(reason).await,
                Progress::Missing(divergence) => {
                    let patience = self.options.patience;
                    let missing = self.missing.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    if missing.is_elapsed() || patience.is_zero() {
                        return self.stall(divergence.to_string()).await;
                    }
                }
                Progress::Yield => tokio::task::yield_now().await,
                Progress::Flush if self.flight.is_some() => self.missing = None,
                Progress::Flush | Progress::Wait => {
                    self.missing = None;
                    let (busy, wake, batch) = {
                        let mut journal = flow.journal();
                        let busy = journal.is_busy();
                        let in_flight = self.flight.is_some();
                        let batch = (!in_flight && journal.has_batch()).then(|| journal.take_batch());
                        (busy, journal.wake(), batch)
                    };
                    let idle = !busy && self.flight.is_none() && !flow.journal().wants_grant(now);
                    if effects == Effects::Held && batch.is_none() && !busy && self.flight.is_none() {
                        return self.release().await;
                    }
                    if idle && effects == Effects::Allowed && self.is_long(&wake, now) {
                        self.commit(batch.unwrap_or_default(), Next::Suspend(wake), None);
                    } else if let Some(batch) = batch {
                        self.commit(batch, Next::Run, None);
                    } else {
                        due = wake.at;
                        if idle && !wake.channels.is_empty() && self.mail.is_none() {
                            self.mail = Some(next_hint(self.log.watch(Topic::Flow(flow.id.clone()))));
                            self.fetch(&wake).await;
                            continue;
                        }
                    }
                }
            }
            self.set_timer(due);
            match self.event().await {
                Event::Woken | Event::Ordered | Event::Due | Event::OutOfPatience => {}
                Event::Mail => {
                    let wake = flow.journal().wake();
                    self.fetch(&wake).await;
                }
                Event::Committed(end, result) => {
                    if let Some(driven) = self.committed(end, result).await {
                        return driven;
                    }
                }
            }
        }
    }

    /// True when waiting for this is worth giving up the lease.
    fn is_long(&self, wake: &Wake, now: Timestamp) -> bool {
        match wake.at {
            Some(at) => at.since(now) > self.options.moment,
            None => !wake.channels.is_empty(),
        }
    }

    /// Waits for the first thing that happens.
    fn event(&mut self) -> impl Future<Output = Event> + '_ {
        std::future::poll_fn(move |cx| self.poll_event(cx))
    }

    fn poll_event(&mut self, cx: &mut task::Context<'_>) -> Poll<Event> {
        self.control.task.register(cx.waker());
        if self.control.order() == Control::DROP {
            return Poll::Ready(Event::Ordered);
        }
        if let Some(flight) = &mut self.flight
            && let Poll::Ready(result) = flight.done.as_mut().poll(cx)
        {
            let end = flight.end;
            self.flight = None;
            return Poll::Ready(Event::Committed(end, result));
        }
        if let Some(machine) = &self.machine
            && machine.poll_woken(cx).is_ready()
        {
            return Poll::Ready(Event::Woken);
        }
        if let Some((_, timer)) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.timer = None;
            return Poll::Ready(Event::Due);
        }
        if let Some(missing) = &mut self.missing
            && missing.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Event::OutOfPatience);
        }
        if let Some(mail) = &mut self.mail
            && let Poll::Ready(watch) = mail.as_mut().poll(cx)
        {
            self.mail = Some(next_hint(watch));
            return Poll::Ready(Event::Mail);
        }
        Poll::Pending
    }

    fn set_timer(&mut self, due: Option<Timestamp>) {
        let due = due.into_iter().chain(self.deadline_at).min();
        match (due, &self.timer) {
            (Some(due), Some((set, _))) if due == *set => {}
            (Some(due), _) => {
                let sleep = self.log.clock().sleep_until(due);
                self.timer = Some((due, sleep));
            }
            (None, _) => self.timer = None,
        }
    }

    /// Begins a commit.
    fn commit(&mut self, batch: Batch, next: Next, end: Option<FlowState>) {
        debug_assert!(self.flight.is_none(), "one commit at a time");
        self.commits += 1;
        let Batch { records, consumed, children } = batch;
        let commit = Commit { lease: self.lease.clone(), number: self.commits, records, consumed, children, next };
        let log = Arc::clone(&self.log);
        self.flight = Some(Flight { end, done: Box::pin(async move { persist(&*log, commit).await }) });
    }

    /// Waits for the commit that is under way while the bodies that run go on.
    async fn land(&mut self) -> Option<(Option<FlowState>, Result<Committed, ergon_storage::Error>)> {
        let flight = self.flight.take()?;
        Some((flight.end, flight.done.await))
    }

    async fn committed(
        &mut self,
        end: Option<FlowState>,
        result: Result<Committed, ergon_storage::Error>,
    ) -> Option<Driven> {
        let machine = self.machine.as_mut()?;
        match result {
            Ok(committed) => {
                machine.flow().journal().flushed();
                if let Some(state) = end {
                    return Some(Driven::Ended(state));
                }
                match committed {
                    Committed::Applied => None,
                    Committed::Suspended => self.machine.take().map(Driven::Suspended),
                    Committed::Awake => {
                        let wake = machine.flow().journal().wake();
                        self.fetch(&wake).await;
                        None
                    }
                }
            }
            Err(error) => Some(self.refused(&error).await),
        }
    }

    /// The log refused a commit, or did not answer for too long.
    async fn refused(&mut self, error: &ergon_storage::Error) -> Driven {
        let flow = &self.lease.flow;
        match error.kind() {
            ErrorKind::TooLarge => {
                // Nothing of the commit was written, and it never can be.
                tracing::error!(%flow, %error, "the flow exceeds a limit of the log and fails");
                self.machine = None;
                let end = FlowEnd::fault(&crate::context::invalid(error.to_string()));
                self.commits -= 1;
                self.finish(Batch::default(), end).await
            }
            ErrorKind::LeaseLost => {
                tracing::info!(%flow, "the lease is gone; the flow goes on elsewhere, or was cancelled");
                Driven::Lost
            }
            _ => {
                tracing::error!(%flow, error = ?error, "the log refused a commit; the flow is let go");
                Driven::Lost
            }
        }
    }

    async fn end(&mut self, end: FlowEnd) -> Driven {
        if let Some((end, result)) = self.land().await
            && let Some(driven) = self.committed(end, result).await
        {
            return driven;
        }
        let batch = self.last_batch();
        self.finish(batch, end).await
    }

    fn last_batch(&mut self) -> Batch {
        // The code is done: what it still holds is dropped before its end is written, as it would be otherwise.
        match self.machine.take() {
            Some(machine) => machine.flow().journal().take_batch(),
            None => Batch::default(),
        }
    }

    async fn finish(&mut self, batch: Batch, end: FlowEnd) -> Driven {
        let (next, state) = match end {
            FlowEnd::Completed { result } => (Next::Complete { result }, FlowState::Completed),
            FlowEnd::Failed { error, reason } => (Next::Fail { error, reason: reason.into() }, FlowState::Failed),
        };
        self.last(batch, next, state).await
    }

    async fn stall(&mut self, reason: String) -> Driven {
        if let Some((end, result)) = self.land().await
            && let Some(driven) = self.committed(end, result).await
        {
            return driven;
        }
        tracing::error!(flow = %self.lease.flow, %reason, "the flow is stalled");
        let batch = self.last_batch();
        let build = Arc::clone(&self.options.build);
        self.last(batch, Next::Stall { reason: reason.into(), build }, FlowState::Stalled).await
    }

    /// The flow's time limit has passed.
    async fn time_is_up(&mut self) -> Driven {
        let batch = self.last_batch();
        let error = Error::of(crate::error::ErrorKind::Timeout, "the flow exceeded its time limit").into_permanent();
        self.finish(batch, FlowEnd::fault(&error)).await
    }

    async fn last(&mut self, batch: Batch, next: Next, state: FlowState) -> Driven {
        self.commit(batch, next, Some(state));
        loop {
            match self.event().await {
                Event::Committed(_, Ok(_)) => return Driven::Ended(state),
                Event::Committed(_, Err(error)) if error.kind() == ErrorKind::TooLarge && self.machine.is_some() => {
                    return Box::pin(self.refused(&error)).await;
                }
                Event::Committed(_, Err(error))
                    if error.kind() == ErrorKind::TooLarge && state != FlowState::Failed =>
                {
                    return Box::pin(self.refused(&error)).await;
                }
                Event::Committed(_, Err(error)) => {
                    tracing::error!(flow = %self.lease.flow, error = ?error, "the end of the flow could not be written");
                    return Driven::Lost;
                }
                Event::Ordered => return Driven::Lost,
                _ => {}
            }
        }
    }

    async fn release(&mut self) -> Driven {
        self.machine = None;
        match self.log.release(&self.lease).await {
            Ok(()) => Driven::Released,
            Err(error) => {
                tracing::info!(flow = %self.lease.flow, %error, "the flow could not be given back; its lease ends by itself");
                Driven::Lost
            }
        }
    }

    /// Reads what the mailbox holds on the channels that the flow waits for.
    async fn fetch(&mut self, wake: &Wake) {
        const PAGE: usize = 100;
        let Some(machine) = &self.machine else { return };
        let flow = Arc::clone(machine.flow());
        for channel in &wake.channels {
            let after = flow.journal().mail_seen(channel);
            match self.log.messages(&flow.id, std::slice::from_ref(channel), after, PAGE).await {
                Ok(messages) => flow.journal().receive(messages),
                // A hint or the next claim brings the flow back here.
                Err(error) => tracing::warn!(flow = %flow.id, %error, "the mailbox could not be read"),
            }
        }
    }
}

/// The next hint of a watch, and the watch.
fn next_hint(mut watch: Watch) -> BoxFuture<'static, Watch> {
    Box::pin(async move {
        watch.changed().await;
        watch
    })
}

/// Commits, trying again for as long as the log cannot answer. Whoever drives the flow drops this future when the
/// lease is gone.
async fn persist(log: &dyn ExecutionLog, commit: Commit) -> Result<Committed, ergon_storage::Error> {
    const FIRST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);
    let mut delay = FIRST;
    loop {
        match log.commit(commit.clone()).await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(flow = %commit.lease.flow, %error, ?delay, "the log cannot answer, trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LONGEST);
            }
            result => return result,
        }
    }
}
