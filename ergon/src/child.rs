//! Child flows.

use std::{
    fmt,
    future::{Future, IntoFuture},
    marker::PhantomData,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use bytes::Bytes;
use ergon_storage::{
    Affinity, CallKind, CallPath, ChildOutcome, FlowId, Labels, Message, NewFlow, Parent, Phase, Start,
};

use crate::{
    codec,
    context::{Context, Halt, invalid},
    error::{Error, ErrorKind},
    fingerprint::{Sequences, fingerprint},
    flow::{Failure, Flow},
    flow_ref::FlowRef,
    journal::{CallId, CallKey, CallPoll, Place, Spec},
    scheduler::put_affinity,
};

/// A flow to be started by this one. Await it to start it and wait for its result, or see
/// [`start`](Child::start) and [`start_detached`](Child::start_detached).
///
/// The child is started exactly once. It goes through its queue and is run by any worker that has its type; while
/// the parent waits it holds no slot. Cancelling the parent cancels its children.
///
/// Its value is compared on replay, as the arguments of a step are. A `HashMap` in it is compared as a map; a `HashSet` has
/// another order each time, and the flow would stall: take a `BTreeSet`.
///
/// # Panics
///
/// Starting it panics outside a flow.
///
/// # Examples
///
/// ```
/// use ergon::prelude::*;
///
/// #[flow]
/// async fn pack(item: String) -> ergon::Result<String> {
///     Ok(format!("packed {item}"))
/// }
///
/// #[flow]
/// async fn ship(items: Vec<String>) -> ergon::Result<Vec<String>> {
///     let parcels: Vec<_> = items.into_iter().map(|item| child(pack(item)).start()).collect();
///     let mut packed = Vec::new();
///     for parcel in parcels {
///         packed.push(parcel.await?);
///     }
///     Ok(packed)
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<ship>().register::<pack>().start().await?;
/// let shipped = Scheduler::new(log).schedule(ship(vec!["tea".into(), "cups".into()])).await?;
/// assert_eq!(shipped.result().await?, ["packed tea", "packed cups"]);
/// worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn child<F: Flow>(flow: F) -> Child<F> {
    let timeout = <F as Flow>::TIMEOUT;
    Child { flow, id: None, queue: None, priority: 0, start: Start::Now, timeout, labels: Labels::new() }
        .affinity(F::AFFINITY)
}

/// A flow to be started by [`child`].
#[derive(Debug)]
#[must_use = "a child does nothing unless it is awaited or started"]
pub struct Child<F> {
    flow: F,
    id: Option<String>,
    queue: Option<Arc<str>>,
    priority: i16,
    start: Start,
    timeout: Option<Duration>,
    labels: Labels,
}

impl<F: Flow> Child<F> {
    /// Its id; otherwise the parent's id, a slash and the number of the call, `order-7/1`; in later runs of a flow that
    /// [begins again](crate::continue_as_new) with the number of the run before it, `order-7/2.1`.
    ///
    /// Give children ids of their own where a combinator polls branches that start them in random order, as an unbiased
    /// `select!` does: a branch that is made again after a failure could be given the number of another.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Its queue; otherwise the parent's.
    pub fn queue(mut self, queue: impl Into<Arc<str>>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Its priority; otherwise 0.
    pub fn priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// Gives it a label, to be listed by. It has none of its parent's.
    pub fn label(mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.labels.set(name, value);
        self
    }

    /// Whether it waits for the worker that ran it last; otherwise as its type says, `#[flow(affinity(…))]`. It is not bound
    /// to where its parent runs. One that is out of range fails the parent.
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        put_affinity(&mut self.labels, affinity);
        self
    }

    /// Its time limit, counted from its start, waits included; otherwise as its type says, `#[flow(timeout = …)]`. `None`
    /// for no limit. The child fails when it passes, at once where it is zero, and this flow hears of it as of any other
    /// failure.
    pub fn timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.timeout = limit.into();
        self
    }

    /// Starts it that much later.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.start = Start::After(delay);
        self
    }

    /// Starts the child; await the handle for its result, at any later time.
    ///
    /// # Panics
    ///
    /// Outside a flow, and inside a step.
    ///
    /// # Examples
    ///
    /// ```
    /// use ergon::prelude::*;
    ///
    /// #[flow]
    /// async fn price(item: String) -> ergon::Result<u64> {
    ///     Ok(item.len() as u64)
    /// }
    ///
    /// #[flow]
    /// async fn offer() -> ergon::Result<u64> {
    ///     let tea = child(price("tea".into())).start();
    ///     let cups = child(price("cups".into())).start(); // both run from here on
    ///     Ok(tea.await? + cups.await?)
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let log = InMemoryExecutionLog::new();
    /// let worker = Worker::new(log.clone()).register::<offer>().register::<price>().start().await?;
    /// assert_eq!(Scheduler::new(log).schedule(offer()).await?.result().await?, 7);
    /// # worker.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn start(self) -> ChildHandle<F> {
        ChildHandle { call: self.call(Location::caller(), false), flow: PhantomData }
    }

    /// Starts the child on its own: this flow never hears of its end, and cancelling this flow leaves it alone.
    ///
    /// The future resolves to the child's id once the log has accepted the child, and to an error of the kind
    /// [`Conflict`](ErrorKind::Conflict) when its id belongs to a flow that this call did not start, or to a live one
    /// that it has started with another value. The answer is recorded. A future that is dropped has started the child all the same, and nobody hears of a refusal.
    ///
    /// # Panics
    ///
    /// Outside a flow, and inside a step.
    ///
    /// # Examples
    ///
    /// ```
    /// use ergon::prelude::*;
    ///
    /// #[flow]
    /// async fn newsletter(to: String) -> ergon::Result<String> {
    ///     Ok(format!("dear {to}"))
    /// }
    ///
    /// #[flow]
    /// async fn sign_up(name: String) -> ergon::Result<FlowId> {
    ///     Ok(child(newsletter(name)).start_detached().await?) // and ends, whatever becomes of the letter
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let log = InMemoryExecutionLog::new();
    /// let worker = Worker::new(log.clone()).register::<sign_up>().register::<newsletter>().start().await?;
    /// let scheduler = Scheduler::new(log);
    /// let letter = scheduler.schedule(sign_up("Ada".into())).await?.result().await?;
    /// assert_eq!(scheduler.handle::<newsletter>(letter).result().await?, "dear Ada");
    /// # worker.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn start_detached(self) -> Detached {
        Detached { call: self.call(Location::caller(), true) }
    }

    #[track_caller]
    fn call(self, location: &'static Location<'static>, detached: bool) -> ChildCall {
        let context = Context::current("ergon::child()");
        assert!(
            context.place == Place::Flow,
            "a child flow is started by a flow, not by a step; return from the step and start it from the flow"
        );
        let flow = &context.flow;
        let name = <F as Flow>::NAME;
        let id = match &self.id {
            Some(id) => FlowId::new(id),
            None => FlowId::new(flow.child_name())
                // Too deep a family for readable names.
                .or_else(|_| FlowId::new(crate::context::child_key(flow).to_string())),
        };
        let id = id.unwrap_or_else(|error| {
            flow.halt(Halt::Fault(invalid(format!("the child flow {name:?} cannot be started: {error}"))));
            flow.id.clone()
        });
        let input = codec::encode_sorted(
            format_args!("the value of child flow {name:?}"),
            &self.flow,
            flow.env.payload_bytes_max,
        )
        .unwrap_or_else(|error| {
            flow.halt(Halt::Fault(error));
            Bytes::new()
        });
        let args_hash = fingerprint(&self.flow, Sequences::Ordered).unwrap_or_default();
        let parent = Parent { id: flow.id.clone(), path: CallPath::top(0), detached };
        let labels = self.labels;
        #[cfg(feature = "opentelemetry")]
        let labels = {
            let mut labels = labels;
            flow.labels.look(|parent| crate::spans::child(parent, &mut labels));
            labels
        };
        let new = NewFlow::new(id, name, <F as Flow>::VERSION, input)
            .with_queue(self.queue.unwrap_or_else(|| Arc::clone(&flow.queue)))
            .with_priority(self.priority)
            .with_start(self.start)
            .with_timeout(self.timeout)
            .with_labels(labels)
            .with_parent(parent);
        let limits = flow.env.limits();
        if let Err(error) = new.check(flow.env.clock.now(), &limits) {
            flow.halt(Halt::Fault(invalid(format!("the child flow {name:?} cannot be started: {error}"))));
        }
        let key = CallKey { kind: CallKind::Child, name: Arc::from(name), args_hash };
        let call = context.call(key, Spec::Child { flow: Box::new(new), detached }, location);
        ChildCall { context, call, done: false }
    }
}

impl<F: Flow> IntoFuture for Child<F> {
    type Output = Result<F::Output, F::Error>;
    type IntoFuture = ChildHandle<F>;

    #[track_caller]
    fn into_future(self) -> ChildHandle<F> {
        self.start()
    }
}

/// A child flow that was started. Resolves to its result.
///
/// A child that failed for another reason than its own error (it was cancelled, exceeded its time limit or
/// panicked, or its id was taken) gives its error type where that implements `From<ergon::Error>`, and otherwise
/// fails this flow.
///
/// # Cancel safety
///
/// Dropping the handle leaves the child running; its result is then not heard of.
#[must_use = "await the handle for the child's result, or use start_detached"]
pub struct ChildHandle<F> {
    call: ChildCall,
    flow: PhantomData<fn() -> F>,
}

impl<F> ChildHandle<F> {
    /// The child's id.
    pub fn id(&self) -> FlowId {
        self.call.id()
    }

    /// The child as other flows can be told of it.
    pub fn flow(&self) -> FlowRef<F> {
        FlowRef::new(self.id())
    }
}

impl<F> fmt::Debug for ChildHandle<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChildHandle").field(&self.id()).finish()
    }
}

impl<F: Flow> Future for ChildHandle<F> {
    type Output = Result<F::Output, F::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let call = &mut self.get_mut().call;
        let id = call.id();
        let Some((phase, payload)) = call.poll(cx) else { return Poll::Pending };
        let flow = &call.context.flow;
        let what = format!("the result of child flow {id:?}");
        let unreadable = |error: Error| {
            flow.halt(Halt::Stall(format!(
                "{error}; give the changed type the old form, or give the flow a new version"
            )));
            Poll::Pending
        };
        if phase == Phase::Completed {
            return match codec::decode(&what, &payload) {
                Ok(output) => Poll::Ready(Ok(output)),
                Err(error) => unreadable(error),
            };
        }
        match codec::decode::<Failure<F::Error>>(&what, &payload) {
            Ok(Failure::Error(error)) => Poll::Ready(Err(error)),
            Ok(Failure::Fault(error)) => {
                if let Some(from_error) = F::error_caps().from_error {
                    return Poll::Ready(Err(from_error(error)));
                }
                let message = format!("child flow {id:?} did not end by itself: {error}");
                flow.halt(Halt::Fault(Error::of(error.kind(), message)));
                Poll::Pending
            }
            Err(error) => unreadable(error),
        }
    }
}

/// The future of [`Child::start_detached`]: resolves to the child's id, or why it was not started.
#[derive(Debug)]
#[must_use = "a child is started when this is awaited"]
pub struct Detached {
    call: ChildCall,
}

impl Future for Detached {
    type Output = Result<FlowId, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let call = &mut self.get_mut().call;
        let id = call.id();
        let Some((phase, payload)) = call.poll(cx) else { return Poll::Pending };
        if phase == Phase::Completed {
            return Poll::Ready(Ok(id));
        }
        let refusal = codec::decode::<Failure<()>>(&format!("the start of child flow {id:?}"), &payload);
        match refusal {
            Ok(Failure::Fault(error)) | Err(error) => Poll::Ready(Err(error)),
            Ok(Failure::Error(())) => Poll::Ready(Err(invalid(format!("the child flow {id:?} was not started")))),
        }
    }
}

/// The call behind both.
#[derive(Debug)]
struct ChildCall {
    context: Context,
    call: CallId,
    done: bool,
}

impl ChildCall {
    fn id(&self) -> FlowId {
        let flow = &self.context.flow;
        let id = flow.journal().child_id(self.call);
        id.and_then(|id| FlowId::new(id).ok()).unwrap_or_else(|| flow.id.clone())
    }

    fn poll(&mut self, cx: &mut task::Context<'_>) -> Option<(Phase, Bytes)> {
        assert!(!self.done, "the handle of a child flow was polled after it had its result");
        let poll = self.context.flow.journal().poll(self.call, cx.waker());
        let CallPoll::Ready(outcome) = poll else { return None };
        self.done = true;
        Some((outcome.phase, outcome.payload))
    }
}

impl Drop for ChildCall {
    fn drop(&mut self) {
        if !self.done {
            self.context.flow.journal().drop_call(self.call);
        }
    }
}

/// What the history keeps of a child's end: its result, or a [`Failure`].
pub(crate) fn outcome_payload(message: &Message) -> Bytes {
    let fault = |kind, text: &str| {
        let reason = String::from_utf8_lossy(&message.payload);
        let text = if reason.is_empty() { text.to_owned() } else { format!("{text}: {reason}") };
        serde_json::to_vec(&Failure::<()>::Fault(Error::of(kind, text))).unwrap_or_default().into()
    };
    match message.child {
        Some(ChildOutcome::Completed | ChildOutcome::Failed) => message.payload.clone(),
        Some(ChildOutcome::Cancelled) => fault(ErrorKind::Cancelled, "the child flow was cancelled"),
        _ => fault(ErrorKind::Conflict, "the child flow was not started"),
    }
}
