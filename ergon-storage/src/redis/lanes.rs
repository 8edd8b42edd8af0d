//! Group commit: whatever waits while a call is under way goes into the next one.
//!
//! A few lanes take turns at the inbox. A lane takes all operations that wait, sends them as one call, and answers
//! each when the call has returned. It does not linger for more to come: while it waits for the server, the next
//! lane gathers.

use std::{
    sync::{Arc, Weak},
    time::Instant,
};

use redis::{RedisError, Value};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{
    answer::refusal,
    args::Args,
    clock::ServerClock,
    error::{from_function, from_redis, stopped, unreadable},
    library::Entry,
    link::{Link, Server},
};
use crate::{Clock, Result};

/// How many operations may wait; callers beyond that wait for room.
const INBOX_OPERATIONS_MAX: usize = 8_192;
/// How many operations and how many bytes one call carries at most. An operation is never split.
const CALL_OPERATIONS_MAX: usize = 512;
const CALL_BYTES_MAX: usize = 1 << 20;

/// Something to be done by the server, all or nothing.
#[derive(Debug)]
pub(super) struct Operation {
    /// The letter and the arguments.
    pub(super) args: Args,
    pub(super) rows: Rows,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

/// The flows whose rows an operation needs, by their numbers: those that its leases name, in their order.
#[derive(Debug)]
pub(super) enum Rows {
    /// None that are known.
    Unknown,
    /// What a step needs of this one.
    Step(String),
    /// All of these.
    Whole(Vec<String>),
}

impl Rows {
    fn leased(&self) -> &[String] {
        match self {
            Self::Unknown => &[],
            Self::Step(row) => std::slice::from_ref(row),
            Self::Whole(rows) => rows,
        }
    }

    fn whole(&self) -> &[String] {
        if let Self::Whole(rows) = self { rows } else { &[] }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone)]
enum Failure {
    Redis(RedisError, Arc<Server>),
    /// The function has refused this operation alone.
    Refused(String),
    Unreadable,
}

/// Where the log's instants come from.
#[derive(Debug, Clone)]
pub(super) enum Time {
    /// The server's own clock.
    Server(Arc<ServerClock>),
    /// A clock of this process, for tests.
    Given(Arc<dyn Clock>),
}

impl Time {
    /// The first argument of a call: the instant, or nothing for the server's own.
    pub(super) fn argument(&self) -> Args {
        let mut args = Args::default();
        match self {
            Self::Server(_) => args.text(""),
            Self::Given(clock) => args.number(clock.now().as_micros()),
        };
        args
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        match self {
            Self::Server(clock) => Arc::clone(clock) as _,
            Self::Given(clock) => Arc::clone(clock),
        }
    }
}

/// The way to the lanes.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    inbox: mpsc::Sender<Operation>,
}

impl Lanes {
    /// Starts a lane on each of these links. They end when the last handle is dropped.
    pub(super) fn start(links: &[Arc<Link>], time: &Time) -> Self {
        let (inbox, waiting) = mpsc::channel(INBOX_OPERATIONS_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for link in links {
            tokio::spawn(run(Arc::downgrade(link), time.clone(), Arc::clone(&waiting)));
        }
        Self { inbox }
    }

    /// Does an operation and returns its answer.
    pub(super) async fn submit(&self, args: Args, rows: Rows) -> Result<Value> {
        let (answer, answered) = oneshot::channel();
        self.inbox.send(Operation { args, rows, answer }).await.map_err(|_| stopped())?;
        match answered.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Redis(error, server))) => Err(from_redis(error, &server)),
            Ok(Err(Failure::Refused(why))) => Err(from_function(why)),
            Ok(Err(Failure::Unreadable)) => unreadable("the server's answer"),
            Err(_) => Err(stopped()),
        }
    }
}

async fn run(link: Weak<Link>, time: Time, waiting: Arc<Mutex<mpsc::Receiver<Operation>>>) {
    let mut operations = Vec::new();
    loop {
        if waiting.lock().await.recv_many(&mut operations, CALL_OPERATIONS_MAX).await == 0 {
            return;
        }
        let Some(link) = link.upgrade() else { return };
        while !operations.is_empty() {
            let mut bytes = 0;
            let fits = operations.iter().take_while(|operation| {
                bytes += operation.args.bytes();
                bytes <= CALL_BYTES_MAX
            });
            let count = fits.count().max(1);
            let rest = operations.split_off(count);
            call(&link, &time, std::mem::replace(&mut operations, rest)).await;
        }
    }
}

/// Does some operations in one call.
async fn call(link: &Link, time: &Time, operations: Vec<Operation>) {
    let mut head = time.argument();
    head.with(|out| {
        for operation in &operations {
            frame(out, &operation.args, &operation.rows);
        }
    });
    for part in [Rows::leased, Rows::whole] {
        head.count(operations.iter().map(|operation| part(&operation.rows).len()).sum());
        for row in operations.iter().flat_map(|operation| part(&operation.rows)) {
            head.text(row);
        }
    }
    let parts = std::iter::once(&head).chain(operations.iter().map(|operation| &operation.args));
    let asked_at = Instant::now();
    match link.call(Entry::Write, parts).await {
        Ok(value) => answer(time, asked_at, operations, value),
        Err(error) => {
            for operation in operations {
                // Whoever no longer waits does not want to know.
                _ = operation.answer.send(Err(Failure::Redis(error.clone(), Arc::clone(link.server()))));
            }
        }
    }
}

/// Adds how many arguments and how many leases an operation has, so that it can be left out.
fn frame(out: &mut Vec<u8>, args: &Args, rows: &Rows) {
    for amount in [args.len(), rows.leased().len()] {
        out.extend_from_slice(&u32::try_from(amount).unwrap_or(u32::MAX).to_be_bytes());
    }
}

/// What comes before an operation that is sent alone, after the instant.
pub(super) fn head_of(args: &Args, head: &mut Args) {
    head.with(|out| frame(out, args, &Rows::Unknown)).number(0).number(0);
}

fn answer(time: &Time, asked_at: Instant, operations: Vec<Operation>, value: Value) {
    let mut answers = match value {
        Value::Array(answers) => answers.into_iter(),
        _ => Vec::new().into_iter(),
    };
    if let (Some(now), Time::Server(clock)) = (answers.next(), time) {
        clock.learn(&now, asked_at);
    }
    for operation in operations {
        let answer = answers.next().ok_or(Failure::Unreadable);
        _ = operation.answer.send(answer.and_then(|answer| match refusal(&answer) {
            Some(why) => Err(Failure::Refused(why)),
            None => Ok(answer),
        }));
    }
}
