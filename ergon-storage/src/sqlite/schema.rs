//! Opening a file: whose it is, which version it has, and the way to the present one.

use std::{
    cell::Cell,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::{
    error::from_sqlite,
    options::{Create, Durability},
    transact,
};
use crate::{Error, ErrorKind, Result};

/// Marks a file as ours, in SQLite's header: "Ergn".
const APPLICATION_ID: i32 = 0x4572_676e;

/// One entry per version of the schema: what leads to it from the one before. Never change one that was released.
const MIGRATIONS: &[&str] = &[
    // 1. The flows are the small, hot rows; what is large or written once lies elsewhere, under keys that rise in
    // the order of time. `k` is the flow's key << 24 | a number within the flow.
    "CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    -- The greatest key of a flow that was deleted: keys are never used again.
    INSERT INTO meta VALUES ('key_floor', 0);

    CREATE TABLE lanes (
        lane INTEGER PRIMARY KEY,
        queue TEXT NOT NULL,
        flow_type TEXT NOT NULL,
        version INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        UNIQUE (queue, flow_type, version, priority)
    ) STRICT;

    CREATE TABLE flows (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        lane INTEGER NOT NULL,
        state INTEGER NOT NULL,
        -- When it may be claimed: the start, the wake-up or deadline, the end of the lease; null for never.
        due_us INTEGER,
        epoch INTEGER NOT NULL DEFAULT 0,
        -- The last commit under the epoch's lease, and what was answered.
        commit_number INTEGER NOT NULL DEFAULT 0,
        commit_answer INTEGER NOT NULL DEFAULT 0,
        records INTEGER NOT NULL DEFAULT 0,
        deliveries INTEGER NOT NULL DEFAULT 0,
        -- The number of the latest message.
        messages INTEGER NOT NULL DEFAULT 0,
        deadline_us INTEGER,
        parent_id TEXT,
        parent_path TEXT,
        detached INTEGER NOT NULL DEFAULT 0,
        created_us INTEGER NOT NULL,
        start_us INTEGER NOT NULL,
        started_us INTEGER,
        finished_us INTEGER,
        worker TEXT,
        -- The log that has claimed it, as in the name of its lock file; null while not running, or when that is
        -- not known.
        owner INTEGER,
        reason TEXT,
        -- The build that could not go on; null unless stalled by one.
        stalled_by TEXT,
        wake_us INTEGER,
        wake_channels TEXT
    ) STRICT;
    -- One range per lane; flows that are not due yet lie behind the ones that are.
    CREATE INDEX flows_due ON flows (lane, due_us) WHERE due_us IS NOT NULL;
    CREATE INDEX flows_parent ON flows (parent_id) WHERE parent_id IS NOT NULL;
    CREATE INDEX flows_finished ON flows (finished_us) WHERE finished_us IS NOT NULL;
    CREATE INDEX flows_stalled ON flows (lane) WHERE state = 7;
    CREATE INDEX flows_owner ON flows (owner) WHERE owner IS NOT NULL;

    -- Number 0 is the input of the flow's present run, the last number its result.
    CREATE TABLE records (
        k INTEGER PRIMARY KEY,
        at_us INTEGER NOT NULL DEFAULT 0,
        path TEXT NOT NULL DEFAULT '',
        kind INTEGER NOT NULL DEFAULT 0,
        phase INTEGER NOT NULL DEFAULT 0,
        name TEXT NOT NULL DEFAULT '',
        args_hash INTEGER NOT NULL DEFAULT 0,
        attempt INTEGER NOT NULL DEFAULT 0,
        started_us INTEGER NOT NULL DEFAULT 0,
        due_us INTEGER,
        reference TEXT,
        payload BLOB NOT NULL
    ) STRICT;

    CREATE TABLE messages (
        k INTEGER PRIMARY KEY,
        channel TEXT NOT NULL,
        at_us INTEGER NOT NULL,
        outcome INTEGER,
        reference TEXT,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE INDEX messages_channel ON messages (channel, k);

    CREATE TABLE message_keys (
        flow INTEGER NOT NULL,
        key TEXT NOT NULL,
        PRIMARY KEY (flow, key)
    ) STRICT, WITHOUT ROWID;",
    // 2.
    "-- The paths of the calls that a retry makes again, with spaces between; null unless failed.
    ALTER TABLE flows ADD COLUMN again TEXT;
    -- The number of the present run, and the greatest key that there was when it began: its children have greater ones.
    ALTER TABLE flows ADD COLUMN run INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE flows ADD COLUMN run_key INTEGER NOT NULL DEFAULT 0;
    -- How many items the flow's own code has emitted in its present run.
    ALTER TABLE flows ADD COLUMN emitted INTEGER NOT NULL DEFAULT 0;
    -- Whether it has something to clean up when it is cancelled: 0 nothing, 1 something, 2 it was cancelled.
    ALTER TABLE flows ADD COLUMN cleanup INTEGER NOT NULL DEFAULT 0;

    -- What flows tell of themselves.
    CREATE TABLE items (
        flow INTEGER NOT NULL,
        feed TEXT NOT NULL,
        seq INTEGER NOT NULL,
        at_us INTEGER NOT NULL,
        run INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        -- The step whose body emitted it; null for the flow's own code.
        path TEXT,
        attempt INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (flow, feed, seq)
    ) STRICT, WITHOUT ROWID;

    -- As lines of name=value; null when there are none. Again in a table of their own, to look flows up by: it is
    -- touched by flows alone that have labels.
    ALTER TABLE flows ADD COLUMN labels TEXT;
    CREATE TABLE flow_labels (
        flow INTEGER NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (flow, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX flow_labels_value ON flow_labels (name, value, flow);

    -- What the user's own transactions have resulted in, by the call that made them.
    CREATE TABLE effects (
        flow INTEGER NOT NULL,
        call TEXT NOT NULL,
        outcome BLOB NOT NULL,
        PRIMARY KEY (flow, call)
    ) STRICT, WITHOUT ROWID;

    -- The flows that are due and are kept for the workers that they are bound to: since when they are due, and what they
    -- are filed under meanwhile. When the workers were heard of.
    CREATE TABLE kept (
        flow INTEGER PRIMARY KEY,
        worker TEXT NOT NULL,
        lane INTEGER NOT NULL,
        due_us INTEGER NOT NULL,
        until_us INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX kept_worker ON kept (worker, due_us, flow);
    CREATE TABLE places (
        worker TEXT PRIMARY KEY,
        heard_us INTEGER NOT NULL,
        -- The queues, types and versions that it asks for, on a line each, and since when it asks for no more; null while that
        -- is not known.
        asks_for TEXT,
        since_us INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- By their types, so that those that are to be forgotten are found without the others.
    DROP INDEX flows_finished;
    CREATE INDEX flows_finished ON flows (lane, finished_us) WHERE finished_us IS NOT NULL;",
];

/// The version that this program reads and writes.
pub(super) fn version() -> i32 {
    i32::try_from(MIGRATIONS.len()).expect("there are few migrations")
}

/// How many KiB of pages a connection keeps. More is slower: SQLite walks its cache at every commit.
const CACHE_KIB: i64 = 8 << 10;
/// After how many pages the write-ahead log is copied into the file.
const CHECKPOINT_PAGES: i64 = 8_000;
/// The pause before a lock that another process holds is asked for again.
const BUSY_RETRY: Duration = Duration::from_micros(300);
/// The pause before the file's mode is asked for again, where SQLite does not wait by itself.
const MODE_RETRY: Duration = Duration::from_millis(5);

/// Opens the writing connection of a file and brings its schema to the present version.
pub(super) fn open_writer(path: &Path, create: Create, busy: Duration, durability: Durability) -> Result<Connection> {
    check_path(path, create)?;
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create == Create::IfMissing {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let failed = |error| about_file(path, error);
    let mut conn = Connection::open_with_flags(path, flags).map_err(failed)?;
    conn.busy_timeout(busy).map_err(failed)?;
    // Before anything is changed: a file of someone else stays as it is.
    let transaction = conn.unchecked_transaction().map_err(failed)?;
    check_owner(&transaction, path)?;
    transaction.finish().map_err(failed)?;
    if conn.is_readonly(rusqlite::MAIN_DB).map_err(failed)? {
        return Err(invalid(path, "may only be read, an execution log must be written"));
    }
    write_ahead(&conn, busy).map_err(failed)?;
    wait_often(&mut conn, busy).map_err(failed)?;
    configure(&conn, durability).map_err(failed)?;
    transact::guard(&mut conn).map_err(failed)?;
    migrate(&mut conn, path)?;
    Ok(conn)
}

/// Opens the only connection of a log in memory.
pub(super) fn open_in_memory() -> Result<Connection> {
    let failed = |error| from_sqlite("a log in memory could not be opened", error);
    let mut conn = Connection::open_in_memory().map_err(failed)?;
    configure(&conn, Durability::Normal).map_err(failed)?;
    transact::guard(&mut conn).map_err(failed)?;
    migrate(&mut conn, Path::new(":memory:"))?;
    Ok(conn)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(busy)?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(conn)
}

fn configure(conn: &Connection, durability: Durability) -> rusqlite::Result<()> {
    conn.pragma_update(
        None,
        "synchronous",
        match durability {
            Durability::Full => "FULL",
            Durability::Normal => "NORMAL",
        },
    )?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    conn.pragma_update(None, "foreign_keys", "OFF")?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.query_row(&format!("PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"), [], |_| Ok(()))?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Refuses a path that cannot be a log, with words that SQLite does not have.
fn check_path(path: &Path, create: Create) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "an execution log needs the path of its file, this one is empty"));
    }
    if path.is_dir() {
        return Err(invalid(path, "is a directory, an execution log is a file"));
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
        && !directory.is_dir()
    {
        let what = if directory.exists() { "is not a directory" } else { "does not exist" };
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("the directory {} of the execution log {} {what}", directory.display(), path.display()),
        ));
    }
    if create == Create::Never && !path.exists() {
        return Err(invalid(path, "does not exist, and the options say not to create it"));
    }
    // Root may write everything, so this is asked of the mode and not left to SQLite.
    if path.metadata().is_ok_and(|metadata| metadata.permissions().readonly()) {
        return Err(invalid(path, "may only be read, an execution log must be written"));
    }
    Ok(())
}

fn invalid(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{} {what}", path.display()))
}

fn about_file(path: &Path, error: rusqlite::Error) -> Error {
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            Error::new(ErrorKind::Corrupt, format!("{path} is not an SQLite database")).with_source(error)
        }
        _ => from_sqlite(format!("the execution log {path} could not be opened"), error),
    }
}

/// Whose file this is: nobody's yet, or ours in a version that this program knows. To be asked in a transaction,
/// for the answer is put together from several.
fn check_owner(conn: &Connection, path: &Path) -> Result<i32> {
    let read = || -> rusqlite::Result<(i32, i32, i64)> {
        let header = |pragma| conn.pragma_query_value(None, pragma, |row| row.get(0));
        let tables = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((header("application_id")?, header("user_version")?, tables))
    };
    let (owner, found, tables) = read().map_err(|error| about_file(path, error))?;
    let (path, known) = (path.display(), version());
    match (owner, found) {
        (0, 0) if tables == 0 => Ok(0),
        (APPLICATION_ID, 1..) if found <= known => Ok(found),
        (APPLICATION_ID, _) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the execution log {path} has schema version {found}, this program knows versions 1 to {known}; \
                 use a newer build of this program, or another file"
            ),
        )),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{path} is the SQLite database of another program; give the execution log a file of its own"),
        )),
    }
}

/// Sets the file's mode. Two processes that do so at once are told apart by SQLite without waiting.
fn write_ahead(conn: &Connection, busy: Duration) -> rusqlite::Result<()> {
    let until = Instant::now() + busy;
    loop {
        match conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < until => {
                thread::sleep(MODE_RETRY);
            }
            other => return other.map(drop),
        }
    }
}

thread_local! {
    /// How long the writing connection of this thread waits for the lock.
    static BUSY_TIMEOUT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Has the connection ask for the lock at short, even intervals. SQLite's own growing ones, up to 100 ms, make a
/// process all but miss the short gaps that a busy one leaves.
fn wait_often(conn: &mut Connection, busy: Duration) -> rusqlite::Result<()> {
    BUSY_TIMEOUT.set(busy);
    conn.busy_handler(Some(|times| {
        let waited = BUSY_RETRY * u32::try_from(times).unwrap_or(u32::MAX);
        let goes_on = waited < BUSY_TIMEOUT.get();
        if goes_on {
            thread::sleep(BUSY_RETRY);
        }
        goes_on
    }))
}

/// Goes from the file's version to the present one, in one transaction.
fn migrate(conn: &mut Connection, path: &Path) -> Result<()> {
    let failed = |error| about_file(path, error);
    let transaction = Transaction::new(conn, TransactionBehavior::Immediate).map_err(failed)?;
    // Looked at again under the lock: another process may have been here meanwhile.
    let found = usize::try_from(check_owner(&transaction, path)?).unwrap_or(0);
    for migration in &MIGRATIONS[found..] {
        transaction.execute_batch(migration).map_err(failed)?;
    }
    if found < MIGRATIONS.len() {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", version()).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::statements::{CHANNEL_MESSAGES, DUE, FREE, NEXT_DUE, OWNER_AFTER};

    fn plan(sql: &str, parameters: usize) -> String {
        let conn = open_in_memory().unwrap();
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let values = vec![1_i64; parameters];
        let rows = statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
        rows.collect::<rusqlite::Result<Vec<_>>>().unwrap().join("; ")
    }

    #[test]
    fn a_file_of_an_earlier_version_is_brought_up() {
        let folder = tempfile::tempdir().unwrap();
        for (known, _) in MIGRATIONS.iter().enumerate().skip(1) {
            let path = folder.path().join(format!("version-{known}.db"));
            let conn = Connection::open(&path).unwrap();
            for migration in &MIGRATIONS[..known] {
                conn.execute_batch(migration).unwrap();
            }
            conn.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
            conn.pragma_update(None, "user_version", i32::try_from(known).unwrap()).unwrap();
            drop(conn);
            let conn = open_writer(&path, Create::Never, Duration::from_secs(1), Durability::Normal).unwrap();
            let tables = |conn: &Connection| {
                let sql = "SELECT name || ': ' || group_concat(columns) FROM (SELECT t.name, c.name AS columns FROM \
                    sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table' ORDER BY t.name, c.name) \
                    GROUP BY name";
                let mut statement = conn.prepare(sql).unwrap();
                let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
                rows.collect::<rusqlite::Result<Vec<_>>>().unwrap()
            };
            assert_eq!(tables(&conn), tables(&open_in_memory().unwrap()));
            super::super::statements::Statements::prepare(&conn).unwrap();
        }
    }

    #[test]
    fn a_claim_reads_its_range_of_the_index_and_nothing_else() {
        assert_eq!(plan(DUE, 5), "SEARCH flows USING COVERING INDEX flows_due (lane=? AND due_us>? AND due_us<?)");
        assert_eq!(plan(NEXT_DUE, 1), "SEARCH flows USING COVERING INDEX flows_due (lane=? AND due_us>?)");
    }

    #[test]
    fn owners_are_found_without_the_flows_of_others() {
        let owner_after = plan(OWNER_AFTER, 1);
        assert_eq!(owner_after, "SEARCH flows USING COVERING INDEX flows_owner (owner>?)");
        assert_eq!(plan(FREE, 2), "SEARCH flows USING COVERING INDEX flows_owner (owner=?)");
    }

    #[test]
    fn a_channel_is_read_without_the_others() {
        let plan = plan(CHANNEL_MESSAGES, 4);
        assert_eq!(plan, "SEARCH messages USING INDEX messages_channel (channel=? AND k>? AND k<?)");
    }
}
