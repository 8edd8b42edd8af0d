//! Running one flow in the calling task.

use std::{
    future::{Future, IntoFuture},
    mem,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use ergon_storage::{ClaimRequest, ClaimTarget, Enqueued, ErrorKind, ExecutionLog, FlowId, FlowState, NewFlow, Topic};

use crate::{
    StorageError,
    context::{Env, States},
    drive::{Control, Drive, DriveOptions, Driven, MESSAGES_MAX, complete, deadline_of, load},
    flow::{Flow, FlowDef},
    handle::{FlowError, FlowHandle},
    machine::Machine,
    meter::{Origin, metered},
    middleware::{Layers, Middleware, refused},
    scheduler::Entry,
    spans,
    worker::{Worker, build_id, leases::Leases},
};

/// How long a waiting executor trusts that a hint will come before it looks by itself.
const FALLBACK: Duration = Duration::from_secs(5);

/// Runs a flow in the calling task, recorded like any other, without a queue.
///
/// Running an id again takes up the flow where it was, or returns its recorded result. While the flow waits, the
/// calling task waits. Child flows go to their queues and need a [`Worker`](crate::Worker).
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow_type]
/// struct Sum { numbers: Vec<u32> }
///
/// #[flow_type]
/// impl Sum {
///     #[flow]
///     async fn run(&self) -> ergon::Result<u32> {
///         let mut sum = 0;
///         for number in &self.numbers {
///             sum = self.add(sum, *number).await?;
///         }
///         Ok(sum)
///     }
///
///     #[step]
///     async fn add(&self, sum: u32, number: u32) -> ergon::Result<u32> {
///         Ok(sum + number)
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let executor = Executor::new(InMemoryExecutionLog::new());
/// let sum = executor.run(Sum { numbers: vec![1, 2, 3] }).id("sum-1").await?;
/// assert_eq!(sum, 6);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Executor {
    log: Arc<dyn ExecutionLog>,
    states: States,
    layers: Layers,
    lease: Duration,
    options: DriveOptions,
}

impl Executor {
    /// The queue that flows of executors are in, which no worker should claim.
    pub const QUEUE: &'static str = "ergon.executor";
    /// The name under which executors have flows. For flows that are bound to where they ran they are all one place.
    pub const NAME: &'static str = "executor";

    /// An executor on this log.
    pub fn new(log: impl ExecutionLog) -> Self {
        Self {
            log: metered(Arc::new(log)),
            states: States::default(),
            layers: Layers::default(),
            lease: Duration::from_secs(5),
            options: DriveOptions {
                moment: Duration::from_secs(60),
                patience: Duration::from_secs(1),
                cancel_grace: Duration::from_secs(5),
                build: build_id(),
            },
        }
    }

    /// Gives flows and steps a value that they reach with [`state`](crate::state).
    #[must_use]
    pub fn with_state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// Surrounds flows and steps with this code, inside of what was given before it.
    #[must_use]
    pub fn middleware(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
        self
    }

    /// How long a flow stays reserved for this process after it died; 5 s by default, at least
    /// [`Worker::LEASE_MIN`]. It is renewed at a third.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Worker::LEASE_MIN);
        self
    }

    /// Names the build, as [`Worker::build`](crate::Worker::build).
    #[must_use]
    pub fn build(mut self, build: impl Into<Arc<str>>) -> Self {
        self.options.build = build.into();
        self
    }

    /// Runs a flow to its end: await what this returns, perhaps after giving it an id.
    pub fn run<F: Flow>(&self, flow: F) -> Running<'_, F> {
        Running { executor: self, entry: Entry::new(flow).queue(Self::QUEUE) }
    }

    async fn execute<F: Flow>(&self, new: NewFlow) -> Result<F::Output, FlowError<F::Error>> {
        let def = FlowDef::of::<F>();
        def.check(&*self.log)?;
        let (id, version) = (new.id.clone(), new.version);
        let conflict = |message: String| StorageError::new(ErrorKind::Conflict, message).with_flow(&id);
        match self.log.enqueue(vec![new]).await?.first() {
            Some(Enqueued::Existing { same: false }) => {
                return Err(conflict(
                    "there is a flow of this id with another type or value; choose another id".into(),
                )
                .into());
            }
            Some(Enqueued::Existing { same: true }) => {
                let Some(known) = self.log.flow(&id).await? else { return Err(StorageError::not_found(&id).into()) };
                if known.info.version != version && !known.info.state.is_final() {
                    let was = known.info.version;
                    let message = format!("the flow has version {was} of its type, this code is version {version}");
                    return Err(conflict(message).into());
                }
                if known.info.state == FlowState::Stalled {
                    // Running it again is the wish to try it again.
                    self.log.retry(&id).await?;
                }
            }
            _ => {}
        }
        let handle = FlowHandle::<F::Output, F::Error>::new(Arc::clone(&self.log), id.clone(), false);
        let layers = self.layers.clone();
        let env = Arc::new(Env { layers, ..Env::new(Arc::clone(&self.log), self.states.clone()) });
        let mut watch = self.log.watch(Topic::Flow(id.clone()));
        let mut parked = None;
        loop {
            let next_due_at = self.turn(&env, &def, &id, &mut parked).await?;
            if let Some(result) = handle.try_result().await.transpose() {
                return result;
            }
            let due = async {
                match next_due_at {
                    Some(due) => self.log.clock().sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = due => {}
                () = watch.changed() => {}
                () = tokio::time::sleep(FALLBACK) => {}
            }
        }
    }

    /// Claims the flow, if it is due, and drives it as far as it gets. Returns when it is due again.
    async fn turn(
        &self,
        env: &Arc<Env>,
        def: &FlowDef,
        id: &FlowId,
        parked: &mut Option<Box<Machine>>,
    ) -> Result<Option<ergon_storage::Timestamp>, StorageError> {
        let mut request = ClaimRequest::new(Self::NAME, ClaimTarget::Flow(id.clone()));
        request.lease = self.lease;
        request.messages_max = MESSAGES_MAX;
        let until = self.log.clock().now().saturating_add(self.lease);
        let mut claimed = self.log.claim(request).await?;
        let Some(mut flow) = claimed.flows.pop() else { return Ok(claimed.next_due_at) };
        let lease = flow.lease.clone();
        let meter = env.meters.flow(&flow.info.flow_type);
        let machine = match parked.take() {
            Some(machine) if machine.fits(&flow) => {
                meter.claimed(&flow.info, Origin::Memory);
                machine.flow().journal().receive(mem::take(&mut flow.messages));
                machine
            }
            _ => {
                meter.claimed(&flow.info, Origin::Log);
                complete(&*self.log, &mut flow).await?;
                Box::new(load(env, def, &mut flow))
            }
        };
        let info = &flow.info;
        let control = Arc::new(Control::new(until));
        let mut drive = Drive::new(
            Arc::clone(&self.log),
            lease.clone(),
            deadline_of(info),
            self.options.clone(),
            Arc::clone(&control),
            machine,
        );
        let leases = Leases::default();
        leases.add(lease.clone(), Arc::clone(&control));
        let renew = async {
            let mut wait = self.lease / 3;
            loop {
                let clock = self.log.clock();
                clock.sleep_until(clock.now().saturating_add(wait)).await;
                wait = leases.renew(&*self.log, self.lease).await;
            }
        };
        let driven = async {
            if env.layers.surround(info, &*self.log.clock()) {
                env.layers.flow(info, drive.run()).await
            } else {
                Ok(drive.run().await)
            }
        };
        let driven = tokio::select! {
            biased;
            driven = Box::pin(spans::in_executor(info, lease.epoch, driven)) => driven,
            () = renew => Ok(Driven::Lost),
        };
        drop(drive);
        let driven = match driven {
            Ok(driven) => driven,
            Err(refusal) => match refused(&*self.log, &lease, &self.options.build, &refusal).await {
                Err(error) if error.is_retryable() || error.kind() == ErrorKind::LeaseLost => Driven::Lost,
                refused => refused?,
            },
        };
        meter.driven(&driven, info, &*self.log.clock());
        if let Driven::Suspended(machine) = driven {
            *parked = Some(machine);
        }
        // Look again at once: it may have ended, or be due already.
        Ok(Some(self.log.clock().now()))
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("states", &self.states).finish_non_exhaustive()
    }
}

/// A flow that is about to be run. Await it for its result.
///
/// # Errors
///
/// [`FlowError`] tells how else the flow ended, or why the log refused it.
///
/// # Cancel safety
///
/// Dropping the future leaves the flow where it is; running its id again takes it up once its lease has ended.
#[derive(Debug)]
#[must_use = "a flow runs when this is awaited"]
pub struct Running<'a, F> {
    executor: &'a Executor,
    entry: Entry<F>,
}

impl<F: Flow> Running<'_, F> {
    /// The flow's id; otherwise a new UUID version 7.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.entry = self.entry.id(id);
        self
    }
}

impl<'a, F: Flow> IntoFuture for Running<'a, F> {
    type Output = Result<F::Output, FlowError<F::Error>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let executor = self.executor;
        let new = self.entry.into_new_flow(executor.log.limits().payload_bytes_max);
        Box::pin(async move { executor.execute::<F>(new?).await })
    }
}
