//! The thread that owns the writing connection.
//!
//! It takes whatever waits in its inbox, applies it in one transaction and answers once that has been committed:
//! group commit, so that one wait for the disk serves all who wait. It does not linger for more to come: while it
//! commits, the next group gathers by itself.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::{
    error::{Fault, Outcome, stopped},
    lanes::Lanes,
    options::SqliteOptions,
    owners::{Free, Owners},
    schema,
    statements::Statements,
};
use crate::{Clock, Error, ErrorKind, FlowId, Limits, Result, Timestamp, WatchHub};

/// How many jobs may wait for the writer; callers beyond that wait for room.
pub(super) const INBOX_JOBS_MAX: usize = 8_192;
/// How many jobs are committed together at most.
pub(super) const BATCH_JOBS_MAX: usize = 2_048;

/// What the writer is asked.
pub(super) enum Request {
    /// To do this and answer.
    Work(Box<dyn Work>),
    /// To see whether another process has written.
    Look,
}

/// A job that can be done again from its beginning, until its answer is sent.
pub(super) trait Work: Send {
    /// Does the job and keeps its answer. An error means that the transaction may hold half of it.
    fn apply(&mut self, tx: &mut Tx<'_, '_>) -> Outcome<()>;

    /// Replaces the answer.
    fn fail(&mut self, error: Error);

    /// Sends the answer.
    fn answer(self: Box<Self>);
}

/// What a job works with: the open transaction and the log's settings.
pub(super) struct Tx<'t, 'c> {
    pub(super) conn: &'c Connection,
    pub(super) st: &'t mut Statements<'c>,
    pub(super) lanes: &'t mut Lanes,
    pub(super) owners: &'t mut Owners,
    pub(super) hints: &'t mut Hints,
    pub(super) limits: &'t Limits,
    clock: &'t dyn Clock,
    /// Whether flows are or were bound to workers; `None` when that must be looked up.
    pub(super) places: &'t mut Option<bool>,
    /// The greatest key of a flow so far; looked up when it is first needed.
    key_last: &'t mut Option<i64>,
}

impl Tx<'_, '_> {
    /// The instant of the operation.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A key that no flow has had.
    pub(super) fn next_key(&mut self) -> Outcome<i64> {
        let last = match *self.key_last {
            Some(last) => last,
            None => self.st.key_last.query_row([], |row| row.get(0))?,
        };
        if last >= super::row::KEY_MAX {
            return Err(Error::new(ErrorKind::TooLarge, "the log has had as many flows as it can number").into());
        }
        *self.key_last = Some(last + 1);
        Ok(last + 1)
    }
}

/// Whom to wake once the transaction is durable.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// A flow may have become claimable, now or at a nearer instant.
    pub(super) queue: bool,
    /// Another process may have changed anything.
    all: bool,
    /// These flows have changed.
    pub(super) flows: Vec<FlowId>,
}

impl Hints {
    fn give(&mut self, hub: &WatchHub) {
        if mem::take(&mut self.all) {
            hub.notify_all();
        } else if self.queue {
            hub.notify_queue();
        }
        self.queue = false;
        for flow in self.flows.drain(..) {
            hub.notify_flow(&flow);
        }
    }
}

/// A closure as [`Work`], with the place where its answer is awaited.
struct Job<T, F> {
    work: F,
    answer: Result<T>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Work for Job<T, F>
where
    T: Send,
    F: Fn(&mut Tx<'_, '_>) -> Outcome<T> + Send,
{
    fn apply(&mut self, tx: &mut Tx<'_, '_>) -> Outcome<()> {
        let changes = tx.conn.total_changes();
        match (self.work)(tx) {
            Ok(answer) => self.answer = Ok(answer),
            // A refusal leaves no trace. Where one is met half-way, the transaction is undone.
            Err(Fault::Refused(error)) if tx.conn.total_changes() == changes => self.answer = Err(error),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    fn fail(&mut self, error: Error) {
        self.answer = Err(error);
    }

    fn answer(self: Box<Self>) {
        // The caller may have gone away, which changes nothing.
        let _ = self.reply.send(self.answer);
    }
}

/// Has the writer do this, and waits until it is durable. `work` may be done twice, the first time in vain.
pub(super) async fn submit<T, F>(inbox: &mpsc::Sender<Request>, work: F) -> Result<T>
where
    T: Send + 'static,
    F: Fn(&mut Tx<'_, '_>) -> Outcome<T> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    let job = Job { work, answer: Err(stopped()), reply };
    inbox.send(Request::Work(Box::new(job))).await.map_err(|_| stopped())?;
    answer.await.unwrap_or_else(|_| Err(stopped()))
}

/// What the thread needs besides its connection.
pub(super) struct Environment {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    pub(super) hub: WatchHub,
    /// True while a [`Request::Look`] waits.
    pub(super) looking: Arc<AtomicBool>,
    /// True when a connection was closed, perhaps by the end of its process, and nobody has looked yet.
    pub(super) closed: Arc<AtomicBool>,
}

/// The life of the thread: opens the connection, says how that went, and works until the inbox is closed.
pub(super) fn run(
    options: &SqliteOptions,
    environment: &Environment,
    inbox: mpsc::Receiver<Request>,
    opened: oneshot::Sender<Result<()>>,
) {
    let open = || match &options.path {
        Some(path) => schema::open_writer(path, options.create, options.busy_timeout, options.durability),
        None => schema::open_in_memory(),
    };
    let conn = match open() {
        Ok(conn) => conn,
        Err(error) => return drop(opened.send(Err(error))),
    };
    match Writer::new(&conn, environment) {
        Ok(mut writer) => {
            if let Some(path) = &options.path {
                writer.join(Owners::join(path, options.try_lock));
            }
            if opened.send(Ok(())).is_ok() {
                writer.serve(inbox);
            }
            writer.leave();
        }
        Err(fault) => return drop(opened.send(Err(fault.into_error()))),
    }
    // Another process may be reading: then the last one to close copies what is left.
    if let Err(error) = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::debug!(%error, "the write-ahead log was not copied on closing");
    }
    if let Err((_, error)) = conn.close() {
        tracing::warn!(%error, "the execution log did not close cleanly");
    }
}

struct Writer<'c> {
    conn: &'c Connection,
    st: Statements<'c>,
    lanes: Lanes,
    owners: Owners,
    hints: Hints,
    data_version: i64,
    places: Option<bool>,
    environment: &'c Environment,
}

impl<'c> Writer<'c> {
    fn new(conn: &'c Connection, environment: &'c Environment) -> Outcome<Self> {
        let mut st = Statements::prepare(conn)?;
        let data_version = st.data_version.query_row([], |row| row.get(0))?;
        let mut lanes = Lanes::default();
        lanes.load(conn)?;
        let (owners, hints) = (Owners::default(), Hints::default());
        Ok(Self { conn, st, lanes, owners, hints, data_version, places: None, environment })
    }

    /// Takes a part among the logs on the file, and sees which of the others are gone.
    fn join(&mut self, owners: Owners) {
        self.owners = owners;
        self.owners.find_files();
        self.bury();
    }

    /// Gives up what this log still runs: nobody else can know sooner.
    fn leave(mut self) {
        self.owners.leave();
        self.bury();
    }

    /// Sees whether a log is gone that has running flows.
    fn look_for_dead(&mut self) {
        match self.owners.find(&mut self.st) {
            Ok(()) => self.bury(),
            Err(fault) => tracing::debug!(error = ?fault, "could not see whether another log is gone"),
        }
    }

    /// Frees the flows of the logs that were found to be gone. Where that fails, others find these logs.
    fn bury(&mut self) {
        match self.owners.has_flows(&mut self.st) {
            Ok(false) => self.owners.committed(),
            Ok(true) => {
                if let Err(fault) = self.transact(&mut [Box::new(Free)]) {
                    tracing::debug!(error = ?fault, "the flows of a log that is gone could not be freed");
                }
            }
            Err(fault) => {
                tracing::debug!(error = ?fault, "the flows of a log that is gone could not be looked up");
                self.owners.rolled_back();
            }
        }
    }

    fn serve(&mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut requests = Vec::with_capacity(BATCH_JOBS_MAX);
        let mut jobs = Vec::with_capacity(BATCH_JOBS_MAX);
        while inbox.blocking_recv_many(&mut requests, BATCH_JOBS_MAX) > 0 {
            let mut look = false;
            for request in requests.drain(..) {
                match request {
                    Request::Work(job) => jobs.push(job),
                    Request::Look => look = true,
                }
            }
            if look {
                // What was noted before it was asked is seen.
                self.environment.looking.swap(false, Ordering::AcqRel);
            }
            if !jobs.is_empty() {
                self.commit_together(&mut jobs);
            } else if look {
                self.look_alone();
            }
            if self.environment.closed.swap(false, Ordering::AcqRel) {
                self.look_for_dead();
            }
            self.hints.give(&self.environment.hub);
            for job in jobs.drain(..) {
                // What the work has captured is dropped here.
                if catch_unwind(AssertUnwindSafe(|| job.answer())).is_err() {
                    tracing::error!("a value of the work in a transaction panicked when it was dropped");
                }
            }
        }
    }

    /// Applies the jobs in one transaction. When one of them breaks it, each gets a transaction of its own.
    fn commit_together(&mut self, jobs: &mut [Box<dyn Work>]) {
        let Err(fault) = self.transact(jobs) else { return };
        if jobs.len() == 1 || fault.is_about_the_file() {
            return fail_all(jobs, fault);
        }
        tracing::warn!(error = ?fault, jobs = jobs.len(), "a job failed half-way; each is tried by itself");
        for job in jobs {
            let alone = std::slice::from_mut(job);
            if let Err(fault) = self.transact(alone) {
                fail_all(alone, fault);
            }
        }
    }

    /// Applies the jobs in one transaction: all of them, or none and an error.
    fn transact(&mut self, jobs: &mut [Box<dyn Work>]) -> Outcome<()> {
        let hinted = self.hints.flows.len();
        let outcome = self.try_transact(jobs);
        if outcome.is_ok() {
            self.owners.committed();
        } else {
            self.owners.rolled_back();
            // Some errors have rolled back already.
            if !self.conn.is_autocommit()
                && let Err(error) = self.st.rollback.execute([])
            {
                tracing::error!(%error, "a transaction could not be rolled back");
            }
            self.hints.flows.truncate(hinted);
            self.places = None;
            // A lane that was made in vain must not be remembered.
            self.lanes = Lanes::default();
            self.lanes.load(self.conn)?;
        }
        outcome
    }

    fn try_transact(&mut self, jobs: &mut [Box<dyn Work>]) -> Outcome<()> {
        self.st.begin.execute([])?;
        self.look()?;
        let mut key_last = None;
        for job in jobs {
            let mut tx = Tx {
                conn: self.conn,
                st: &mut self.st,
                lanes: &mut self.lanes,
                owners: &mut self.owners,
                hints: &mut self.hints,
                limits: &self.environment.limits,
                clock: &*self.environment.clock,
                places: &mut self.places,
                key_last: &mut key_last,
            };
            catch_unwind(AssertUnwindSafe(|| job.apply(&mut tx)))
                .unwrap_or_else(|panic| Err(Fault::from_panic(&*panic)))?;
            if self.conn.is_autocommit() {
                return Err(Fault::RolledBack);
            }
        }
        self.st.commit.execute([])?;
        Ok(())
    }

    /// Sees whether another process has written, when there is nothing else to do. The lock is needed, for the
    /// change that was heard of may not be a commit yet: whoever makes it holds the lock until it is one.
    fn look_alone(&mut self) {
        // What is visible needs no lock, which a busy process may hold for long.
        let seen = self.look();
        self.hints.give(&self.environment.hub);
        if let Err(fault) = seen.and_then(|()| self.transact(&mut [])) {
            // Someone writes, and a hint may be spurious.
            self.hints.all = true;
            tracing::debug!(error = ?fault, "could not see whether another process has written");
        }
    }

    /// Sees whether another connection has committed since the last look; our own commits do not count.
    fn look(&mut self) -> Outcome<()> {
        let data_version = self.st.data_version.query_row([], |row| row.get(0))?;
        if mem::replace(&mut self.data_version, data_version) != data_version {
            self.hints.all = true;
            let found: i32 = self.conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if found != schema::version() {
                // Seen again by every call until the program is replaced.
                self.data_version = -1;
                let message = format!(
                    "another program has brought the log to schema version {found}, this one knows {}; use a newer \
                     build of this program",
                    schema::version()
                );
                return Err(Error::new(ErrorKind::Unsupported, message).into());
            }
            self.lanes.load(self.conn)?;
            self.places = None;
        }
        Ok(())
    }
}

fn fail_all(jobs: &mut [Box<dyn Work>], fault: Fault) {
    if let [job] = jobs {
        // It was alone, and its answer says why.
        if !matches!(fault, Fault::RolledBack) {
            job.fail(fault.into_error());
        }
        return;
    }
    let error = Arc::new(fault.into_error());
    for job in jobs {
        job.fail(Error::new(error.kind(), error.to_string()).with_source(Arc::clone(&error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SystemClock, sqlite::queue};

    #[test]
    fn a_full_disk_is_unavailable_and_the_writer_goes_on() {
        let conn = schema::open_in_memory().unwrap();
        let environment = Environment {
            clock: Arc::new(SystemClock),
            limits: Limits::default(),
            hub: WatchHub::new(),
            looking: Arc::default(),
            closed: Arc::default(),
        };
        let mut writer = Writer::new(&conn, &environment).unwrap();
        let mut enqueue = |id: &'static str, bytes: usize| {
            let flow = crate::NewFlow::new(FlowId::new(id).unwrap(), "Order", 1, vec![0; bytes]);
            let work = move |tx: &mut Tx<'_, '_>| queue::enqueue(tx, std::slice::from_ref(&flow));
            let (reply, mut answer) = oneshot::channel();
            let mut jobs: [Box<dyn Work>; 1] = [Box::new(Job { work, answer: Err(stopped()), reply })];
            writer.commit_together(&mut jobs);
            let [job] = jobs;
            job.answer();
            answer.try_recv().unwrap().map_err(|error| error.kind())
        };
        let pages: i64 = conn.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        let limit = |pages: i64| {
            conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
        };
        limit(pages + 10);
        assert_eq!(enqueue("large", 1 << 20), Err(ErrorKind::Unavailable));
        assert_eq!(enqueue("small", 10), Ok(vec![crate::Enqueued::Created]));
        limit(pages + 1_000);
        assert_eq!(enqueue("large", 1 << 20), Ok(vec![crate::Enqueued::Created]));
    }
}
