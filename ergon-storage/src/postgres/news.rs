//! Hints for this process, and for the others over `LISTEN` and `NOTIFY`.
//!
//! A transaction that notifies is a transaction that writes, to the server, and it holds a lock of the whole database
//! until it has ended, so that all that do wait for each other. Therefore the log's own writers never do: what they
//! have changed is told afterwards, together, on the connection that listens, whose transactions wait for no disk. A
//! process that dies in between has told nobody, which costs the others their fallback interval.

use std::{
    collections::HashSet,
    fmt::Write,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle};

use super::{
    pool::{Pool, Repeat, Role},
    statements::Statement,
    text::hash,
};
use crate::{FlowId, WatchHub};

/// The shortest time between two notifications: all that happens meanwhile is told together.
const PAUSE: Duration = Duration::from_millis(2);
/// How many flows one notification names; beyond that it says that any may have changed. The server takes less than
/// 8,000 bytes.
const FLOWS_MAX: usize = 900;

/// What other processes are to hear.
#[derive(Debug, Default)]
struct Pending {
    queue: bool,
    flows: Vec<u32>,
    all: bool,
}

/// Whom to wake.
pub(super) struct News {
    hub: WatchHub,
    /// How this log's own notifications begin, which it need not hear.
    own: String,
    pending: Mutex<Pending>,
    some: Notify,
}

impl News {
    pub(super) fn new(hub: WatchHub, own: u64) -> Self {
        Self { hub, own: format!("{own:016x}"), pending: Mutex::default(), some: Notify::new() }
    }

    /// The channel of the logs in a schema.
    pub(super) fn channel(schema: &str) -> String {
        // An identifier has at most 63 bytes.
        match schema.len() {
            0..=57 => format!("ergon:{schema}"),
            _ => format!("ergon:#{:016x}", hash(schema)),
        }
    }

    /// A flow may have become claimable.
    pub(super) fn queue(&self) {
        self.changed(true, []);
    }

    /// This flow was claimed, which others need not hear.
    pub(super) fn here(&self, flow: &FlowId) {
        self.hub.notify_flow(flow);
    }

    /// This flow has changed.
    pub(super) fn flow(&self, flow: &FlowId) {
        self.changed(false, [flow]);
    }

    /// A flow may have become claimable, and these flows have changed.
    pub(super) fn changed<'f>(&self, queue: bool, flows: impl IntoIterator<Item = &'f FlowId>) {
        if queue {
            self.hub.notify_queue();
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.queue |= queue;
        for flow in flows {
            self.hub.notify_flow(flow);
            if pending.flows.len() < FLOWS_MAX {
                pending.flows.push(short_hash(flow));
            } else {
                pending.all = true;
            }
        }
        if pending.queue || !pending.flows.is_empty() {
            drop(pending);
            self.some.notify_one();
        }
    }

    /// Anything may have happened.
    pub(super) fn deaf(&self) {
        self.hub.notify_all();
    }

    /// Takes in what another process tells.
    pub(super) fn heard(&self, told: &str) {
        let Some((who, told)) = told.split_at_checked(self.own.len()) else { return self.hub.notify_all() };
        if who == self.own {
            return;
        }
        let flows = match told.strip_prefix('q') {
            Some(flows) => {
                self.hub.notify_queue();
                flows
            }
            None => told,
        };
        if flows.is_empty() {
            return;
        }
        let hashes: Option<HashSet<u32>> = (flows.as_bytes().chunks(8))
            .map(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
            .collect();
        match hashes {
            Some(hashes) => self.hub.notify_flows(|flow| hashes.contains(&short_hash(flow))),
            None => self.hub.notify_all(),
        }
    }

    fn take(&self) -> Option<String> {
        let Pending { queue, flows, all } =
            mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if !queue && flows.is_empty() {
            return None;
        }
        let mut told = self.own.clone();
        if queue {
            told.push('q');
        }
        if all {
            told.push('*');
        } else {
            let flows: HashSet<u32> = flows.into_iter().collect();
            for flow in flows {
                // Writing to a string cannot fail.
                let _ = write!(told, "{flow:08x}");
            }
        }
        Some(told)
    }

    /// Begins to tell the others.
    pub(super) fn tell(self: &Arc<Self>, pool: &Arc<Pool>, channel: String) -> JoinHandle<()> {
        let (news, pool) = (Arc::clone(self), Arc::clone(pool));
        tokio::spawn(async move {
            loop {
                news.some.notified().await;
                let Some(told) = news.take() else { continue };
                if let Err(error) = pool.query(Role::Hints, Statement::Notify, &[&channel, &told], Repeat::Safe).await {
                    // Whoever waits looks again now and then.
                    tracing::debug!(error = ?error, "other processes could not be told of a change");
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
    }
}

fn short_hash(flow: &FlowId) -> u32 {
    let hash = hash(flow.as_str());
    #[allow(clippy::cast_possible_truncation)]
    let folded = (hash ^ (hash >> 32)) as u32;
    folded
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::Topic;

    fn id(name: &str) -> FlowId {
        FlowId::new(name).unwrap()
    }

    #[test]
    fn others_hear_what_was_told_and_nobody_hears_himself() {
        let here = News::new(WatchHub::new(), 1);
        let there = News::new(WatchHub::new(), 2);
        let mut queue = there.hub.watch(Topic::Queue);
        let [mut a, mut b] = ["a", "b"].map(|name| there.hub.watch(Topic::Flow(id(name))));
        assert_eq!(here.take(), None);

        here.changed(false, [&id("a"), &id("c"), &id("a")]);
        let told = here.take().unwrap();
        assert_eq!(told.len(), 16 + 2 * 8, "each flow is named once");
        there.heard(&told);
        assert!(a.changed().now_or_never().is_some());
        assert!(b.changed().now_or_never().is_none());
        assert!(queue.changed().now_or_never().is_none());

        here.queue();
        there.heard(&here.take().unwrap());
        assert!(queue.changed().now_or_never().is_some());
        assert!(a.changed().now_or_never().is_none());

        for number in 0..2_000 {
            here.flow(&id(&format!("flow-{number}")));
        }
        let told = here.take().unwrap();
        assert!(told.len() < 8_000);
        there.heard(&told);
        assert!(a.changed().now_or_never().is_some() && b.changed().now_or_never().is_some());

        there.queue();
        let own = there.take().unwrap();
        assert!(queue.changed().now_or_never().is_some());
        there.heard(&own);
        assert!(queue.changed().now_or_never().is_none());
    }

    #[test]
    fn channels_fit_an_identifier() {
        assert_eq!(News::channel("ergon"), "ergon:ergon");
        assert_ne!(News::channel(&"x".repeat(63)), News::channel(&"x".repeat(62)));
        assert!(News::channel(&"x".repeat(63)).len() < 64);
    }
}
