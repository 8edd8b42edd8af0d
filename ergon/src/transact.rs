//! Transactions of the user's own, on the database that the log is kept in.

use std::{any::Any, fmt, future::Future, sync::Arc, sync::atomic::Ordering, time::Duration};

use ergon_storage::{ErrorKind as LogErrorKind, Lease, Work, WorkResult};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    codec,
    context::{Context, Halt, Log},
    error::Error,
    flow::ErrorCaps,
};

/// One call of a step's body, with the name under which the log knows it.
struct Call {
    context: Context,
    name: String,
    step: &'static str,
}

impl Call {
    /// # Panics
    ///
    /// Outside a step.
    #[track_caller]
    fn here(what: &str) -> Self {
        let context = Context::current(what);
        let Some(step) = context.step.clone() else {
            panic!(
                "{what} was called in a flow's own code, where it would be done again by every replay; call it in a step"
            )
        };
        let number = step.transactions.fetch_add(1, Ordering::Relaxed);
        let name = format!("{} {:016x} {number}", step.identity(), step.args_hash);
        Self { context, name, step: step.name }
    }

    fn lease(&self) -> Lease {
        self.context.flow.lease()
    }

    /// What an error of ours is for the user: an error of theirs, or the end of the flow.
    async fn trouble<E>(&self, error: Error, caps: ErrorCaps<E>) -> E {
        let Some(from_error) = caps.from_error else {
            self.context.flow.halt(Halt::Fault(error));
            return std::future::pending().await;
        };
        from_error(error)
    }

    /// Asks the log, again for as long as it cannot answer.
    async fn settle<'w, T, E>(&self, work: impl Fn() -> Work<'w> + Send, caps: ErrorCaps<E>) -> Result<T, E>
    where
        T: DeserializeOwned,
        E: Send + 'static,
    {
        const FIRST: Duration = Duration::from_millis(5);
        const LONGEST: Duration = Duration::from_secs(1);
        let what = format!("the transaction of step {:?}", self.step);
        let Some(Log(log)) = &self.context.flow.env.log else {
            let error = Error::permanent(format!("{what} cannot be made without a log"));
            return Err(self.trouble(error, caps).await);
        };
        let lease = self.lease();
        let mut delay = FIRST;
        loop {
            let error = match log.transact(&lease, &self.name, work()).await {
                Ok(Ok(payload)) => match codec::decode(&what, &payload) {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                },
                Ok(Err(error)) => match error.downcast() {
                    Ok(error) => return Err(*error),
                    Err(_) => Error::permanent(format!("{what} failed with an error of another type")),
                },
                Err(error) if error.is_retryable() => {
                    tracing::warn!(flow = %lease.flow, %error, ?delay, "the log cannot answer, trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(LONGEST);
                    continue;
                }
                Err(error) if error.kind() == LogErrorKind::LeaseLost => {
                    // The flow goes on elsewhere: this one is about to be dropped.
                    tracing::info!(flow = %lease.flow, %error, "the lease is gone, nothing was changed");
                    std::future::pending().await
                }
                Err(error) if error.kind() == LogErrorKind::Corrupt => {
                    // It was made, perhaps, and only its outcome cannot be read: that is for a person.
                    self.context.flow.halt(Halt::Stall(format!("what {what} came to cannot be read: {error}")));
                    std::future::pending().await
                }
                Err(error) => Error::permanent(format!("{what} cannot be made: {error}")),
            };
            return Err(self.trouble(error, caps).await);
        }
    }
}

/// The outcome of the user's work in the log's form.
fn written<T, E>(outcome: Result<T, E>, step: &str, limit: usize, caps: ErrorCaps<E>) -> WorkResult
where
    T: Serialize + DeserializeOwned,
    E: Send + 'static,
{
    let boxed = |error: E| Box::new(error) as Box<dyn Any + Send>;
    let value = outcome.map_err(boxed)?;
    match codec::encode_exact(format_args!("the outcome of the transaction of step {step:?}"), &value, limit) {
        Ok((payload, _)) => Ok(payload),
        Err(error) => match caps.from_error {
            Some(from_error) => Err(boxed(from_error(error))),
            // Nothing is applied; the engine makes it the flow's failure.
            None => panic!("{error}"),
        },
    }
}

/// Transactions on the file of an SQLite log.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    #[doc(no_inline)]
    pub use ergon_storage::{SqliteTransaction as Transaction, rusqlite};

    use super::{Arc, Call, DeserializeOwned, Error, ErrorCaps, Future, Serialize, Work, written};
    use crate::context::Within;

    /// Does some work of yours on the file of the SQLite log, exactly once: the work and its outcome are committed in
    /// one transaction of the log. A body that starts again after a crash gets that outcome, and the work is not done
    /// again. Work that returns an error, or panics, leaves no trace.
    ///
    /// To be called in a step, any number of times, always in the same order. A step that does nothing else is written
    /// shorter with `#[step(transaction)]`:
    ///
    /// ```
    /// use ergon::{prelude::*, sqlite};
    ///
    /// #[flow_type]
    /// #[derive(Clone)]
    /// struct Transfer { from: String, to: String, cents: i64 }
    ///
    /// #[flow_type]
    /// impl Transfer {
    ///     #[flow]
    ///     async fn run(&self) -> ergon::Result<i64> {
    ///         self.book().await
    ///     }
    ///
    ///     #[step(transaction)]
    ///     fn book(&self, tx: &sqlite::Transaction<'_>) -> ergon::Result<i64> {
    ///         let add = "UPDATE accounts SET cents = cents + ?2 WHERE name = ?1 RETURNING cents";
    ///         let left: i64 = tx.query_row(add, (&self.from, -self.cents), |row| row.get(0))?;
    ///         if left < 0 {
    ///             return Err(ergon::Error::permanent("not enough money")); // and nothing has changed
    ///         }
    ///         tx.query_row(add, (&self.to, self.cents), |_| Ok(()))?;
    ///         Ok(left)
    ///     }
    /// }
    ///
    /// # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
    /// let log = SqliteExecutionLog::open_in_memory().await?; // or a file
    /// let tables = "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, cents INTEGER NOT NULL) STRICT;
    ///     INSERT INTO accounts VALUES ('ada', 100), ('bob', 0)";
    /// log.transaction(move |tx| tx.execute_batch(tables)).await??;
    /// let worker = Worker::new(log.clone()).register::<Transfer>().start().await?;
    /// let scheduler = Scheduler::new(log);
    /// let transfer = |cents| Transfer { from: "ada".into(), to: "bob".into(), cents };
    /// assert_eq!(scheduler.schedule(transfer(70)).await?.result().await?, 30);
    /// assert!(scheduler.schedule(transfer(70)).await?.result().await.is_err());
    /// # worker.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// A step that does other things, too, calls it:
    ///
    /// ```
    /// use ergon::{prelude::*, sqlite};
    ///
    /// #[step]
    /// async fn tell(account: String, cents: i64) -> ergon::Result<usize> {
    ///     write_to(&account, cents).await?; // may happen again if the process dies
    ///     sqlite::transact(move |tx| {
    ///         let add = "UPDATE accounts SET letters = letters + 1 WHERE name = ?1";
    ///         Ok(tx.execute(add, [&account])?) // does not
    ///     })
    ///     .await
    /// }
    /// # async fn write_to(account: &str, cents: i64) -> ergon::Result<()> { Ok(()) }
    /// ```
    ///
    /// The work runs on the thread that writes the log, and everything else that is to be written waits for it: keep
    /// it short. It may be run more than once, of which one run counts, when the transaction that it was a part of has
    /// failed. What it must leave alone is said at [`Transaction`].
    ///
    /// A log of another kind refuses: a worker with a `#[step(transaction)]` does not start on it, and this function
    /// returns a permanent error.
    ///
    /// # Panics
    ///
    /// Outside a step.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves open whether the work is done.
    #[track_caller]
    pub fn transact<T, E, F>(work: F) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: From<Error> + Send + 'static,
        F: Fn(&Transaction<'_>) -> Result<T, E> + Send + Sync + 'static,
    {
        transact_with(ErrorCaps { from_error: Some(E::from), is_retryable: None, retry_after: None }, work)
    }

    /// As [`transact`], for any error type.
    #[doc(hidden)]
    #[track_caller]
    pub fn transact_with<T, E, F>(caps: ErrorCaps<E>, work: F) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: Fn(&Transaction<'_>) -> Result<T, E> + Send + Sync + 'static,
    {
        let call = Call::here("ergon::sqlite::transact()");
        let work = Arc::new(work);
        async move {
            let (context, step) = (call.context.clone(), call.step);
            let limit = context.flow.env.payload_bytes_max;
            let work = move || {
                let (work, context) = (Arc::clone(&work), context.clone());
                Work::Sqlite(Box::new(move |tx| {
                    Within::new(context.clone()).run(|| written(work(tx), step, limit, caps))
                }))
            };
            call.settle(work, caps).await
        }
    }
}

/// Transactions in the database of a PostgreSQL log.
#[cfg(feature = "postgres")]
pub mod postgres {
    use ergon_storage::Within;
    #[doc(no_inline)]
    pub use ergon_storage::{PostgresTransaction as Transaction, tokio_postgres};
    use futures::{FutureExt, future::BoxFuture};

    use super::{Arc, Call, DeserializeOwned, Error, ErrorCaps, Future, Serialize, Work, written};

    /// Does some work of yours in the database of the PostgreSQL log, exactly once: the work and its outcome are
    /// committed in one transaction, with the isolation level *read committed*. A body that starts again after a crash
    /// gets that outcome, and the work is not done again. Work that returns an error, or panics, leaves no trace.
    ///
    /// To be called in a step, any number of times, always in the same order. A step that does nothing else is written
    /// shorter with `#[step(transaction)]`:
    ///
    /// ```no_run
    /// use ergon::{postgres, prelude::*};
    ///
    /// #[flow_type]
    /// struct Transfer { from: String, to: String, cents: i64 }
    ///
    /// #[flow_type]
    /// impl Transfer {
    ///     #[flow]
    ///     async fn run(&self) -> ergon::Result<i64> {
    ///         self.book().await
    ///     }
    ///
    ///     #[step(transaction)]
    ///     async fn book(&self, tx: &postgres::Transaction<'_>) -> ergon::Result<i64> {
    ///         let add = "UPDATE accounts SET cents = cents + $2 WHERE name = $1 RETURNING cents";
    ///         let left: i64 = tx.query_one(add, &[&self.from, &-self.cents]).await?.get(0);
    ///         if left < 0 {
    ///             return Err(ergon::Error::permanent("not enough money")); // and nothing has changed
    ///         }
    ///         tx.query_one(add, &[&self.to, &self.cents]).await?;
    ///         Ok(left)
    ///     }
    /// }
    /// ```
    ///
    /// A step that does other things, too, calls it:
    ///
    /// ```
    /// use ergon::{postgres, prelude::*};
    ///
    /// #[step]
    /// async fn tell(account: String, cents: i64) -> ergon::Result<u64> {
    ///     write_to(&account, cents).await?; // may happen again if the process dies
    ///     postgres::transact(move |tx| {
    ///         let account = account.clone();
    ///         Box::pin(async move {
    ///             let add = "UPDATE accounts SET letters = letters + 1 WHERE name = $1";
    ///             Ok(tx.execute(add, &[&account]).await?) // does not
    ///         })
    ///     })
    ///     .await
    /// }
    /// # async fn write_to(account: &str, cents: i64) -> ergon::Result<()> { Ok(()) }
    /// ```
    ///
    /// The work has a connection for itself; as many run at once as the log has connections
    /// ([`PostgresOptions::connections`](crate::PostgresOptions::connections)), beside those. A deadlock with other
    /// transactions is an error of the work, and the step is tried again by its policy. What the work must leave alone
    /// is said at [`Transaction`].
    ///
    /// A log of another kind refuses: a worker with a `#[step(transaction)]` does not start on it, and this function
    /// returns a permanent error.
    ///
    /// # Panics
    ///
    /// Outside a step.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future undoes the work, unless its commit is under way: that leaves it open.
    #[track_caller]
    pub fn transact<T, E, F>(work: F) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'t> Fn(&'t Transaction<'t>) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        transact_with(ErrorCaps { from_error: Some(E::from), is_retryable: None, retry_after: None }, move |tx, _| {
            work(tx)
        })
    }

    /// As [`transact`], for any error type and with work that borrows.
    #[doc(hidden)]
    #[track_caller]
    pub fn transact_with<'w, T, E, F>(caps: ErrorCaps<E>, work: F) -> impl Future<Output = Result<T, E>> + Send + 'w
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: for<'t> Fn(&'t Transaction<'t>, Within<'t, 'w>) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'w,
    {
        let call = Call::here("ergon::postgres::transact()");
        let work = Arc::new(work);
        async move {
            let (limit, step) = (call.context.flow.env.payload_bytes_max, call.step);
            let lent = || {
                let work = Arc::clone(&work);
                Work::Postgres(Box::new(move |tx, within| {
                    work(tx, within).map(move |done| written(done, step, limit, caps)).boxed()
                }))
            };
            call.settle(lent, caps).await
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("name", &self.name).finish_non_exhaustive()
    }
}
