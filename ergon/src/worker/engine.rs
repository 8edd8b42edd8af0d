//! The loop of a worker.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ergon_storage::{
    ClaimRequest, ClaimTarget, Claimed, ClaimedFlow, Commit, ExecutionLog, FlowState, Lease, Next, Timestamp, Topic,
    Watch,
};
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
};
use tracing::Instrument;

use super::{WorkerOptions, leases::Leases, parking::Parking};
use crate::{
    StorageError,
    context::Env,
    drive::{Control, Drive, Driven, load},
    flow::FlowDef,
};

/// The most flows that one claim asks for.
const CLAIM_MAX: usize = 256;

/// The parts of a worker that its tasks share.
pub(super) struct Engine {
    log: Arc<dyn ExecutionLog>,
    env: Arc<Env>,
    defs: HashMap<(Arc<str>, u32), FlowDef>,
    target: ClaimTarget,
    options: WorkerOptions,
    leases: Leases,
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
        defs: HashMap<(Arc<str>, u32), FlowDef>,
        types: Arc<[(Arc<str>, u32)]>,
        options: WorkerOptions,
    ) -> Self {
        let target = ClaimTarget::Queues { queues: options.queues.clone().into(), types };
        let parking = Parking::new(options.parked_max);
        Self { log, env, defs, target, options, leases: Leases::default(), parking, freed: Notify::new() }
    }

    pub(super) fn start(self) -> Running {
        let engine = Arc::new(self);
        let (stop, stopped) = watch::channel(false);
        // Watch before the first claim: whatever comes after it is heard of.
        let queue = engine.log.watch(Topic::Queue);
        let task = tokio::spawn(Arc::clone(&engine).run(queue, stopped));
        Running { engine, stop, task: Some(task) }
    }

    async fn run(self: Arc<Self>, queue: Watch, mut stopped: watch::Receiver<bool>) {
        tracing::info!(worker = %self.options.name, slots = self.options.slots, "worker started");
        let heartbeat = tokio::spawn({
            let engine = Arc::clone(&self);
            async move { engine.keep_leases().await }
        });
        let mut flows = JoinSet::new();
        self.claim_flows(queue, &mut stopped, &mut flows).await;
        self.leases.drain();
        let ended = async { while flows.join_next().await.is_some() {} };
        if tokio::time::timeout(self.options.grace, ended).await.is_err() {
            let leases = self.leases.all();
            tracing::warn!(
                worker = %self.options.name,
                flows = leases.len(),
                "steps did not end within the grace period and are dropped; they run again elsewhere"
            );
            self.leases.drop_flows();
            flows.shutdown().await;
            for lease in leases {
                // Whoever's commit came through no longer holds the lease; the others give it back.
                let _ = self.log.release(&lease).await;
            }
        }
        heartbeat.abort();
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

    /// Claims flows whenever there may be some and there is a slot for them, until it is stopped. A claim that is
    /// under way is waited for: what it claimed would otherwise belong to nobody until its lease ends.
    async fn claim_flows(
        self: &Arc<Self>,
        mut queue: Watch,
        stopped: &mut watch::Receiver<bool>,
        flows: &mut JoinSet<()>,
    ) {
        // Whether the queue may hold more than was claimed last.
        let mut more = true;
        let mut next_due_at = None;
        let mut trouble = Backoff::default();
        while !*stopped.borrow() {
            while let Some(ended) = flows.try_join_next() {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(worker = %self.options.name, %error, "a flow was let go because the engine panicked");
                }
            }
            let free = self.options.slots.saturating_sub(self.leases.len());
            if more && free > 0 {
                let limit = free.min(CLAIM_MAX);
                let asked_at = self.env.clock.now();
                match self.claim(limit).await {
                    Ok(claimed) => {
                        trouble = Backoff::default();
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
                            () = tokio::time::sleep(delay) => {}
                            _ = stopped.wait_for(|stop| *stop) => {}
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
                maybe = self.wait(&mut queue, more, next_due_at) => more = maybe,
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        }
    }

    async fn claim(&self, limit: usize) -> Result<Claimed, StorageError> {
        let mut request = ClaimRequest::new(Arc::clone(&self.options.name), self.target.clone());
        request.limit = limit;
        request.lease = self.options.lease;
        request.deliveries_max = self.options.deliveries_max;
        self.log.claim(request).await
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
            () = queue.changed() => true,
            () = due => true,
            () = self.freed.notified(), if more => true,
            () = tokio::time::sleep(self.options.fallback) => true,
        }
    }

    fn begin(self: &Arc<Self>, flow: ClaimedFlow, until: Timestamp, flows: &mut JoinSet<()>) {
        let control = Arc::new(Control::new(until));
        let lease = flow.lease.clone();
        self.leases.add(lease.clone(), Arc::clone(&control));
        let engine = Arc::clone(self);
        flows.spawn(async move {
            // The slot is freed even when the task is aborted.
            let _slot = Slot { engine: &engine, lease: &lease };
            engine.drive(flow, control).await;
        });
    }

    async fn drive(&self, claimed: ClaimedFlow, control: Arc<Control>) {
        let (lease, info) = (claimed.lease.clone(), claimed.info.clone());
        let machine = match self.parking.unpark(&claimed) {
            Some(machine) => {
                machine.flow().journal().receive(claimed.messages);
                machine
            }
            None => match self.load(claimed, &control).await {
                Some(machine) => machine,
                None => return,
            },
        };
        let span = tracing::info_span!("flow", id = %info.id, flow_type = %info.flow_type, epoch = lease.epoch);
        let drive =
            Drive::new(Arc::clone(&self.log), lease, info.deadline_at, self.options.drive.clone(), control, machine);
        match drive.run().instrument(span).await {
            Driven::Ended(state) => {
                if matches!(state, FlowState::Failed | FlowState::Stalled) {
                    tracing::warn!(flow = %info.id, flow_type = %info.flow_type, %state, "flow ended");
                } else {
                    tracing::debug!(flow = %info.id, flow_type = %info.flow_type, %state, "flow ended");
                }
            }
            Driven::Suspended(machine) => {
                tracing::debug!(flow = %info.id, "flow suspended");
                self.parking.park(machine);
            }
            Driven::Released | Driven::Lost => {}
        }
    }

    async fn load(&self, claimed: ClaimedFlow, control: &Control) -> Option<Box<crate::machine::Machine>> {
        let (lease, info) = (claimed.lease.clone(), &claimed.info);
        let Some(def) = self.defs.get(&(Arc::clone(&info.flow_type), info.version)) else {
            tracing::error!(flow = %info.id, "the log gave a flow of a type that was not asked for");
            let _ = self.log.release(&lease).await;
            return None;
        };
        let mut trouble = Backoff::default();
        loop {
            match load(&*self.log, &self.env, def, claimed.clone()).await {
                Ok(machine) => return Some(Box::new(machine)),
                // The flow is not given back: this delivery counts, and its lease bounds these tries.
                Err(error) if error.is_retryable() && self.env.clock.now() < control.until() => {
                    let delay = trouble.next();
                    tracing::warn!(flow = %lease.flow, %error, ?delay, "the history cannot be read now");
                    tokio::time::sleep(delay).await;
                }
                Err(error) => {
                    tracing::error!(flow = %lease.flow, error = ?error, "the history cannot be read");
                    if !error.is_retryable() {
                        self.stall(lease, format!("the history cannot be read: {error}")).await;
                    }
                    return None;
                }
            }
        }
    }

    async fn stall(&self, lease: Lease, reason: String) {
        let mut commit = Commit::new(lease, 1);
        commit.next = Next::Stall { reason: reason.into(), build: Arc::clone(&self.options.drive.build) };
        if let Err(error) = self.log.commit(commit).await {
            tracing::error!(error = ?error, "the flow could not be stalled; its lease ends by itself");
        }
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
