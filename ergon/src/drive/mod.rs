//! Runs one leased flow: polls its [`Machine`], commits what it collects, waits, and lets go in time.

mod claim;
mod control;
mod mail;

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use ergon_storage::{
    CallKind, CallPath, Channel, Cleanup, Commit, CommitNow, Committed, ErrorKind, ExecutionLog, FlowId, FlowState,
    Labels, Lease, Message, Next, Record, Timestamp, Topic, Wake,
};
use futures::future::{BoxFuture, Either, select};

use self::mail::{Look, heard_of_children, look};
pub(crate) use self::{
    claim::{MESSAGES_MAX, complete, deadline_of, is_complete, load},
    control::Control,
};
use crate::{
    context::FlowContext,
    error::Error,
    flow::FlowEnd,
    journal::Batch,
    machine::{Effects, Machine, Progress},
    session,
};

/// What driving needs to know.
#[derive(Debug, Clone)]
pub(crate) struct DriveOptions {
    /// A wait shorter than this is waited for with the flow in memory and its lease held.
    pub(crate) moment: Duration,
    /// How long a flow whose code misses a recorded call may go on waiting for something that is not durable,
    /// before it is stalled.
    pub(crate) patience: Duration,
    /// How long bodies that watch for the cancellation of their flow may go on after it.
    pub(crate) cancel_grace: Duration,
    /// Which code this is.
    pub(crate) build: Arc<str>,
}

/// How driving ended.
pub(crate) enum Driven {
    /// The flow is in its final state, or stalled.
    Ended(FlowState),
    /// The flow is scheduled again, for its next run.
    Continued,
    /// The flow waits in the log. The machine may be kept to spare the replay.
    Suspended(Box<Machine>),
    /// The flow was given back.
    Released,
    /// The lease is gone, or the log does not answer: another worker goes on.
    Lost,
    /// The log refuses for good to write how the flow ended, and that it is stalled too. The lease ends by itself and
    /// the claim stays counted, so that this cannot go on for ever.
    Refused,
}

/// Drives a flow until it ends, waits for long, or must be let go.
pub(crate) struct Drive {
    log: Arc<dyn ExecutionLog>,
    lease: Lease,
    deadline_at: Option<Timestamp>,
    options: DriveOptions,
    control: Arc<Control>,
    /// The flow, also when its machine is gone.
    flow: Arc<FlowContext>,
    machine: Option<Box<Machine>>,
    commits: u32,
    flight: Option<Flight>,
    /// How many commits were answered at once since others had a turn.
    unbroken: u32,
    /// It is time to hear what has come, whatever the flow could do meanwhile.
    hears: bool,
    timer: Option<(Timestamp, BoxFuture<'static, ()>)>,
    mail: Option<Mail>,
    /// The log found that something which wakes the flow is there already.
    awake: bool,
    /// The flow's code does not rest.
    restless: bool,
    /// The last order that was followed.
    order: u8,
    /// Since when the code misses a recorded call.
    missing: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// A commit that is under way.
struct Flight {
    end: Option<FlowState>,
    /// The flow is to be suspended.
    suspends: bool,
    /// The calls that wait only for their children to be accepted.
    starts: Vec<CallPath>,
    /// The labels that the flow is given.
    labels: Option<Labels>,
    done: Landing,
}

/// What became of a commit, and if it was applied what the log says about children that must be accepted.
type Answer = Result<(Committed, Told), ergon_storage::Error>;

/// What the log says about children, or why it never will.
type Told = Result<Vec<Message>, ergon_storage::Error>;

/// The answer to a commit, or the wait for it.
enum Landing {
    Known(Option<Answer>),
    Awaited(BoxFuture<'static, Answer>),
}

/// What the code of a flow leaves when it is done.
#[derive(Default)]
struct Last {
    batch: Batch,
    /// The calls to make again if the flow has failed and is retried.
    again: Vec<CallPath>,
    /// The messages that the code has taken.
    taken: Vec<u32>,
    /// How many items its code has emitted if the flow has failed and is retried, where that is not all.
    emitted: Option<u32>,
}

/// A look into the mailbox, or the wait for a reason to look.
struct Mail {
    /// What is looked for: channels, and after which message.
    wanted: Vec<(Channel, u32)>,
    /// The waits that were overdue before it was looked: their time limits hold when nothing is found.
    overdue: Vec<u64>,
    done: BoxFuture<'static, Look>,
}

/// A commit that is over.
struct Landed {
    end: Option<FlowState>,
    starts: Vec<CallPath>,
    labels: Option<Labels>,
    result: Answer,
}

impl Landing {
    /// Commits, for as long as it takes, and then asks what the log says about children after this message, if any.
    fn of(log: Arc<dyn ExecutionLog>, commit: Commit, heard: Option<u32>) -> Self {
        Self::Awaited(Box::pin(async move {
            let flow = commit.lease.flow.clone();
            let committed = persist(|| log.commit(commit.clone()), &flow).await?;
            let told = match heard {
                Some(heard) => persist(|| heard_of_children(&*log, &flow, heard), &flow).await,
                None => Ok(Vec::new()),
            };
            Ok((committed, told))
        }))
    }

    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Answer> {
        match self {
            Self::Known(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            Self::Awaited(answer) => answer.as_mut().poll(cx),
        }
    }
}

/// Something that happened while a flow was waited for.
enum Event {
    Woken,
    Ordered,
    Committed(Landed),
    Due,
    Mail {
        found: Look,
        overdue: Vec<u64>,
    },
    /// The mailbox, for this reason.
    Unreadable(String),
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
        machine.flow().leased(&lease);
        let flow = Arc::clone(machine.flow());
        Self {
            log,
            lease,
            deadline_at,
            options,
            control,
            flow,
            machine: Some(machine),
            commits: 0,
            flight: None,
            unbroken: 0,
            hears: false,
            timer: None,
            mail: None,
            awake: false,
            restless: false,
            order: Control::RUN,
            missing: None,
        }
    }

    /// Drives it to where it ends, waits or is let go. What is left of it is to be dropped then.
    pub(crate) async fn run(&mut self) -> Driven {
        if self.flow.was_in_session
            && let Some(driven) = Box::pin(self.catch_up()).await
        {
            return driven;
        }
        self.go_on().await
    }

    async fn go_on(&mut self) -> Driven {
        loop {
            let Some(flow) = self.machine.as_ref().map(|machine| Arc::clone(machine.flow())) else {
                return Driven::Lost;
            };
            let now = flow.env.clock.now();
            let Some(effects) = self.effects(now) else { return Box::pin(self.let_go()).await };
            if self.flight.as_ref().is_some_and(|flight| flight.suspends) {
                // Until the answer is here nothing may go on: the flow may be another worker's by then.
                if let Some(driven) = self.land().await {
                    return driven;
                }
                continue;
            }
            if self.flight.is_none() && self.deadline_at.is_some_and(|deadline| deadline <= now) {
                return Box::pin(self.time_is_up(now)).await;
            }
            let Some(machine) = &mut self.machine else { return Driven::Lost };
            let progress = machine.advance(effects, now);
            let mut due = None;
            let mut overdue = Vec::new();
            self.restless = matches!(progress, Progress::Yield);
            match progress {
                Progress::Ended(end) => return self.end(end).await,
                Progress::Stalled(reason) => return Box::pin(self.stall(reason)).await,
                Progress::Missing(reason) => {
                    let patience = self.options.patience;
                    let missing = self.missing.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    if missing.is_elapsed() || patience.is_zero() {
                        return Box::pin(self.stall(reason)).await;
                    }
                }
                Progress::Flush if self.flight.is_some() => self.missing = None,
                Progress::Flush | Progress::Wait | Progress::Yield => {
                    self.missing = None;
                    if effects == Effects::Allowed && self.goes_on(&flow, now).await {
                        continue;
                    }
                    let (busy, wake, beats_due, is_full, batch, grants) = {
                        let mut journal = flow.journal();
                        overdue = journal.overdue(|| flow.env.clock.now());
                        let held_up = || effects != Effects::Allowed && journal.is_held_up();
                        let busy = journal.is_busy() && !held_up() || journal.has_fresh();
                        let writes = self.flight.is_none() && (journal.has_batch() || flow.has_unwritten(&journal));
                        let is_full = journal.is_full() && !journal.has_intended();
                        let batch = writes.then(|| journal.take_batch());
                        (busy, journal.wake(), journal.beats_due(), is_full, batch, journal.wants_grant(now))
                    };
                    let starts = batch.as_ref().is_some_and(|batch| !batch.starts.is_empty());
                    let idle = !busy && !starts && self.flight.is_none() && !grants;
                    let may_let_go = batch.is_none() || is_full;
                    if effects != Effects::Allowed && may_let_go && !busy && self.flight.is_none() {
                        return Box::pin(self.give_back(batch)).await;
                    }
                    due = wake.at.into_iter().chain(beats_due).min();
                    let rests = idle
                        && !self.restless
                        && effects == Effects::Allowed
                        && !self.awake
                        && self.is_long(&wake, now);
                    if rests {
                        (self.mail, due) = (None, None);
                        let (batch, heard) = {
                            let mut journal = flow.journal();
                            // With the heartbeats whose turn has not come.
                            let batch = batch.unwrap_or_else(|| journal.take_batch());
                            (batch, journal.heard(&wake.channels))
                        };
                        self.commit(batch, Next::Suspend { wake, heard }, None);
                    } else {
                        if let Some(batch) = batch
                            && self.flush(batch).await
                        {
                            continue;
                        }
                        self.listen(&flow, wake.channels, &overdue);
                    }
                }
            }
            // What has come due already waits for the commit that is under way: to be woken for it at once, again and
            // again, would help nobody.
            // Nor while the mailbox is read on account of it.
            let held_up = self.flight.is_some() || !overdue.is_empty();
            self.set_timer(due.filter(|due| !held_up || *due > now));
            self.give_turn().await;
            match self.event().await {
                Event::Woken | Event::Ordered | Event::Due | Event::OutOfPatience => {}
                Event::Unreadable(reason) => return Box::pin(self.stall(reason)).await,
                Event::Mail { found, overdue } => {
                    self.awake = false;
                    let mut journal = flow.journal();
                    if found.complete {
                        journal.looked(overdue);
                    }
                    journal.receive(found.messages);
                }
                Event::Committed(landed) => {
                    if let Some(driven) = self.committed(landed).await {
                        return driven;
                    }
                }
            }
        }
    }

    /// Brings the code to where it was, and tells it before anything new if it is in a session there that began on another
    /// worker.
    async fn catch_up(&mut self) -> Option<Driven> {
        let now = self.flow.env.clock.now();
        match self.machine.as_mut()?.advance(Effects::Replayed, now) {
            Progress::Ended(end) => return Some(self.end(end).await),
            Progress::Stalled(reason) => return Some(self.stall(reason).await),
            _ => {}
        }
        let worker = &self.flow.env.presence.worker;
        let lost = self.flow.labels.lost_session(worker)?;
        if self.flow.journal().holds_mail(&[session::channel_of(&lost)]) {
            return None;
        }
        let telling = persist(|| session::tell(&*self.log, &self.lease, &lost, worker), &self.lease.flow);
        let clock = self.log.clock();
        let told = match select(pin!(telling), pin!(self.control.ordered(&*clock, self.order))).await {
            Either::Left((told, _)) => Ok(told),
            Either::Right((order, _)) => Err(order),
        };
        // Without that it must not go on here.
        match told {
            Err(Control::DRAIN) => return Some(self.release().await),
            Err(Control::CANCEL) => return Some(self.let_go().await),
            Err(_) => return Some(Driven::Lost),
            Ok(Ok(told)) => self.flow.journal().receive(told),
            Ok(Err(error)) if error.kind() == ErrorKind::LeaseLost => return Some(self.let_go().await),
            Ok(Err(error)) => {
                return Some(self.stall(format!("the flow cannot be told that its session is lost: {error}")).await);
            }
        }
        None
    }

    /// Writes what is to be written before a body that is to begin. True when the log has answered at once: what else the
    /// flow waits for need not be looked at then.
    async fn goes_on(&mut self, flow: &FlowContext, now: Timestamp) -> bool {
        if self.flight.is_some() {
            return false;
        }
        let batch = {
            let mut journal = flow.journal();
            if !journal.has_batch() || !journal.wants_grant(now) {
                return false;
            }
            journal.take_batch()
        };
        self.flush(batch).await
    }

    /// Writes what was collected. True when the log has answered at once, and nothing else need be looked at.
    async fn flush(&mut self, batch: Batch) -> bool {
        self.commit(batch, Next::Run, None);
        if self.flight.is_some() {
            return false;
        }
        // Messages and time limits come to a flow whose steps are quick as they do to any other.
        self.hears = self.unbroken >= TURN_MAX;
        if !self.hears {
            self.give_turn().await;
        }
        !self.hears
    }

    /// Lets other flows have a turn, if it is time.
    async fn give_turn(&mut self) {
        // Code that wakes itself; or nothing else would have the flow wait, for its steps are quick, and so is the log.
        let is_woken = self.machine.as_ref().is_some_and(|machine| machine.is_woken());
        if is_woken || self.unbroken >= TURN_MAX {
            tokio::task::yield_now().await;
            self.unbroken = 0;
        }
    }

    /// What the code may do now; `None` when the flow must be dropped.
    fn effects(&mut self, now: Timestamp) -> Option<Effects> {
        let lapsed = now >= self.control.until();
        if lapsed {
            // This process was paused, or the log kept it waiting: another worker may run the flow by now.
            self.control.drain();
        }
        self.order = self.control.order();
        match self.order {
            Control::RUN => Some(Effects::Allowed),
            Control::DRAIN if lapsed => Some(Effects::Lapsed),
            Control::DRAIN => Some(Effects::Held),
            _ => None,
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
        let woken = self.machine.as_ref().is_some_and(|machine| machine.poll_woken(cx).is_ready());
        // Code that is always awake must not keep everything else from being heard.
        let hears = std::mem::take(&mut self.hears);
        if woken && !self.restless && !hears && self.missing.is_none() {
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
            && let Poll::Ready(found) = mail.done.as_mut().poll(cx)
        {
            let overdue = self.mail.take().map(|mail| mail.overdue).unwrap_or_default();
            return Poll::Ready(match found.unreadable {
                Some(error) => Event::Unreadable(unreadable(&error)),
                None => Event::Mail { found, overdue },
            });
        }
        if woken || hears { Poll::Ready(Event::Woken) } else { Poll::Pending }
    }

    /// Polls what goes on between the log, the worker and this flow, not the flow.
    fn poll_log(&mut self, cx: &mut task::Context<'_>) -> Poll<Event> {
        self.control.task.register(cx.waker());
        if self.control.order() != self.order {
            return Poll::Ready(Event::Ordered);
        }
        if let Some(flight) = &mut self.flight
            && let Poll::Ready(result) = flight.done.poll(cx)
        {
            let (end, starts) = (flight.end, std::mem::take(&mut flight.starts));
            let labels = flight.labels.take();
            self.flight = None;
            return Poll::Ready(Event::Committed(Landed { end, starts, labels, result }));
        }
        Poll::Pending
    }

    /// Begins to look for messages on these channels, unless that is going on.
    ///
    /// For waits that are overdue it is looked once, at once.
    fn listen(&mut self, flow: &FlowContext, channels: Vec<Channel>, overdue: &[u64]) {
        if channels.is_empty() && !self.awake {
            self.mail = None;
            return;
        }
        let wanted: Vec<_> = {
            let journal = flow.journal();
            channels.into_iter().map(|channel| (channel.clone(), journal.mail_seen(&channel))).collect()
        };
        let looks_for = |mail: &Mail| mail.wanted == wanted && overdue.iter().all(|wait| mail.overdue.contains(wait));
        if !self.mail.as_ref().is_some_and(looks_for) {
            // Watch first, then look: whatever comes in between is hinted at.
            let watch = self.log.watch(Topic::Flow(flow.id.clone()));
            let once = self.awake || !overdue.is_empty();
            let done = look(Arc::clone(&self.log), watch, flow.id.clone(), wanted.clone(), once);
            self.mail = Some(Mail { wanted, overdue: overdue.to_vec(), done: Box::pin(done) });
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

    /// Begins a commit. It is over already when nothing is under way afterwards.
    fn commit(&mut self, batch: Batch, next: Next, end: Option<FlowState>) {
        debug_assert!(self.flight.is_none(), "one commit at a time");
        self.commits += 1;
        let Batch { records, beats, consumed, children, starts, items, emitted, cleanup } = batch;
        let suspends = matches!(next, Next::Suspend { .. });
        let is_stalled = matches!(next, Next::Stall { .. });
        let labels = self.flow.labels.unwritten().filter(|_| !is_stalled && self.flow.journal().has_caught_up());
        let commit = Commit {
            lease: self.lease.clone(),
            number: self.commits,
            records,
            beats,
            consumed,
            children,
            labels: labels.clone(),
            items,
            emitted,
            cleanup,
            next,
        };
        let heard = self.machine.as_ref().filter(|_| !starts.is_empty());
        let heard = heard.map(|machine| machine.flow().journal().mail_seen(&Channel::children()));
        let done = if heard.is_some() {
            Landing::of(Arc::clone(&self.log), commit, heard)
        } else {
            match self.log.commit_now(commit) {
                CommitNow::Answered(Ok(Committed::Applied)) if end.is_none() && !suspends => {
                    self.unbroken += 1;
                    self.flow.journal().flushed();
                    if let Some(labels) = labels {
                        self.flow.labels.written(labels);
                    }
                    return;
                }
                CommitNow::Answered(result) => {
                    self.unbroken += 1;
                    Landing::Known(Some(result.map(|committed| (committed, Ok(Vec::new())))))
                }
                CommitNow::NotNow(commit) => Landing::of(Arc::clone(&self.log), commit, None),
            }
        };
        self.flight = Some(Flight { end, suspends, starts, labels, done });
    }

    /// Waits for the commit that is under way, if any.
    async fn land(&mut self) -> Option<Driven> {
        while self.flight.is_some() {
            match std::future::poll_fn(|cx| self.poll_log(cx)).await {
                Event::Committed(landed) => return self.committed(landed).await,
                _ if self.is_dropped() => return Some(Box::pin(self.let_go()).await),
                _ => {}
            }
        }
        None
    }

    /// Follows an order that came while nothing could be done about it; true when the flow must be dropped.
    fn is_dropped(&mut self) -> bool {
        self.order = self.control.order();
        self.order >= Control::CANCEL
    }

    /// Drops the flow: its lease is gone. If it was cancelled, the bodies that watch for that may end before.
    async fn let_go(&mut self) -> Driven {
        let watched = self.machine.as_ref().is_some_and(|machine| machine.flow().is_watched());
        if watched && self.control.order() != Control::DROP {
            let clock = self.log.clock();
            let mut until = clock.now().saturating_add(self.options.cancel_grace);
            if self.flow.journal().is_flagged() {
                // Another worker may clean up from then on.
                until = until.min(self.control.until());
            }
            let grace = clock.sleep_until(until);
            select(grace, pin!(self.wind_down())).await;
        }
        if self.control.order() != Control::DROP && self.flow.journal().is_flagged() {
            // It has let go of the bodies by now, and the clean-up need not wait for the end of the lease.
            return self.release().await;
        }
        Driven::Lost
    }

    /// Tells the bodies that watch for it why the flow was cancelled, if it was, and polls them until they end.
    async fn wind_down(&mut self) {
        let Self { log, control, machine: Some(machine), .. } = self else { return };
        let flow = Arc::clone(machine.flow());
        let record = persist(|| log.flow(&flow.id), &flow.id).await.ok().flatten();
        let same = record.filter(|record| record.info.created_at == flow.created_at);
        let reason = match same.map(|record| record.info) {
            Some(info) if info.state == FlowState::Cancelled => info.reason.unwrap_or_default(),
            Some(info) if info.is_cleaning_up() => {
                let history = persist(|| log.history(&flow.id, info.records.saturating_sub(1), 1), &flow.id).await;
                let history = history.unwrap_or_default();
                let record = history.iter().find(|record| record.kind == CallKind::Cancel);
                record.map(|record| String::from_utf8_lossy(&record.payload).into()).unwrap_or_default()
            }
            _ => return,
        };
        flow.cancel(reason);
        while flow.is_watched() && control.order() != Control::DROP {
            // Nothing is written any more, so nothing is released and nothing begins.
            if let Progress::Ended(_) | Progress::Stalled(_) = machine.advance(Effects::Replayed, flow.env.clock.now())
            {
                return;
            }
            if machine.is_woken() {
                tokio::task::yield_now().await;
            }
            let (machine, control, flow) = (&mut *machine, &*control, &*flow);
            std::future::poll_fn(move |cx| {
                control.task.register(cx.waker());
                let over = control.order() == Control::DROP || !flow.is_watched();
                if over { Poll::Ready(()) } else { machine.poll_woken(cx) }
            })
            .await;
        }
    }

    async fn committed(&mut self, Landed { end, starts, labels, result }: Landed) -> Option<Driven> {
        let machine = self.machine.as_mut()?;
        match result {
            Ok((committed, told)) => {
                machine.flow().journal().flushed();
                let told = match told {
                    Ok(told) => told,
                    Err(error) => return Some(Box::pin(self.stall_unreadable(&error)).await),
                };
                {
                    let mut journal = machine.flow().journal();
                    journal.receive(told);
                    journal.started(starts);
                }
                if let Some(labels) = labels {
                    self.flow.labels.written(labels);
                }
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
            Err(error) => Some(Box::pin(self.refused(&error)).await),
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
                self.finish(Last::default(), end).await
            }
            ErrorKind::LeaseLost => {
                tracing::info!(%flow, "the lease is gone; the flow goes on elsewhere, or was cancelled");
                self.let_go().await
            }
            _ => self.refused_for_good(error).await,
        }
    }

    /// The log will never take what was to be written, and stalls the flow without it.
    async fn refused_for_good(&mut self, error: &ergon_storage::Error) -> Driven {
        tracing::error!(flow = %self.lease.flow, error = ?error, "the log refused a commit");
        self.machine = None;
        self.commits -= 1;
        let reason = format!("the log refused what the flow wrote: {error}");
        self.write_stall(Batch::default(), reason).await
    }

    /// What was written stands, but the mailbox, which must be read now, never can be.
    async fn stall_unreadable(&mut self, error: &ergon_storage::Error) -> Driven {
        self.machine = None;
        let reason = unreadable(error);
        tracing::error!(flow = %self.lease.flow, %reason, "the flow is stalled");
        self.write_stall(Batch::default(), reason).await
    }

    /// Waits for the commit that is under way, after the code has ended.
    async fn land_last(&mut self) -> Option<Driven> {
        match self.land().await {
            // The flow is suspended in the log, before its end: whoever claims it comes here again.
            Some(Driven::Suspended(_)) => Some(Driven::Released),
            driven => driven,
        }
    }

    async fn end(&mut self, end: FlowEnd) -> Driven {
        if let Some(driven) = self.land_last().await {
            return driven;
        }
        let last = self.take_last();
        self.finish(last, end).await
    }

    fn take_last(&mut self) -> Last {
        // The code is done: what it still holds is dropped before its end is written, as it would be otherwise.
        let Some(machine) = self.machine.take() else { return Last::default() };
        let mut journal = machine.flow().journal();
        let (again, taken, emitted) = (journal.failed_calls(), journal.taken(), journal.emitted_if_retried());
        Last { again, taken, emitted, batch: journal.take_batch() }
    }

    async fn finish(&mut self, Last { mut batch, again, taken, emitted }: Last, end: FlowEnd) -> Driven {
        let (next, state) = match end {
            FlowEnd::Completed { result } => (Next::Complete { result }, FlowState::Completed),
            FlowEnd::Failed { error, reason } => {
                batch.emitted = emitted.or(batch.emitted);
                (Next::Fail { error, reason: reason.into(), again }, FlowState::Failed)
            }
            FlowEnd::Cancelled { reason } => (Next::Cancel { reason }, FlowState::Cancelled),
            FlowEnd::Continued { input } => {
                // The history goes, and with it what tells that messages were taken which are in the mailbox still.
                batch.consumed.extend(taken);
                batch.records.clear();
                batch.beats.clear();
                batch.cleanup = Cleanup::None;
                (Next::Continue { input }, FlowState::Scheduled)
            }
        };
        self.last(batch, next, state).await
    }

    async fn stall(&mut self, reason: String) -> Driven {
        if let Some(driven) = self.land_last().await {
            return driven;
        }
        tracing::error!(flow = %self.lease.flow, %reason, "the flow is stalled");
        let differs = self.machine.as_ref().is_some_and(|machine| machine.flow().journal().missing_call().is_some());
        // What code began that does not match the history is not written: it is what may have to be undone. No body
        // has run then, so nothing is lost with it.
        let batch = if differs { Batch::default() } else { self.take_last().batch };
        self.machine = None;
        self.write_stall(batch, reason).await
    }

    async fn write_stall(&mut self, batch: Batch, reason: String) -> Driven {
        let build = Arc::clone(&self.options.build);
        self.last(batch, Next::Stall { reason: reason.into(), build }, FlowState::Stalled).await
    }

    /// The flow's time limit has passed.
    async fn time_is_up(&mut self, now: Timestamp) -> Driven {
        let Some(machine) = &mut self.machine else { return Driven::Lost };
        let is_behind = machine.flow().journal().is_behind();
        if is_behind {
            // First to where it was: what a retry makes again must not depend on who runs it.
            match machine.advance(Effects::Replayed, now) {
                Progress::Ended(end) => return self.end(end).await,
                Progress::Stalled(reason) => return self.stall(reason).await,
                _ => {}
            }
        }
        let cleans_up = {
            let journal = self.flow.journal();
            // Code that waits for something which is not durable has not opened its scopes again.
            journal.has_scopes() || journal.is_behind() && journal.is_flagged()
        };
        let mut last = self.take_last();
        let mut seq = self.flow.journal().seq();
        if is_behind {
            // What the code would have begun next.
            seq -= u32::try_from(last.batch.records.len()).unwrap_or(0);
            last.batch = Batch::default();
        }
        if cleans_up && seq < Record::SEQ_MAX {
            let Batch { records, cleanup, .. } = &mut last.batch;
            records.push(Record::cancel(seq + 1, now, Record::TIME_IS_UP, TIME_IS_UP));
            *cleanup = Cleanup::Underway;
            // Whoever claims it next comes to this record, and cleans up.
            return match self.last(last.batch, Next::Run, FlowState::Scheduled).await {
                Driven::Continued => self.release().await,
                driven => driven,
            };
        }
        let error = Error::of(crate::error::ErrorKind::Timeout, TIME_IS_UP).into_permanent();
        self.finish(last, FlowEnd::fault(&error)).await
    }

    async fn last(&mut self, batch: Batch, next: Next, state: FlowState) -> Driven {
        self.commit(batch, next, Some(state));
        loop {
            match std::future::poll_fn(|cx| self.poll_log(cx)).await {
                Event::Committed(Landed { result: Ok(_), .. }) if state == FlowState::Scheduled => {
                    return Driven::Continued;
                }
                Event::Committed(Landed { result: Ok(_), .. }) => return Driven::Ended(state),
                Event::Committed(Landed { result: Err(error), .. }) => {
                    return match (error.kind(), state) {
                        (ErrorKind::LeaseLost, _)
                        | (ErrorKind::TooLarge, FlowState::Completed | FlowState::Scheduled) => {
                            Box::pin(self.refused(&error)).await
                        }
                        (_, FlowState::Stalled) => {
                            let flow = &self.lease.flow;
                            tracing::error!(%flow, error = ?error, "the flow could not be stalled");
                            Driven::Refused
                        }
                        _ => Box::pin(self.refused_for_good(&error)).await,
                    };
                }
                _ if self.is_dropped() => return Box::pin(self.let_go()).await,
                _ => {}
            }
        }
    }

    /// Writes what was collected, if anything, and gives the flow back.
    async fn give_back(&mut self, batch: Option<Batch>) -> Driven {
        if let Some(batch) = batch {
            self.commit(batch, Next::Run, None);
            if let Some(driven) = self.land().await {
                return driven;
            }
        }
        self.release().await
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

/// Why a flow is stalled that has such a mailbox.
fn unreadable(error: &ergon_storage::Error) -> String {
    format!("the mailbox cannot be read: {error}")
}

/// What a flow says that has exceeded its time limit.
const TIME_IS_UP: &str = "the flow exceeded its time limit";
/// How many commits in a row may be answered without any wait before others have a turn.
const TURN_MAX: u32 = 64;

/// Asks the log, again for as long as it cannot answer. Whoever drives the flow drops this future when the lease is
/// gone.
pub(crate) async fn persist<T, F>(ask: impl Fn() -> F, flow: &FlowId) -> Result<T, ergon_storage::Error>
where
    F: Future<Output = Result<T, ergon_storage::Error>>,
{
    const FIRST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);
    let mut delay = FIRST;
    loop {
        match ask().await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(%flow, %error, ?delay, "the log cannot answer, trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LONGEST);
            }
            result => return result,
        }
    }
}
