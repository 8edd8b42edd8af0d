//! The limit that SQLite sets.
//!
//! One thread owns the connection and commits whatever waits in one transaction. The tables, the settings and the
//! statements of a flow's way from enqueueing to its end are those of `SqliteExecutionLog`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use ergon_bench_round::{Durability, Failure, Round};
use rusqlite::{Connection, Statement, params};
use tokio::sync::{mpsc, oneshot};

use super::{Write, now_us};

/// As many as the log takes.
const INBOX_MAX: usize = 8_192;
const BATCH_MAX: usize = 2_048;
/// The bits of a record's key that are its number within the flow.
const SEQ_BITS: u32 = 24;
const RESULT: i64 = (1 << SEQ_BITS) - 1;

const SCHEMA: &str = "
    CREATE TABLE flows (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        lane INTEGER NOT NULL,
        state INTEGER NOT NULL,
        due_us INTEGER,
        epoch INTEGER NOT NULL DEFAULT 0,
        commit_number INTEGER NOT NULL DEFAULT 0,
        commit_answer INTEGER NOT NULL DEFAULT 0,
        records INTEGER NOT NULL DEFAULT 0,
        deliveries INTEGER NOT NULL DEFAULT 0,
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
        reason TEXT,
        stalled_by TEXT,
        wake_us INTEGER,
        wake_channels TEXT
    ) STRICT;
    CREATE INDEX flows_due ON flows (lane, due_us) WHERE due_us IS NOT NULL;
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
    ) STRICT;";

/// The thread's inbox. The thread ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    inbox: mpsc::Sender<(Write, oneshot::Sender<()>)>,
    ended: Arc<Mutex<Option<oneshot::Receiver<()>>>>,
}

impl Writer {
    /// Makes the file and starts the thread.
    pub(super) fn start(round: &Round) -> Result<Self, Failure> {
        let conn = open(round)?;
        let (inbox, requests) = mpsc::channel(INBOX_MAX);
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name("raw-write".into()).spawn(move || {
            if let Err(error) = serve(&conn, requests) {
                eprintln!("the raw writer failed: {error}");
            }
            drop(conn);
            let _ = ended.send(());
        })?;
        Ok(Self { inbox, ended: Arc::new(Mutex::new(Some(end))) })
    }

    /// Writes this and waits until it is durable.
    pub(super) async fn write(&self, write: Write) -> Result<(), Failure> {
        let (reply, done) = oneshot::channel();
        self.inbox.send((write, reply)).await.map_err(|_| "the raw writer is gone")?;
        Ok(done.await?)
    }

    /// Lets the thread end, and waits until it has closed the file.
    pub(super) async fn close(self) -> Result<(), Failure> {
        let Self { inbox, ended } = self;
        drop(inbox);
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(ended.ok_or("it is closed already")?.await?)
    }
}

fn open(round: &Round) -> rusqlite::Result<Connection> {
    let conn = Connection::open(round.dir.join("raw.db"))?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", if round.case.durability == Durability::Full { "FULL" } else { "NORMAL" })?;
    conn.pragma_update(None, "cache_size", -(8 << 10))?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    conn.query_row("PRAGMA wal_autocheckpoint = 8000", [], |_| Ok(()))?;
    conn.execute_batch(SCHEMA)?;
    Ok(conn)
}

fn serve(conn: &Connection, mut requests: mpsc::Receiver<(Write, oneshot::Sender<()>)>) -> rusqlite::Result<()> {
    let mut begin = conn.prepare("BEGIN IMMEDIATE")?;
    let mut commit = conn.prepare("COMMIT")?;
    let mut statements = Statements::prepare(conn)?;
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while requests.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        begin.execute([])?;
        for (write, _) in &batch {
            statements.apply(*write)?;
        }
        commit.execute([])?;
        for (_, reply) in batch.drain(..) {
            let _ = reply.send(());
        }
    }
    Ok(())
}

struct Statements<'c> {
    insert_flow: Statement<'c>,
    insert_payload: Statement<'c>,
    lease: Statement<'c>,
    input: Statement<'c>,
    step: Statement<'c>,
    insert_record: Statement<'c>,
    end: Statement<'c>,
}

impl<'c> Statements<'c> {
    fn prepare(conn: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            insert_flow: conn.prepare(
                "INSERT INTO flows (key, id, lane, state, due_us, created_us, start_us) VALUES (?1, ?2, 1, 1, ?3, ?3, ?3)",
            )?,
            insert_payload: conn.prepare("INSERT INTO records (k, payload) VALUES (?1, ?2)")?,
            lease: conn.prepare(
                "UPDATE flows SET state = 2, due_us = ?2, epoch = 1, deliveries = 1, started_us = ?3, worker = ?4 \
                 WHERE key = ?1",
            )?,
            input: conn.prepare("SELECT payload FROM records WHERE k = ?1")?,
            step: conn.prepare(
                "UPDATE flows SET commit_number = ?2, records = ?2, deliveries = 0 WHERE key = ?1 AND epoch = 1 \
                 AND state = 2",
            )?,
            insert_record: conn.prepare(
                "INSERT INTO records (k, at_us, path, kind, phase, name, args_hash, attempt, started_us, payload) \
                 VALUES (?1, ?2, ?3, 1, 2, 'add', ?4, 1, ?2, ?5)",
            )?,
            end: conn.prepare(
                "UPDATE flows SET state = 4, due_us = NULL, commit_number = ?2, records = ?2, deliveries = 0, \
                 finished_us = ?3 WHERE key = ?1 AND epoch = 1 AND state = 2",
            )?,
        })
    }

    fn apply(&mut self, write: Write) -> rusqlite::Result<()> {
        let now = now_us();
        match write {
            Write::Enqueue { first, count } => {
                for flow in first..first + count {
                    // As long as a UUID, and as them in the order of time.
                    let id = format!("01900000-0000-7000-8000-{flow:012x}");
                    self.insert_flow.execute(params![flow, id, now])?;
                    self.insert_payload.execute(params![flow << SEQ_BITS, &br#"{"number":1234567}"#[..]])?;
                }
            }
            Write::Claim { flow } => {
                self.lease.execute(params![flow, now + 10_000_000, now, "12345-01900000000070008000000000000000"])?;
                self.input.query_row([flow << SEQ_BITS], |row| row.get_ref(0).map(drop))?;
            }
            Write::Step { flow, seq } => {
                self.step.execute([flow, seq])?;
                self.record(flow, seq, now)?;
            }
            Write::End { flow, seq } => {
                self.record(flow, seq, now)?;
                self.end.execute([flow, seq, now])?;
                self.insert_payload.execute(params![(flow << SEQ_BITS) | RESULT, &b"1234567"[..]])?;
            }
        }
        Ok(())
    }

    fn record(&mut self, flow: i64, seq: i64, now: i64) -> rusqlite::Result<()> {
        let path = seq.to_string();
        let hash = 0x1234_5678_9abc_def0_i64;
        self.insert_record.execute(params![(flow << SEQ_BITS) | seq, now, path, hash, &b"1234567"[..]])?;
        Ok(())
    }
}
