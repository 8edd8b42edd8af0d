//! What a flow tells of itself while it runs.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{CallPath, Timestamp};

/// A named sequence of [`Item`]s that a flow emits.
///
/// A log treats feeds as opaque names; the engine gives them their meaning.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Feed(Arc<str>);

impl Feed {
    /// The longest name of a feed, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// The stream with this name.
    #[must_use]
    pub fn stream(name: &str) -> Self {
        Self(format!("stream:{name}").into())
    }

    /// What the flow says it is at.
    #[must_use]
    pub fn status() -> Self {
        Self("status".into())
    }

    /// The feed stored under this name.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self(name.into())
    }

    /// The name under which a log stores the feed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Which items of a feed are kept when another one comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Keep {
    /// All: the feed grows.
    All,
    /// None: the item is the only one of its feed then.
    Last,
}

/// An item to be added to a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    /// The feed.
    pub feed: Feed,
    /// What becomes of those that are there.
    pub keep: Keep,
    /// When it was emitted, by the log's clock as the engine read it.
    pub at: Timestamp,
    /// The step whose body emitted it; `None` for the flow's own code.
    pub call: Option<CallPath>,
    /// The number of the step's attempt, from 1; 0 for the flow's own code.
    pub attempt: u32,
    /// The encoded content.
    pub payload: Bytes,
}

/// An item of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its number within the feed, from 1, in the order in which the items were emitted; numbers are not reused.
    pub seq: u32,
    /// When it was emitted.
    pub at: Timestamp,
    /// The number of the flow's run.
    pub run: u32,
    /// The epoch of the lease under which it was emitted.
    pub epoch: u64,
    /// The step whose body emitted it; `None` for the flow's own code.
    pub call: Option<CallPath>,
    /// The number of the step's attempt, from 1; 0 for the flow's own code.
    pub attempt: u32,
    /// The encoded content.
    pub payload: Bytes,
}
