//! The execution log of [ergon]: what a durable-execution engine writes down, and where.
//!
//! A log knows ids, bytes and times; it never sees a user's types. [`ExecutionLog`] is the whole of what a
//! backend supplies: each method is one atomic transition. The engine above it decides *what* to write, the log
//! decides *when it is* (through its [`Clock`]) and *who may write* (through the [`Lease`] and its epoch).
//!
//! Read in this order: [`FlowId`] and [`Timestamp`] are the vocabulary, [`Record`] is one line of a flow's
//! history, [`NewFlow`] and [`FlowInfo`] are a flow before and after it is accepted, [`Commit`] is one step
//! forward, [`ExecutionLog`] ties them together.
//!
//! [`CodecExecutionLog`] encrypts or compresses what any of them is given.
//!
//! # Writing another backend
//!
//! Implement [`ExecutionLog`], enable the `conformance` feature in your tests and run the suite in
//! `conformance`: every promise of the trait's documentation is a law there.
//!
//! [ergon]: https://docs.rs/ergon

mod affinity;
mod clock;
mod codec;
mod commit;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod flow;
mod id;
mod item;
mod labels;
mod log;
#[cfg(feature = "memory")]
mod memory;
mod message;
mod open;
#[cfg(feature = "postgres")]
mod postgres;
mod query;
mod record;
#[cfg(feature = "redis")]
mod redis;
mod shared;
mod snapshot;
/// The locks of [`watch`], in whose place its tests put others.
mod sync {
    pub(crate) use std::sync::{Mutex, PoisonError};
}
#[cfg(feature = "sqlite")]
mod sqlite;
mod time;
mod watch;
#[cfg(test)]
mod watch_tests;
mod work;

#[cfg(feature = "redis")]
pub use self::redis::{RedisExecutionLog, RedisOptions};
pub use affinity::{Affinity, Takeover};
pub use clock::{Clock, ManualClock, SystemClock};
pub use codec::{CodecError, CodecExecutionLog, PayloadCodec, PayloadContext, PayloadKind};
pub use commit::{Commit, CommitNow, Committed, Next, Wake};
pub use error::{Error, ErrorKind, Result};
pub use flow::{Cleanup, FlowInfo, FlowRecord, FlowState, NewFlow, Parent, Start};
pub use id::{FlowId, InvalidId};
pub use item::{Feed, Item, Keep, NewItem};
pub use labels::Labels;
pub use log::{
    Cancelled, ClaimRequest, ClaimTarget, Claimed, ClaimedFlow, Enqueued, ExecutionLog, Lease, LeaseState, Limits,
    Retried,
};
#[cfg(feature = "memory")]
pub use memory::InMemoryExecutionLog;
pub use message::{Channel, ChildOutcome, Message, NewMessage, Sent};
pub use open::open;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresExecutionLog, PostgresOptions, SynchronousCommit, Transaction as PostgresTransaction};
pub use query::{Count, Cursor, Filter, FlowPage, PrunePolicy};
pub use record::{Beat, CallKind, CallPath, InvalidPath, Phase, Record};
#[cfg(feature = "sqlite")]
#[doc(no_inline)]
pub use rusqlite;
pub use snapshot::{Extras, Imported, Reset, Snapshot};
#[cfg(feature = "sqlite")]
pub use sqlite::{Durability, SqliteExecutionLog, SqliteOptions, Transaction as SqliteTransaction};
pub use time::Timestamp;
#[cfg(feature = "postgres")]
#[doc(no_inline)]
pub use tokio_postgres;
pub use watch::{Topic, Watch, WatchHub};
pub use work::{Database, Work, WorkResult};
#[cfg(feature = "postgres")]
pub use work::{PostgresWork, Within};
