//! The user's own work in the log's transactions; for a log that lends none, that it says so.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Harness,
    scene::{LEASE, SECOND, Scene, again, complete, id, refused, steps, text},
};
use crate::{ErrorKind, ExecutionLog, FlowState, Lease, Reset, Result, Work};

/// A table of the user's, which no other law has, also where the stores of all laws share a database.
struct Table(String);

impl Table {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self(format!("work_{}_{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// Work that adds a row to the table, which it makes when there is none, and answers how many there are then. It may
    /// fail thereafter. `None` for a log that lends no transactions, or none that this build knows of.
    #[allow(unused_variables)] // where no database is built in
    fn work(&self, log: &dyn ExecutionLog, fails: bool) -> Option<Work<'static>> {
        let table = &self.0;
        match log.database()? {
            #[cfg(feature = "sqlite")]
            crate::Database::Sqlite => {
                let [make, add, count] = statements(table);
                Some(Work::Sqlite(Box::new(move |tx| {
                    tx.execute_batch(&make).map_err(failure)?;
                    tx.execute(&add, []).map_err(failure)?;
                    let rows: i64 = tx.query_row(&count, [], |row| row.get(0)).map_err(failure)?;
                    outcome(rows, fails)
                })))
            }
            #[cfg(feature = "postgres")]
            crate::Database::Postgres => {
                let statements = statements(table);
                Some(Work::Postgres(Box::new(move |tx, _| {
                    let [make, add, count] = statements.clone();
                    Box::pin(async move {
                        tx.batch_execute(&make).await.map_err(failure)?;
                        tx.execute(&add, &[]).await.map_err(failure)?;
                        let rows: i64 = tx.query_one(&count, &[]).await.map_err(failure)?.get(0);
                        outcome(rows, fails)
                    })
                })))
            }
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// Does the work as a call, and says what it came to; `None` where there are no transactions.
    async fn rows(&self, log: &dyn ExecutionLog, lease: &Lease, call: &str) -> Option<Result<String>> {
        let done = log.transact(lease, call, self.work(log, false)?).await;
        Some(done.map(|done| text(&done.unwrap_or_else(|_| panic!("the work has failed")))))
    }
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn statements(table: &str) -> [String; 3] {
    [
        format!("CREATE TABLE IF NOT EXISTS {table} (number INTEGER)"),
        format!("INSERT INTO {table} VALUES (1)"),
        format!("SELECT count(*) FROM {table}"),
    ]
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn failure<E: std::any::Any + Send>(error: E) -> Box<dyn std::any::Any + Send> {
    Box::new(error)
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn outcome(rows: i64, fails: bool) -> crate::WorkResult {
    if fails { Err(Box::new("no")) } else { Ok(bytes::Bytes::from(rows.to_string())) }
}

/// A log without transactions says so, and one that has some refuses work for another database.
pub async fn work_for_another_database_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let others: [Option<Work<'_>>; 2] = [
        #[cfg(feature = "sqlite")]
        Some(Work::Sqlite(Box::new(|_| panic!("nobody does it")))),
        #[cfg(not(feature = "sqlite"))]
        None,
        #[cfg(feature = "postgres")]
        Some(Work::Postgres(Box::new(|_, _| panic!("nobody does it")))),
        #[cfg(not(feature = "postgres"))]
        None,
    ];
    for work in others.into_iter().flatten().filter(|work| work.database() != log.database()) {
        refused(ErrorKind::Unsupported, log.transact(&lease, "call", work).await.map(drop));
    }
}

/// The outcome of a call is kept with what its work has written, and the work is not done again, by whoever has the flow.
pub async fn work_is_done_once_for_a_call(harness: &impl Harness) {
    let (log, table) = (Scene::new(harness).await, Table::new());
    let lease = log.start("a").await;
    let Some(rows) = table.rows(&**log, &lease, "first").await else { return };
    assert_eq!(rows.unwrap(), "1");
    assert_eq!(table.rows(&**log, &lease, "first").await.unwrap().unwrap(), "1");
    assert_eq!(table.rows(&**log, &lease, "second").await.unwrap().unwrap(), "2");
    // Another flow's call of the same name is another call.
    let other = log.start("b").await;
    assert_eq!(table.rows(&**log, &other, "first").await.unwrap().unwrap(), "3");
    log.advance(LEASE + SECOND).await;
    let later = log.take_flow("a").await.lease;
    assert_eq!(table.rows(&**log, &later, "first").await.unwrap().unwrap(), "1");
    assert_eq!(table.rows(&**log, &later, "third").await.unwrap().unwrap(), "4");
}

/// Work that fails leaves nothing behind, and is done anew the next time.
pub async fn work_that_fails_leaves_no_trace(harness: &impl Harness) {
    let (log, table) = (Scene::new(harness).await, Table::new());
    let lease = log.start("a").await;
    for _ in 0..2 {
        let Some(work) = table.work(&**log, true) else { return };
        let error = log.transact(&lease, "call", work).await.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref::<&str>(), Some(&"no"), "the work's own error");
    }
    assert_eq!(table.rows(&**log, &lease, "call").await.unwrap().unwrap(), "1");
}

/// Who has lost the flow does no work for it, nor learns what became of any.
pub async fn work_needs_the_lease(harness: &impl Harness) {
    let (log, table) = (Scene::new(harness).await, Table::new());
    let lease = log.start("a").await;
    let Some(rows) = table.rows(&**log, &lease, "first").await else { return };
    assert_eq!(rows.unwrap(), "1");
    log.advance(LEASE + SECOND).await;
    let later = log.take_flow("a").await.lease;
    for call in ["first", "second"] {
        refused(ErrorKind::LeaseLost, table.rows(&**log, &lease, call).await.unwrap());
    }
    log.cancel(&id("a"), "enough").await.unwrap();
    for call in ["first", "second"] {
        refused(ErrorKind::LeaseLost, table.rows(&**log, &later, call).await.unwrap());
    }
    let other = log.start("b").await;
    assert_eq!(table.rows(&**log, &other, "call").await.unwrap().unwrap(), "2", "only two were ever done");
}

/// The outcomes go with their flow: one of the same id that comes later does its own work.
pub async fn outcomes_of_work_go_with_their_flow(harness: &impl Harness) {
    let (log, table) = (Scene::new(harness).await, Table::new());
    let lease = log.start("a").await;
    let Some(rows) = table.rows(&**log, &lease, "call").await else { return };
    assert_eq!(rows.unwrap(), "1");
    log.cancel(&id("a"), "enough").await.unwrap();
    assert_eq!(log.state("a").await, FlowState::Cancelled);
    assert!(log.delete(&id("a")).await.unwrap());
    let anew = log.start("a").await;
    assert_eq!(table.rows(&**log, &anew, "call").await.unwrap().unwrap(), "2");
}

/// A flow that begins again does the work of its calls again: none is answered with what it came to in a former run.
pub async fn work_of_a_former_run_is_done_anew(harness: &impl Harness) {
    let (log, table) = (Scene::new(harness).await, Table::new());
    let mut lease = log.start("a").await;
    for (run, count) in [(1, "1"), (2, "2"), (3, "3")] {
        assert_eq!(log.info("a").await.run, run);
        for _ in 0..2 {
            let Some(rows) = table.rows(&**log, &lease, "call").await else { return };
            assert_eq!(rows.unwrap(), count, "once in run {run}");
        }
        log.go(&lease, 1, again("next")).await;
        refused(ErrorKind::LeaseLost, table.rows(&**log, &lease, "call").await.unwrap());
        lease = log.take_flow("a").await.lease;
    }
}

/// A flow that is taken back, while it runs or after its end, is answered with what its work came to, also that of calls
/// whose records are gone.
pub async fn work_outlasts_a_reset(harness: &impl Harness) {
    let (log, table) = (Scene::new(harness).await, Table::new());
    let mut lease = log.start("a").await;
    for (round, ends) in [(1, false), (2, true), (3, true)] {
        for (call, count) in [("first", "1"), ("second", "2")] {
            let Some(rows) = table.rows(&**log, &lease, call).await else { return };
            assert_eq!(rows.unwrap(), count, "{call} in round {round}");
        }
        log.commit(steps(&lease, 1, 0, 2)).await.unwrap();
        if ends {
            log.go(&lease, 2, complete()).await;
        }
        log.reset(Reset { keep: 0, ..Reset::new(&log.info("a").await) }).await.unwrap();
        lease = log.take_flow("a").await.lease;
    }
    assert_eq!(table.rows(&**log, &lease, "third").await.unwrap().unwrap(), "3", "only two were ever done");
}
