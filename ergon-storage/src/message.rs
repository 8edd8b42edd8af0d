//! What reaches a flow from outside.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{CallPath, FlowId, Timestamp};

/// A named first-in first-out lane of a flow's mailbox.
///
/// A log treats channels as opaque names; the engine gives them their meaning.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel(Arc<str>);

impl Channel {
    /// The longest channel name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// The channel of the signal with this name.
    #[must_use]
    pub fn signal(name: &str) -> Self {
        Self(format!("signal:{name}").into())
    }

    /// The channel on which a flow hears of its children.
    #[must_use]
    pub fn children() -> Self {
        Self("child".into())
    }

    /// The channel stored under this name.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self(name.into())
    }

    /// The name under which a log stores the channel.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// A message to be sent to a flow.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewMessage {
    /// The flow that is to receive it.
    pub to: FlowId,
    /// The lane of its mailbox.
    pub channel: Channel,
    /// The sender's idempotency key: a second message to the same flow with an equal key is dropped, also after
    /// the first one was consumed. At most [`Channel::BYTES_MAX`] bytes.
    pub key: Option<String>,
    /// The encoded content.
    pub payload: Bytes,
}

impl NewMessage {
    /// A message without an idempotency key.
    #[must_use]
    pub fn new(to: FlowId, channel: Channel, payload: impl Into<Bytes>) -> Self {
        Self { to, channel, key: None, payload: payload.into() }
    }

    /// The same message with the sender's idempotency key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// What became of a [`NewMessage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is in the mailbox.
    Accepted,
    /// A message with the same key was accepted before; this one was dropped.
    Duplicate,
}

/// A message in a flow's mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Its number within the mailbox, rising from 1 in the order of arrival; numbers are not reused.
    pub seq: u32,
    /// The lane it came in on.
    pub channel: Channel,
    /// When it was accepted, by the log's clock.
    pub at: Timestamp,
    /// For the end of a child, how it ended; `None` for everything else.
    pub child: Option<ChildOutcome>,
    /// For the end of a child, the path of the call that started it, as text.
    pub reference: Option<Arc<str>>,
    /// For the end of a child, its id: a call that is made again may have started another one by then.
    pub ended: Option<FlowId>,
    /// The encoded content: a signal's value, or a child's result, error or reason.
    pub payload: Bytes,
}

impl Message {
    /// A message as a log keeps it. For implementations of [`ExecutionLog`](crate::ExecutionLog).
    #[must_use]
    pub fn new(seq: u32, channel: Channel, at: Timestamp, payload: Bytes) -> Self {
        Self { seq, channel, at, child: None, reference: None, ended: None, payload }
    }

    /// What a log keeps, in one text, of whose end a message tells: the path of the call that started the child, a
    /// space, and the child's id.
    #[must_use]
    pub fn origin(call: &CallPath, child: &FlowId) -> String {
        format!("{call} {child}")
    }

    /// What a log keeps of whose end this one tells; `None` for everything else.
    #[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
    pub(crate) fn kept_origin(&self) -> Option<String> {
        let call = self.child.and(self.reference.as_deref())?;
        Some(self.ended.as_ref().map_or_else(|| call.to_owned(), |child| format!("{call} {child}")))
    }

    /// The same message as the end of a child, with its [`origin`](Self::origin).
    #[must_use]
    pub fn with_child(mut self, outcome: ChildOutcome, origin: &str) -> Self {
        let (call, child) = origin.split_once(' ').unwrap_or((origin, ""));
        self.child = Some(outcome);
        self.reference = Some(call.into());
        self.ended = FlowId::new(child).ok();
        self
    }
}

/// How a child flow ended, as its parent hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChildOutcome {
    /// It completed; the payload is its result.
    Completed,
    /// It failed; the payload is its error.
    Failed,
    /// It was cancelled; the payload is the reason as UTF-8.
    Cancelled,
    /// It was never started, because its id belongs to a flow that is not this call's child; the payload says
    /// so in UTF-8.
    Refused,
}

impl ChildOutcome {
    /// The number under which a log stores the outcome. Never reused.
    pub const fn code(self) -> u8 {
        match self {
            Self::Completed => 1,
            Self::Failed => 2,
            Self::Cancelled => 3,
            Self::Refused => 4,
        }
    }

    /// The outcome stored under `code`; `None` when this program does not know it.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Completed),
            2 => Some(Self::Failed),
            3 => Some(Self::Cancelled),
            4 => Some(Self::Refused),
            _ => None,
        }
    }
}
