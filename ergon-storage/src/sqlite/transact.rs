//! The user's own work in the log's transactions.

use std::{
    any::Any,
    cell::Cell,
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
};

use bytes::Bytes;
use rusqlite::{
    Connection, OptionalExtension,
    hooks::{AuthAction, AuthContext, Authorization},
    params,
};

use super::{error::Outcome, run::Head, writer::Tx};
use crate::{Error, ErrorKind, FlowState, Lease};

/// The tables of the log, which only the log writes.
const TABLES: [&str; 11] = [
    "effects",
    "flow_labels",
    "flows",
    "items",
    "kept",
    "lanes",
    "message_keys",
    "messages",
    "meta",
    "places",
    "records",
];

thread_local! {
    /// True while the user's work has this thread's connection.
    static LENT: Cell<bool> = const { Cell::new(false) };
}

/// The open transaction of an SQLite log, lent to the user's own work: a [`rusqlite::Connection`] on the log's file.
///
/// The log begins and ends it. What would end it (`COMMIT`, `ROLLBACK`, savepoints), attach other files, set a pragma
/// or write the log's own tables (`effects`, `flow_labels`, `flows`, `items`, `kept`, `lanes`, `message_keys`,
/// `messages`, `meta`, `places` and `records`) is refused by SQLite as *not authorized*, and so are temporary tables and
/// the like, which would outlive the transaction and could stand before the log's. Those tables may be read.
#[derive(Debug)]
pub struct Transaction<'c> {
    conn: &'c Connection,
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn
    }
}

/// What became of the user's work.
pub(super) enum Transacted<T, E> {
    /// It is applied with the transaction.
    Applied(T),
    /// It has failed, and nothing of it is applied.
    Failed(E),
    /// It has panicked, and nothing of it is applied.
    Panicked(Box<dyn Any + Send>),
}

/// Keeps the user's work from what would break the log.
pub(super) fn guard(conn: &mut Connection) -> rusqlite::Result<()> {
    conn.authorizer(Some(|context: AuthContext<'_>| {
        if LENT.get() && is_forbidden(&context.action) { Authorization::Deny } else { Authorization::Allow }
    }))
}

fn is_forbidden(action: &AuthAction<'_>) -> bool {
    let is_ours = |table: &str| TABLES.iter().any(|ours| ours.eq_ignore_ascii_case(table));
    match action {
        AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::Pragma { pragma_value: Some(_), .. } => true,
        AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name }
        | AuthAction::DropTable { table_name }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::CreateIndex { table_name, .. }
        | AuthAction::DropIndex { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. } => is_ours(table_name),
        _ => false,
    }
}

/// Does the work in a savepoint: all of it, or nothing.
pub(super) fn transact<T, E>(
    tx: &mut Tx<'_, '_>,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Outcome<Transacted<T, E>> {
    tx.conn.execute_batch("SAVEPOINT lent")?;
    let done = lend(|| catch_unwind(AssertUnwindSafe(|| work(&Transaction { conn: tx.conn }))));
    let done = match done {
        Ok(Ok(value)) => Transacted::Applied(value),
        Ok(Err(error)) => Transacted::Failed(error),
        Err(panic) => Transacted::Panicked(panic),
    };
    if tx.conn.is_autocommit() {
        // A statement of the work has rolled everything back, what others wait for too: by its conflict clause, a
        // trigger, or because the disk is full. The writer sees it.
        return match done {
            Transacted::Applied(_) => {
                let message = "a statement of the work failed and rolled the transaction back, and the work went on as \
                    if it had not: return its error";
                Err(Error::new(ErrorKind::Invalid, message).into())
            }
            failed => Ok(failed),
        };
    }
    if !matches!(done, Transacted::Applied(_)) {
        tx.conn.execute_batch("ROLLBACK TO lent")?;
    }
    tx.conn.execute_batch("RELEASE lent")?;
    Ok(done)
}

/// Runs code that has the connection and is not ours.
fn lend<R>(code: impl FnOnce() -> R) -> R {
    LENT.set(true);
    let result = code();
    LENT.set(false);
    result
}

/// Does the work for a call of a flow, unless it is done.
pub(super) fn transact_once<E>(
    tx: &mut Tx<'_, '_>,
    lease: &Lease,
    call: &str,
    work: impl FnOnce(&Transaction<'_>) -> Result<Bytes, E>,
) -> Outcome<Transacted<Bytes, E>> {
    let key = lease.key.cast_signed();
    let head = Head::by_key(tx, key)?.filter(|head| *head.id() == lease.flow);
    let is_held =
        head.is_some_and(|head| head.epoch() == lease.epoch.cast_signed() && head.state() == FlowState::Running);
    if !is_held {
        return Err(Error::lease_lost(&lease.flow).into());
    }
    let sql = "SELECT outcome FROM effects WHERE flow = ?1 AND call = ?2";
    let known: Option<Vec<u8>> =
        tx.conn.prepare_cached(sql)?.query_row(params![key, call], |row| row.get(0)).optional()?;
    if let Some(outcome) = known {
        return Ok(Transacted::Applied(outcome.into()));
    }
    let done = transact(tx, work)?;
    if let Transacted::Applied(outcome) = &done {
        tx.limits.check_payload("the outcome of the transaction", outcome.len())?;
        let sql = "INSERT INTO effects (flow, call, outcome) VALUES (?1, ?2, ?3)";
        tx.conn.prepare_cached(sql)?.execute(params![key, call, &outcome[..]])?;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::schema;

    #[test]
    fn every_table_of_the_log_is_kept_from_the_work() {
        let conn = schema::open_in_memory().unwrap();
        let sql =
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1";
        let mut tables = conn.prepare(sql).unwrap();
        let tables = tables.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
        assert_eq!(tables.collect::<Vec<_>>(), TABLES);
    }
}
