//! The loop of a worker.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ergon_storage::{
    ClaimRequest, ClaimTarget, Claimed, ClaimedFlow, Commit, ExecutionLog, FlowState, Lease, Next, Timestamp, Topic,
    Watch,
};
use futures::future::join_all;
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tracing::Instrument;

use super::{WorkerOptions, leases::Leases, parking::Parking, retention::Retention};
use crate::{
    StorageError,
    context::Env,
    drive::{Control, Drive, Driven, MESSAGES_MAX, complete, deadline_of, is_complete, load},
    flow::FlowDef,
    machine::Machine,
    meter::Origin,
    middleware::refused,
    spans,
};

/// The most flows that one claim asks for.
const CLAIM_MAX: usize = 256;
/// How often a worker lets the log hear of it that flows may be bound to.
const PRESENCE: Duration = Duration::from_secs(5);
/// A grace period that no clock could tell the end of is this one.
const GRACE_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);
/// How long the log may take, at the end of a shutdown, to take back the flows whose steps did not end.
const GIVING_BACK_MAX: Duration = Duration::from_secs(1);

/// The parts of a worker that its tasks share.
pub(super) struct Engine {
    log: Arc<dyn ExecutionLog>,
    env: Arc<Env>,
    defs: BTreeMap<(Arc<str>, u32), FlowDef>,
    target: ClaimTarget,
    options: WorkerOptions,
    leases: Leases,
    /// How many slots are in use. A drive keeps its slot until it has ended, also when its flow is no longer its: while it waits
    /// for the log, the flow may be claimed again, and run in another.
    taken: AtomicUsize,
    /// Leases that were let go because the log did not answer. What the log does is no fault of the flow's.
    let_go: Mutex<Vec<Lease>>,
    parking: Parking,
    /// A flow has left its slot.
    freed: Notify,
}

/// The tasks of a worker.
pub(super) struct Running {
    engine: Arc<Engine>,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Engine {
    pub(super) fn new(
        log: Arc<dyn ExecutionLog>,
        env: Arc<Env>,
        defs: BTreeMap<(Arc<str>, u32), FlowDef>,
        types: Arc<[(Arc<str>, u32)]>,
        options: WorkerOptions,
    ) -> Self {
        let target = ClaimTarget::Queues { queues: options.queues.clone().into(), types };
        let parking = Parking::new(options.parked_max, env.meters.clone());
        let (leases, taken) = (Leases::default(), AtomicUsize::new(0));
        let (let_go, freed) = (Mutex::default(), Notify::new());
        Self { log, env, defs, target, options, leases, taken, let_go, parking, freed }
    }

    pub(super) fn start(self, retention: Option<Retention>) -> Running {
        let engine = Arc::new(self);
        let (stop, stopped) = watch::channel(false);
        // Watch before the first claim: whatever comes after it is heard of.
        let queue = engine.log.watch(Topic::Queue);
        let stop_order = Stop { ordered: stopped, grace: engine.options.grace, grace_ends_at: None };
        let task = tokio::spawn(Arc::clone(&engine).run(queue, retention, stop_order));
        Running { engine, stop, task: Some(task) }
    }

    async fn run(self: Arc<Self>, queue: Watch, retention: Option<Retention>, mut stop: Stop) {
        tracing::info!(worker = %self.options.name, slots = self.options.slots, "worker started");
        let heartbeat = tokio::spawn({
            let engine = Arc::clone(&self);
            async move { engine.keep_leases().await }
        });
        let presence = Aside::start({
            let engine = Arc::clone(&self);
            async move { engine.stay_heard_of().await }
        });
        let _slots = self.env.meters.slots(self.options.slots);
        #[cfg(feature = "metrics")]
        let _sampling =
            self.options.sampling.map(|every| Aside::start(crate::meter::sample(Arc::clone(&self.log), every)));
        let retention = retention.map(|retention| Aside::start(retention.run()));
        let mut flows = JoinSet::new();
        self.claim_flows(queue, &mut stop, &mut flows).await;
        drop(retention);
        self.leases.drain();
        let grace_ends_at = stop.ordered().await;
        let ended = async { while flows.join_next().await.is_some() {} };
        let mut leases = Vec::new();
        if tokio::time::timeout_at(grace_ends_at, ended).await.is_err() {
            leases = self.leases.all();
            tracing::warn!(
                worker = %self.options.name,
                flows = leases.len(),
                "steps did not end within the grace period and are dropped; they run again elsewhere"
            );
            self.leases.drop_flows();
            flows.shutdown().await;
        }
        leases.append(&mut self.let_go());
        // Whoever's commit came through no longer holds the lease; the others give it back.
        let given_back = join_all(leases.iter().map(|lease| self.log.release(lease)));
        if tokio::time::timeout(GIVING_BACK_MAX, given_back).await.is_err() {
            tracing::warn!(worker = %self.options.name, "the log does not answer; the leases end by themselves");
        }
        heartbeat.abort();
        drop(presence);
        tracing::info!(worker = %self.options.name, "worker stopped");
    }

    async fn keep_leases(&self) {
        let mut wait = self.options.lease / 3;
        loop {
            let next = self.env.clock.now().saturating_add(wait);
            self.env.clock.sleep_until(next).await;
            wait = self.leases.renew(&*self.log, self.options.lease).await;
        }
    }

    /// Lets the log hear of the worker, from when on flows may be bound to it.
    async fn stay_heard_of(&self) {
        self.env.presence.began().await;
        loop {
            let mut request = ClaimRequest::new(Arc::clone(&self.options.name), self.target.clone());
            (request.limit, request.is_place) = (0, true);
            if let Err(error) = self.log.claim(request).await {
                tracing::debug!(worker = %self.options.name, %error, "the log does not hear of the worker");
            }
            self.env.clock.sleep_until(self.env.clock.now().saturating_add(PRESENCE)).await;
        }
    }

    /// Claims flows whenever there may be some and there is a slot for them, until it is stopped.
    async fn claim_flows(self: &Arc<Self>, mut queue: Watch, stop: &mut Stop, flows: &mut JoinSet<()>) {
        // Whether the queue may hold more than was claimed last.
        let mut more = true;
        let mut next_due_at = None;
        let mut trouble = Backoff::default();
        while !stop.is_ordered() {
            while let Some(ended) = flows.try_join_next() {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(worker = %self.options.name, %error, "a flow was let go because the engine panicked");
                }
            }
            let free = self.options.slots.saturating_sub(self.taken.load(Ordering::Acquire));
            if more && free > 0 {
                // Biased, as all that the engine waits for: the same events come to the same, which the simulation needs.
                tokio::select! {
                    biased;
                    _ = stop.ordered() => continue,
                    () = self.give_back() => {}
                }
                let limit = free.min(CLAIM_MAX);
                let asked_at = self.env.clock.now();
                let Some(claimed) = self.claim(limit, stop).await else { return };
                match claimed {
                    Ok(claimed) => {
                        trouble = Backoff::default();
                        if claimed.is_place {
                            self.env.presence.begin();
                        }
                        more = claimed.flows.len() == limit;
                        next_due_at = claimed.next_due_at.filter(|_| !more);
                        let until = asked_at.saturating_add(self.options.lease);
                        for flow in claimed.flows {
                            self.begin(flow, until, flows);
                        }
                    }
                    Err(error) => {
                        let delay = trouble.next();
                        tracing::warn!(worker = %self.options.name, %error, ?delay, "flows could not be claimed");
                        tokio::select! {
                            biased;
                            _ = stop.ordered() => {}
                            () = tokio::time::sleep(delay) => {}
                        }
                    }
                }
                if more {
                    // Others run before the next claim, and perhaps free their slots for it.
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            tokio::select! {
                biased;
                _ = stop.ordered() => {}
                maybe = self.wait(&mut queue, more, next_due_at) => more = maybe,
            }
        }
    }

    /// Claims at most so many flows. A claim that is under way at the stop is waited for, within the grace period:
    /// what it claimed would otherwise belong to nobody until its lease ends. `None` when that was in vain.
    async fn claim(&self, limit: usize, stop: &mut Stop) -> Option<Result<Claimed, StorageError>> {
        let mut request = ClaimRequest::new(Arc::clone(&self.options.name), self.target.clone());
        request.limit = limit;
        request.is_place = self.env.presence.is_place();
        request.messages_max = MESSAGES_MAX;
        request.lease = self.options.lease;
        request.deliveries_max = self.options.deliveries_max;
        let mut claim = self.log.claim(request);
        let grace_ends_at = tokio::select! {
            biased;
            claimed = &mut claim => return Some(claimed),
            grace_ends_at = stop.ordered() => grace_ends_at,
        };
        self.leases.drain();
        let claimed = tokio::time::timeout_at(grace_ends_at, claim).await.ok();
        if claimed.is_none() {
            tracing::warn!(worker = %self.options.name, "a claim is not answered; what it has claimed waits for others");
        }
        claimed
    }

    /// Gives back what was let go because the log did not answer, if it does now: such a claim is not counted as a
    /// delivery. The log refuses where someone else has the flow by now.
    async fn give_back(&self) {
        loop {
            // It stays on the list until the log has answered: a stop does not wait for that.
            let Some(lease) = self.let_go().last().cloned() else { return };
            if self.log.release(&lease).await.is_err_and(|error| error.is_retryable()) {
                return;
            }
            self.let_go().retain(|left| *left != lease);
        }
    }

    fn let_go(&self) -> MutexGuard<'_, Vec<Lease>> {
        self.let_go.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it makes sense to claim again. Returns whether there may be more to claim.
    async fn wait(&self, queue: &mut Watch, more: bool, next_due_at: Option<Timestamp>) -> bool {
        let due = async {
            match next_due_at {
                Some(due) => self.env.clock.sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = queue.changed() => true,
            () = due => true,
            () = self.freed.notified(), if more => true,
            () = tokio::time::sleep(self.options.fallback) => true,
        }
    }

    fn begin(self: &Arc<Self>, flow: ClaimedFlow, until: Timestamp, flows: &mut JoinSet<()>) {
        let flow = Box::new(flow);
        let control = Arc::new(Control::new(until));
        let lease = flow.lease.clone();
        self.taken.fetch_add(1, Ordering::AcqRel);
        self.leases.add(lease.clone(), Arc::clone(&control));
        let engine = Arc::clone(self);
        // In a box, for spawning moves a future several times, and this one is large.
        flows.spawn(Box::pin(async move {
            // The slot is freed even when the task is aborted.
            let _slot = Slot { engine: &engine, lease: &lease };
            let _held = engine.env.meters.slot();
            engine.drive(flow, control).await;
        }));
    }

    async fn drive(&self, mut claimed: Box<ClaimedFlow>, control: Arc<Control>) {
        let meter = self.env.meters.flow(&claimed.info.flow_type);
        let parked = self.parking.unpark(&claimed);
        meter.claimed(&claimed.info, if parked.is_some() { Origin::Memory } else { Origin::Log });
        let machine = match parked {
            Some(machine) => {
                machine.flow().journal().receive(mem::take(&mut claimed.messages));
                machine
            }
            None => match self.load(&mut claimed, &control).await {
                Some(machine) => machine,
                None => return,
            },
        };
        let ClaimedFlow { lease, info, .. } = &*claimed;
        let span = spans::flow(info, lease.epoch);
        let mut drive = Drive::new(
            Arc::clone(&self.log),
            lease.clone(),
            deadline_of(info),
            self.options.drive.clone(),
            control,
            machine,
        );
        let layers = &self.env.layers;
        let driven = if layers.surround(info, &*self.env.clock) {
            match Box::pin(layers.flow(info, drive.run())).instrument(span).await {
                Ok(driven) => driven,
                Err(refusal) => {
                    let build = &self.options.drive.build;
                    Box::pin(refused(&*self.log, lease, build, &refusal)).await.unwrap_or_else(|error| {
                        tracing::warn!(error = ?error, "a refused flow could not be put aside; its lease is given back");
                        Driven::Lost
                    })
                }
            }
        } else {
            drive.run().instrument(span).await
        };
        drop(drive);
        meter.driven(&driven, info, &*self.env.clock);
        match driven {
            Driven::Ended(state) => {
                if matches!(state, FlowState::Failed | FlowState::Stalled) {
                    tracing::warn!(flow = %info.id, flow_type = %info.flow_type, %state, "flow ended");
                } else {
                    tracing::debug!(flow = %info.id, flow_type = %info.flow_type, %state, "flow ended");
                }
            }
            Driven::Continued => {
                tracing::debug!(flow = %info.id, flow_type = %info.flow_type, run = info.run, "flow begins its next run");
            }
            Driven::Suspended(machine) => {
                tracing::debug!(flow = %info.id, "flow suspended");
                self.parking.park(machine);
            }
            Driven::Released | Driven::Refused => {}
            Driven::Lost => self.let_go().push(lease.clone()),
        }
    }

    async fn load(&self, claimed: &mut ClaimedFlow, control: &Control) -> Option<Box<Machine>> {
        let info = &claimed.info;
        let Some(def) = self.defs.get(&(Arc::clone(&info.flow_type), info.version)) else {
            tracing::error!(flow = %info.id, "the log gave a flow of a type that was not asked for");
            let _ = self.log.release(&claimed.lease).await;
            return None;
        };
        if !is_complete(claimed) && !Box::pin(self.complete(claimed, control)).await {
            return None;
        }
        Some(Box::new(load(&self.env, def, claimed)))
    }

    /// Reads what the claim did not carry. False when that was in vain, and the flow is let go or stalled.
    async fn complete(&self, claimed: &mut ClaimedFlow, control: &Control) -> bool {
        let mut trouble = Backoff::default();
        loop {
            match complete(&*self.log, claimed).await {
                Ok(()) => return true,
                Err(error) if error.is_retryable() && self.env.clock.now() < control.until() => {
                    let delay = trouble.next();
                    tracing::warn!(flow = %claimed.lease.flow, %error, ?delay, "the history cannot be read now");
                    tokio::time::sleep(delay).await;
                }
                Err(error) => {
                    let lease = claimed.lease.clone();
                    tracing::error!(flow = %lease.flow, error = ?error, "the history cannot be read");
                    if error.is_retryable() {
                        self.let_go().push(lease);
                    } else {
                        self.stall(lease, format!("the history cannot be read: {error}")).await;
                    }
                    return false;
                }
            }
        }
    }

    async fn stall(&self, lease: Lease, reason: String) -> Driven {
        let mut commit = Commit::new(lease, 1);
        commit.next = Next::Stall { reason: reason.into(), build: Arc::clone(&self.options.drive.build) };
        match self.log.commit(commit).await {
            Ok(_) => Driven::Ended(FlowState::Stalled),
            Err(error) => {
                tracing::error!(error = ?error, "the flow could not be stalled; its lease ends by itself");
                Driven::Refused
            }
        }
    }
}

/// The order to stop, once it is given.
struct Stop {
    ordered: watch::Receiver<bool>,
    grace: Duration,
    /// Counted from when the order was first heard of.
    grace_ends_at: Option<Instant>,
}

impl Stop {
    fn is_ordered(&self) -> bool {
        *self.ordered.borrow()
    }

    /// Waits for the order, and returns when the grace period ends.
    async fn ordered(&mut self) -> Instant {
        // Without anyone who could give it, it counts as given.
        let _ = self.ordered.wait_for(|ordered| *ordered).await;
        *self.grace_ends_at.get_or_insert_with(|| {
            let now = Instant::now();
            now.checked_add(self.grace).unwrap_or(now + GRACE_MAX)
        })
    }
}

/// A task beside the flows, which ends with its handle.
struct Aside(JoinHandle<()>);

impl Aside {
    fn start(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A slot in use.
struct Slot<'a> {
    engine: &'a Engine,
    lease: &'a Lease,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.engine.leases.remove(self.lease);
        self.engine.taken.fetch_sub(1, Ordering::AcqRel);
        self.engine.freed.notify_one();
    }
}

/// Rising delays while the log does not answer.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    fn next(&mut self) -> Duration {
        let delay = Duration::from_millis(20) * 2_u32.saturating_pow(self.0.min(6));
        self.0 += 1;
        delay
    }
}

impl Running {
    pub(super) async fn shutdown(&mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }

    pub(super) fn running(&self) -> usize {
        self.engine.leases.len()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
