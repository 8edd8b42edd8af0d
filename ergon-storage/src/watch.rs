//! Hints that something may have changed.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;

use super::sync::{Mutex, PoisonError};
use crate::FlowId;

/// What a [`Watch`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Topic {
    /// A flow may have become claimable.
    Queue,
    /// This flow may have changed its state or received a message.
    Flow(FlowId),
}

/// A subscription to hints about one [`Topic`].
///
/// Hints may be spurious and are merged while nobody looks. A hint after the watch was made is never lost within
/// the process; one from another process may be, so look again now and then.
#[derive(Debug)]
pub struct Watch {
    receiver: Option<watch::Receiver<()>>,
    // Taken out when the watch of a flow ends.
    flow: Option<(FlowId, Arc<Registry>)>,
}

impl Watch {
    /// Waits for the next hint since the watch was made or last answered.
    ///
    /// # Cancel safety
    ///
    /// A hint that was not yet answered is answered by the next call.
    pub async fn changed(&mut self) {
        let gone = match &mut self.receiver {
            Some(receiver) => receiver.changed().await.is_err(),
            None => true,
        };
        if gone {
            // The log was dropped: nothing will ever change.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some((flow, registry)) = self.flow.take() {
            let mut flows = registry.flows.lock().unwrap_or_else(PoisonError::into_inner);
            if flows.get(&flow).is_some_and(|sender| sender.receiver_count() == 0) {
                flows.remove(&flow);
            }
        }
    }
}

/// The watches of one log within one process. For implementations of [`ExecutionLog`](crate::ExecutionLog).
///
/// # Examples
///
/// ```
/// use ergon_storage::{FlowId, Topic, WatchHub};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let hub = WatchHub::new();
/// let id = FlowId::new("order-7")?;
/// let mut watch = hub.watch(Topic::Flow(id.clone()));
/// hub.notify_flow(&id);
/// watch.changed().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct WatchHub {
    registry: Arc<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    queue: watch::Sender<()>,
    flows: Mutex<HashMap<FlowId, watch::Sender<()>>>,
}

impl WatchHub {
    /// A hub that nobody watches.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to watch; every hint from now on reaches the watch.
    pub fn watch(&self, topic: Topic) -> Watch {
        match topic {
            Topic::Queue => Watch { receiver: Some(self.registry.queue.subscribe()), flow: None },
            Topic::Flow(flow) => {
                let mut flows = self.registry.flows.lock().unwrap_or_else(PoisonError::into_inner);
                let receiver = flows.entry(flow.clone()).or_default().subscribe();
                Watch { receiver: Some(receiver), flow: Some((flow, Arc::clone(&self.registry))) }
            }
        }
    }

    /// Hints that a flow may have become claimable.
    pub fn notify_queue(&self) {
        self.registry.queue.send_replace(());
    }

    /// Hints that this flow may have changed.
    pub fn notify_flow(&self, flow: &FlowId) {
        let flows = self.registry.flows.lock().unwrap_or_else(PoisonError::into_inner);
        // Mostly nobody watches any: then there is nothing to be hashed.
        if !flows.is_empty()
            && let Some(sender) = flows.get(flow)
        {
            sender.send_replace(());
        }
    }

    /// Hints that the flows that pass may have changed. For those who cannot name them, only recognise them.
    pub fn notify_flows(&self, passes: impl Fn(&FlowId) -> bool) {
        let flows = self.registry.flows.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, sender) in flows.iter().filter(|(flow, _)| passes(flow)) {
            sender.send_replace(());
        }
    }

    /// True when somebody watches this flow.
    pub fn is_watched(&self, flow: &FlowId) -> bool {
        self.registry.flows.lock().unwrap_or_else(PoisonError::into_inner).contains_key(flow)
    }

    /// Hints that anything may have changed, for instance because another process wrote.
    pub fn notify_all(&self) {
        self.notify_queue();
        let flows = self.registry.flows.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in flows.values() {
            sender.send_replace(());
        }
    }
}
