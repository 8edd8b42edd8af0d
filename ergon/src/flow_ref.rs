//! A flow's id together with its type.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    marker::PhantomData,
};

use ergon_storage::FlowId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which flow is meant, and what type it has: what one flow tells another about a third.
///
/// It is recorded as the bare id, so it can be part of a flow's value, of a step's arguments and outcome, and of a
/// message. Flows and steps [send](crate::send) to it. Where there is a log, [`Scheduler::handle`](crate::Scheduler::handle)
/// makes a [`FlowHandle`](crate::FlowHandle) of it, for its result and its end. Only its parent waits for it inside a flow;
/// another that must hear of its end is told by it, through a [mailbox](crate::Mailbox). A flow gets it from [`ChildHandle::flow`](crate::ChildHandle::flow), and
/// gives its own as `FlowRef::new(flow_id())`. It need not exist; using it tells.
///
/// # Examples
///
/// ```
/// use ergon::{FlowRef, prelude::*};
///
/// #[flow]
/// async fn count(up_to: u64) -> ergon::Result<u64> {
///     Ok((1..=up_to).sum())
/// }
///
/// /// Starts another flow, and says which.
/// #[flow]
/// async fn delegate(up_to: u64) -> ergon::Result<FlowRef<count>> {
///     let counting = child(count(up_to)).start();
///     let flow = counting.flow();
///     counting.await?;
///     Ok(flow)
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let log = InMemoryExecutionLog::new();
/// let worker = Worker::new(log.clone()).register::<count>().register::<delegate>().start().await?;
/// let scheduler = Scheduler::new(log);
/// let flow = scheduler.schedule(delegate(4)).id("d").await?.result().await?;
/// assert_eq!(flow.id().as_str(), "d/1");
/// assert_eq!(scheduler.handle(flow).result().await?, 10);
/// # worker.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A reference to one type is none to another:
///
/// ```compile_fail
/// # use ergon::{FlowRef, prelude::*};
/// # #[flow] async fn count() -> ergon::Result<u64> { Ok(1) }
/// # #[flow] async fn other() -> ergon::Result<u64> { Ok(1) }
/// let flow: FlowRef<count> = FlowRef::<other>::new(FlowId::new("other-1").unwrap());
/// ```
pub struct FlowRef<F> {
    id: FlowId,
    flow: PhantomData<fn() -> F>,
}

impl<F> FlowRef<F> {
    /// The flow of this id, of which the caller knows that it has this type.
    #[must_use]
    pub fn new(id: FlowId) -> Self {
        Self { id, flow: PhantomData }
    }

    /// Its id.
    pub fn id(&self) -> &FlowId {
        &self.id
    }
}

impl<F> From<FlowId> for FlowRef<F> {
    fn from(id: FlowId) -> Self {
        Self::new(id)
    }
}

impl<F> From<&Self> for FlowRef<F> {
    fn from(flow: &Self) -> Self {
        flow.clone()
    }
}

impl<F> From<FlowRef<F>> for FlowId {
    fn from(flow: FlowRef<F>) -> Self {
        flow.id
    }
}

impl<F> From<&FlowRef<F>> for FlowId {
    fn from(flow: &FlowRef<F>) -> Self {
        flow.id.clone()
    }
}

// Derives would ask the same of the flow type, of which there is no value here.

impl<F> Clone for FlowRef<F> {
    fn clone(&self) -> Self {
        Self::new(self.id.clone())
    }
}

impl<F> PartialEq for FlowRef<F> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl<F> Eq for FlowRef<F> {}

impl<F> PartialOrd for FlowRef<F> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<F> Ord for FlowRef<F> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

impl<F> Hash for FlowRef<F> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl<F> fmt::Debug for FlowRef<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FlowRef").field(&self.id).finish()
    }
}

impl<F> fmt::Display for FlowRef<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.id, f)
    }
}

impl<F> Serialize for FlowRef<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.id.serialize(serializer)
    }
}

impl<'de, F> Deserialize<'de> for FlowRef<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        FlowId::deserialize(deserializer).map(Self::new)
    }
}
