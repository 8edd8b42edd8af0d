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
    Channel, ClaimedFlow, Commit, Committed, ErrorKind, ExecutionLog, FlowId, FlowState, Lease, Message, NewFlow, Next,
    Timestamp, Topic, Wake, Watch,
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
    mail: Option<Mail>,
    /// The log found that something which wakes the flow is there already.
    awake: bool,
    /// The last order that was followed.
    order: u8,
    /// Since when the code misses a recorded call.
    missing: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// A commit that is under way.
struct Flight {
    end: Option<FlowState>,
    done: BoxFuture<'static, Result<Committed, ergon_storage::Error>>,
}

/// A look into the mailbox, or the wait for a reason to look.
struct Mail {
    /// What is looked for: channels, and after which message.
    wanted: Vec<(Channel, u32)>,
    done: BoxFuture<'static, Vec<Message>>,
}

/// Something that happened while a flow was waited for.
enum Event {
    Woken,
    Ordered,
    Committed(Option<FlowState>, Result<Committed, ergon_storage::Error>),
    Due,
    Mail(Vec<Message>),
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
            awake: false,
            order: Control::RUN,
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
            self.order = self.control.order();
            let effects = match self.order {
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
                    due = wake.at;
                    if idle && effects == Effects::Allowed && !self.awake && self.is_long(&wake, now) {
                        // Until the answer is here nothing may go on: the flow may be another worker's by then.
                        (self.mail, due) = (None, None);
                        self.commit(batch.unwrap_or_default(), Next::Suspend(wake), None);
                    } else {
                        if let Some(batch) = batch {
                            self.commit(batch, Next::Run, None);
                        }
                        self.listen(&flow, wake.channels);
                    }
                }
            }
            self.set_timer(due);
            match self.event().await {
                Event::Woken | Event::Ordered | Event::Due | Event::OutOfPatience => {}
                Event::Mail(messages) => {
                    self.awake = false;
                    flow.journal().receive(messages);
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
        if let Poll::Ready(event) = self.poll_log(cx) {
            return Poll::Ready(event);
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
            && let Poll::Ready(messages) = mail.done.as_mut().poll(cx)
        {
            self.mail = None;
            return Poll::Ready(Event::Mail(messages));
        }
        Poll::Pending
    }

    /// Polls what goes on between the log, the worker and this flow, not the flow.
    fn poll_log(&mut self, cx: &mut task::Context<'_>) -> Poll<Event> {
        self.control.task.register(cx.waker());
        if self.control.order() != self.order {
            return Poll::Ready(Event::Ordered);
        }
        if let Some(flight) = &mut self.flight
            && let Poll::Ready(result) = flight.done.as_mut().poll(cx)
        {
            let end = flight.end;
            self.flight = None;
            return Poll::Ready(Event::Committed(end, result));
        }
        Poll::Pending
    }

    /// Begins to look for messages on these channels, unless that is going on.
    fn listen(&mut self, flow: &FlowContext, channels: Vec<Channel>) {
        if channels.is_empty() && !self.awake {
            self.mail = None;
            return;
        }
        let wanted: Vec<_> = {
            let journal = flow.journal();
            channels.into_iter().map(|channel| (channel.clone(), journal.mail_seen(&channel))).collect()
        };
        if self.mail.as_ref().is_none_or(|mail| mail.wanted != wanted) {
            // Watch first, then look: whatever comes in between is hinted at.
            let watch = self.log.watch(Topic::Flow(flow.id.clone()));
            let done = look(Arc::clone(&self.log), watch, flow.id.clone(), wanted.clone(), self.awake);
            self.mail = Some(Mail { wanted, done: Box::pin(done) });
        }
    }

    fn set_timer(&mut self, due: Option<Timestamp>) {
        // A limit that passes during a commit is looked at when the commit is over.
        let deadline_at = self.deadline_at.filter(|_| self.flight.is_none());
        let due = due.into_iter().chain(deadline_at).min();
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

    /// Waits for the commit that is under way, after the code has ended.
    async fn land(&mut self) -> Option<Driven> {
        while self.flight.is_some() {
            match std::future::poll_fn(|cx| self.poll_log(cx)).await {
                Event::Committed(end, result) => {
                    return match self.committed(end, result).await {
                        // The flow is suspended in the log, before its end: whoever claims it comes here again.
                        Some(Driven::Suspended(_)) => Some(Driven::Released),
                        driven => driven,
                    };
                }
                _ if self.is_dropped() => return Some(Driven::Lost),
                _ => {}
            }
        }
        None
    }

    /// Follows an order that came while nothing could be done about it; true when the flow must be dropped.
    fn is_dropped(&mut self) -> bool {
        self.order = self.control.order();
        self.order == Control::DROP
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
                    Committed::Suspended => {
                        machine.suspended(self.lease.epoch);
                        self.machine.take().map(Driven::Suspended)
                    }
                    Committed::Awake => {
                        self.awake = true;
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
                tracing::error!(%flow, error = ?error, "the log refused a commit");
                self.machine = None;
                self.commits -= 1;
                let reason = format!("the log refused what the flow wrote: {error}");
                self.write_stall(Batch::default(), reason).await
            }
        }
    }

    async fn end(&mut self, end: FlowEnd) -> Driven {
        if let Some(driven) = self.land().await {
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
        if let Some(driven) = self.land().await {
            return driven;
        }
        tracing::error!(flow = %self.lease.flow, %reason, "the flow is stalled");
        let differs = self.machine.as_ref().is_some_and(|machine| machine.flow().journal().missing_call().is_some());
        // What code began that does not match the history is not written: it is what may have to be undone. No body
        // has run then, so nothing is lost with it.
        let batch = if differs { Batch::default() } else { self.last_batch() };
        self.machine = None;
        self.write_stall(batch, reason).await
    }

    async fn write_stall(&mut self, batch: Batch, reason: String) -> Driven {
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
            match std::future::poll_fn(|cx| self.poll_log(cx)).await {
                Event::Committed(_, Ok(_)) => return Driven::Ended(state),
                Event::Committed(_, Err(error)) => {
                    if error.kind() == ErrorKind::TooLarge && state == FlowState::Completed {
                        return Box::pin(self.refused(&error)).await;
                    }
                    tracing::error!(flow = %self.lease.flow, error = ?error, "the end of the flow could not be written");
                    return Driven::Lost;
                }
                _ if self.is_dropped() => return Driven::Lost,
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
}

/// Looks for messages until there are some; once only when something must be there, or was.
async fn look(
    log: Arc<dyn ExecutionLog>,
    mut watch: Watch,
    flow: FlowId,
    wanted: Vec<(Channel, u32)>,
    once: bool,
) -> Vec<Message> {
    const PAGE: usize = 100;
    /// How long a hint is waited for before the flow looks by itself.
    const FALLBACK: Duration = Duration::from_secs(5);
    const RETRY: Duration = Duration::from_millis(100);
    loop {
        let mut found = Vec::new();
        let mut trouble = false;
        for (channel, after) in &wanted {
            match log.messages(&flow, std::slice::from_ref(channel), *after, PAGE).await {
                Ok(messages) => found.extend(messages),
                Err(error) => {
                    tracing::warn!(%flow, %error, "the mailbox could not be read");
                    trouble = true;
                }
            }
        }
        if !found.is_empty() || (once && !trouble) {
            return found;
        }
        let wait = if trouble { RETRY } else { FALLBACK };
        let _ = tokio::time::timeout(wait, watch.changed()).await;
        if trouble {
            // A hint must not turn trouble into a hot loop.
            tokio::time::sleep(RETRY).await;
        }
    }
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
