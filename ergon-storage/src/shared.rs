//! A shared log is a log.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;

use crate::{
    Cancelled, Channel, ClaimRequest, Claimed, Clock, Commit, CommitNow, Committed, Count, Cursor, Database, Enqueued,
    ExecutionLog, Extras, Feed, Filter, FlowId, FlowPage, FlowRecord, Imported, Item, Lease, LeaseState, Limits,
    Message, NewFlow, NewMessage, PrunePolicy, Record, Reset, Result, Retried, Sent, Snapshot, Topic, Watch, Work,
    WorkResult,
};

/// Asks the log behind the pointer, with its own future: `#[async_trait]` would put each one into another box.
macro_rules! ask {
    ($($method:ident $(<$($life:lifetime),*>)? ($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method<'log, $($($life,)*)? 'call>(&'log self, $($arg: $type),*) -> BoxFuture<'call, Result<$answer>>
        where
            'log: 'call,
            $($($life: 'call,)*)?
            Self: 'call,
        {
            (**self).$method($($arg),*)
        }
    )*};
}

#[deny(clippy::missing_trait_methods)]
impl<L: ExecutionLog + ?Sized> ExecutionLog for Arc<L> {
    fn clock(&self) -> Arc<dyn Clock> {
        (**self).clock()
    }

    fn limits(&self) -> Limits {
        (**self).limits()
    }

    fn watch(&self, topic: Topic) -> Watch {
        (**self).watch(topic)
    }

    fn commit_now(&self, commit: Commit) -> CommitNow {
        (**self).commit_now(commit)
    }

    fn database(&self) -> Option<Database> {
        (**self).database()
    }

    ask! {
        enqueue(flows: Vec<NewFlow>) -> Vec<Enqueued>;
        claim(request: ClaimRequest) -> Claimed;
        heartbeat<'a>(leases: &'a [Lease], lease: Duration) -> Vec<LeaseState>;
        release<'a>(lease: &'a Lease) -> ();
        commit(commit: Commit) -> Committed;
        transact<'a, 'b, 'w>(lease: &'a Lease, call: &'b str, work: Work<'w>) -> WorkResult;
        send(message: NewMessage) -> Sent;
        cancel<'a, 'b>(flow: &'a FlowId, reason: &'b str) -> Cancelled;
        abandon<'a, 'b>(flow: &'a FlowId, reason: &'b str) -> Cancelled;
        retry<'a>(flow: &'a FlowId) -> Retried;
        reoffer<'a, 'b>(types: &'a [(Arc<str>, u32)], build: &'b str) -> u64;
        flow<'a>(flow: &'a FlowId) -> Option<FlowRecord>;
        history<'a>(flow: &'a FlowId, after: u32, limit: usize) -> Vec<Record>;
        messages<'a, 'b>(flow: &'a FlowId, channels: &'b [Channel], after: u32, limit: usize) -> Vec<Message>;
        items<'a, 'b>(flow: &'a FlowId, feed: &'b Feed, after: u32, limit: usize) -> Vec<Item>;
        list<'a>(filter: &'a Filter, after: Option<Cursor>, limit: usize) -> FlowPage;
        counts<'a>(filter: &'a Filter) -> Vec<Count>;
        extras<'a>(flow: &'a FlowId) -> Option<Extras>;
        import(snapshot: Snapshot) -> Imported;
        reset(reset: Reset) -> ();
        prune<'a>(policy: &'a PrunePolicy) -> u64;
        delete<'a>(flow: &'a FlowId) -> bool;
    }
}
