//! The user's own work in the log's transactions, each on a connection that nobody else uses meanwhile.

use std::{
    any::Any,
    ops::Deref,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use tokio::{
    sync::{Semaphore, SemaphorePermit, oneshot},
    time::{Instant, timeout},
};
use tokio_postgres::{Client, Row, Statement, types::ToSql};

use super::{
    error::{self, Remedy, remedy},
    pool::{Connector, Session},
    row::key_and_fence,
    schema,
    text::identifier,
};
use crate::{Error, ErrorKind, FlowState, Lease, PostgresWork, Result, Within, WorkResult};

/// The open transaction of a PostgreSQL log, lent to the user's own work: a [`tokio_postgres::Client`] in the log's
/// database, with the isolation level *read committed*, the log's `synchronous_commit` and its answer timeout for each
/// statement, and for each pause between two: work that leaves the transaction idle for longer is cut off, for it would
/// keep its rows locked.
///
/// The log begins and ends it: work that sends a `COMMIT` or `ROLLBACK` fails. Savepoints may be used. What work sets
/// for its session (settings, the role, temporary tables, advisory locks) is gone with the transaction. The tables in the
/// log's own schema must be left alone.
#[derive(Debug)]
pub struct Transaction<'c> {
    client: &'c Client,
}

impl Deref for Transaction<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client
    }
}

/// The connections for transactions: made when they are needed, kept for the next ones.
pub(super) struct Transactions {
    connector: Arc<Connector>,
    permits: Semaphore,
    idle: Mutex<Vec<Rented>>,
}

/// A connection for one transaction at a time.
struct Rented {
    session: Arc<Session>,
    /// Names the call, if nobody has and the lease holds.
    begin: Statement,
    /// What a call that was named before has resulted in, if the lease still holds.
    known: Statement,
    /// Keeps the outcome, if the lease still holds, and lets nobody take it until the end of the transaction.
    end: Statement,
    /// Whether the lease holds.
    held: Statement,
    /// Makes the session as it was when it was new, whatever work has set in it.
    renew: String,
    /// The connection ends when this is dropped.
    _kept: oneshot::Sender<()>,
}

/// A connection and the right to one.
struct InUse<'t> {
    rented: Rented,
    _permit: SemaphorePermit<'t>,
}

impl Transactions {
    pub(super) fn new(connector: Arc<Connector>) -> Self {
        let permits = Semaphore::new(connector.options.connections);
        Self { connector, permits, idle: Mutex::default() }
    }

    /// A connection that nobody uses.
    async fn rent(&self) -> Result<InUse<'_>> {
        let permit = self.permits.acquire().await.map_err(|_| error::stopped())?;
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(rented) = idle() {
            if !rented.session.client.is_closed() {
                return Ok(InUse { rented, _permit: permit });
            }
        }
        Ok(InUse { rented: self.open().await?, _permit: permit })
    }

    /// For the next one: only what is not in the middle of anything.
    fn give_back(&self, in_use: InUse<'_>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(in_use.rented);
    }

    async fn open(&self) -> Result<Rented> {
        let (give, given) = oneshot::channel();
        let connector = Arc::clone(&self.connector);
        tokio::spawn(async move {
            let (kept, dropped) = oneshot::channel::<()>();
            let mut give = Some(give);
            let ready = async |session: Arc<Session>| -> Result<()> {
                let rented = Rented::prepare(session, kept).await?;
                if let Some(give) = give.take() {
                    // Whoever asked may be gone, and the connection with them.
                    let _ = give.send(Ok(rented));
                }
                let _ = dropped.await;
                Ok(())
            };
            let Err(error) = connector.once(ready).await else { return };
            if let Some(give) = give {
                drop(give.send(Err(error)));
            } else {
                tracing::debug!(%error, "a connection for transactions was lost");
            }
        });
        let opened = given.await.unwrap_or_else(|_| Err(error::stopped()));
        opened.map_err(|error| {
            // Whatever it is called: the log has been reached before, and may be again.
            Error::new(ErrorKind::Unavailable, error.to_string()).with_source(error)
        })
    }

    /// Does the work for a call of a flow, unless it is done.
    pub(super) async fn transact(&self, lease: &Lease, call: &str, work: &PostgresWork<'_>) -> Result<WorkResult> {
        let Some((key, fence)) = key_and_fence(lease) else { return Err(Error::lease_lost(&lease.flow)) };
        let in_use = self.rent().await?;
        let done =
            Once { rented: &in_use.rented, within: self.connector.options.answer_timeout, lease, key, fence, call };
        match done.run(work).await {
            Ok(Done::Clean(outcome)) => {
                self.give_back(in_use);
                outcome
            }
            Ok(Done::Panicked(panic)) => {
                self.give_back(in_use);
                std::panic::resume_unwind(panic)
            }
            Ok(Done::CutOff(outcome)) => outcome,
            // The connection is dropped, and the server undoes what is not committed.
            Err(error) => Err(error.with_flow(&lease.flow)),
        }
    }
}

impl Rented {
    async fn prepare(session: Arc<Session>, kept: oneshot::Sender<()>) -> Result<Self> {
        schema::check_again(&session).await?;
        let client = &session.client;
        // How the log has its own statements planned is not for others.
        let settings = session.settings();
        let renew = format!(
            "RESET SESSION AUTHORIZATION; RESET ALL; {settings}; UNLISTEN *; DISCARD TEMP; SELECT pg_advisory_unlock_all()"
        );
        let schema = identifier(&session.connector().options.schema);
        let running = FlowState::Running.code();
        let held = |fence: &str| {
            format!("SELECT 1 FROM {schema}.flows WHERE key = $1 AND fence = {fence} AND state = {running}")
        };
        let begin = format!(
            "INSERT INTO {schema}.effects (flow, call) SELECT $1, $2 WHERE EXISTS ({}) ON CONFLICT DO NOTHING RETURNING 1",
            held("$3")
        );
        let known =
            format!("SELECT outcome FROM {schema}.effects WHERE flow = $1 AND call = $2 AND EXISTS ({})", held("$3"));
        let end = format!(
            "WITH held AS MATERIALIZED ({} FOR SHARE) UPDATE {schema}.effects e SET outcome = $4 FROM held \
             WHERE e.flow = $1 AND e.call = $2 AND e.xmin = pg_current_xact_id()::xid RETURNING 1",
            held("$3")
        );
        let prepare = async |text: &str| client.prepare(text).await.map_err(error::failed);
        let (begin, known, end) = (prepare(&begin).await?, prepare(&known).await?, prepare(&end).await?);
        let held = prepare(&held("$2")).await?;
        Ok(Self { session, begin, known, end, held, renew, _kept: kept })
    }
}

/// How the work ended.
enum Done {
    /// The connection can be used again.
    Clean(Result<WorkResult>),
    /// It can be used again.
    Panicked(Box<dyn Any + Send>),
    /// It is gone, because of the work.
    CutOff(Result<WorkResult>),
}

/// A call of a flow, on a connection.
struct Once<'c> {
    rented: &'c Rented,
    within: Duration,
    lease: &'c Lease,
    key: i64,
    fence: i64,
    call: &'c str,
}

impl Once<'_> {
    /// An error leaves open what became of the connection.
    async fn run(&self, work: &PostgresWork<'_>) -> Result<Done> {
        let Self { rented, lease, key, fence, call, .. } = self;
        // Sent at once, but each by itself: settings made within the transaction would end with it.
        tokio::try_join!(self.say(&rented.renew), self.say("BEGIN"))?;
        if self.ask(&rented.begin, &[key, call, fence]).await?.is_empty() {
            let known = self.ask(&rented.known, &[key, call, fence]).await?;
            self.say("ROLLBACK").await?;
            let Some(known) = known.first() else {
                return Ok(Done::Clean(Err(Error::lease_lost(&lease.flow))));
            };
            let outcome: Option<Vec<u8>> = known.try_get(0).map_err(error::failed)?;
            return Ok(Done::Clean(match outcome {
                Some(outcome) => Ok(Ok(outcome.into())),
                None => Err(ended_by_the_work()),
            }));
        }
        let transaction = Transaction { client: &rented.session.client };
        let begun = Instant::now();
        // The work takes the time that its step has; each of its statements has the server's limit.
        let outcome = match AssertUnwindSafe(async { work(&transaction, Within::default()).await }).catch_unwind().await
        {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                return match self.say("ROLLBACK").await {
                    Ok(()) => Ok(Done::Clean(Ok(Err(error)))),
                    Err(_) if self.may_have_idled(begun) => Ok(Done::CutOff(Ok(Err(error)))),
                    Err(lost) => Err(lost),
                };
            }
            Err(panic) => {
                self.say("ROLLBACK").await?;
                return Ok(Done::Panicked(panic));
            }
        };
        self.keep(outcome, begun).await
    }

    /// True when it may be the work itself that a lost connection is owed to: to repeat it would never end.
    fn may_have_idled(&self, begun: Instant) -> bool {
        begun.elapsed() >= self.within
    }

    /// Keeps the outcome, and commits.
    async fn keep(&self, outcome: Bytes, begun: Instant) -> Result<Done> {
        let Self { rented, lease, key, fence, call, .. } = self;
        let limits = &rented.session.connector().options.limits;
        if let Err(error) = limits.check_payload("the outcome of the transaction", outcome.len()) {
            self.say("ROLLBACK").await?;
            return Ok(Done::Clean(Err(error)));
        }
        let (client, payload) = (&rented.session.client, &outcome[..]);
        match timeout(self.within, client.query(&rented.end, &[key, call, fence, &payload])).await {
            Ok(Ok(rows)) if !rows.is_empty() => {}
            Ok(Ok(_)) => {
                self.say("ROLLBACK").await?;
                let is_held = !self.ask(&rented.held, &[key, fence]).await?.is_empty();
                let error = if is_held { ended_by_the_work() } else { Error::lease_lost(&lease.flow) };
                return Ok(Done::Clean(Err(error)));
            }
            Ok(Err(error)) if error.code().is_some_and(|state| state.code() == "25P02") => {
                self.say("ROLLBACK").await?;
                let message = "a statement of the work failed, and the work went on as if it had not: return its error";
                return Ok(Done::Clean(Err(Error::new(ErrorKind::Invalid, message))));
            }
            // Nothing was committed.
            Ok(Err(_)) if client.is_closed() && self.may_have_idled(begun) => {
                let message = format!(
                    "the work left its transaction idle for longer than {:?}, and the server has ended it: do what \
                     takes long before or after it",
                    self.within
                );
                return Ok(Done::CutOff(Err(Error::new(ErrorKind::Invalid, message))));
            }
            Ok(Err(error)) => return Err(error::failed(error)),
            Err(_) => return Err(self.silent()),
        }
        match timeout(self.within, client.batch_execute("COMMIT")).await {
            Ok(Ok(())) => Ok(Done::Clean(Ok(Ok(outcome)))),
            Ok(Err(error)) => match remedy(&error) {
                // Such as a deferred constraint: nothing was applied, and nothing will be.
                Remedy::Tell(ErrorKind::Corrupt) => {
                    let message = "the transaction could not be committed";
                    Err(Error::new(ErrorKind::Invalid, message).with_source(error))
                }
                _ => Err(error::failed(error)),
            },
            Err(_) => Err(self.silent()),
        }
    }

    async fn say(&self, command: &str) -> Result<()> {
        match timeout(self.within, self.rented.session.client.batch_execute(command)).await {
            Ok(said) => said.map_err(error::failed),
            Err(_) => Err(self.silent()),
        }
    }

    async fn ask(&self, statement: &Statement, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        match timeout(self.within, self.rented.session.client.query(statement, values)).await {
            Ok(rows) => rows.map_err(error::failed),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> Error {
        let message = format!("{} did not answer within {:?}", self.rented.session.connector().target, self.within);
        Error::new(ErrorKind::Unavailable, message)
    }
}

/// The error of work that has committed what it had done so far, against the rules: how far it came is not known.
fn ended_by_the_work() -> Error {
    let message = "the work has ended its transaction by itself, and what it did after that is not known: it must not \
        send COMMIT or ROLLBACK";
    Error::new(ErrorKind::Invalid, message)
}
