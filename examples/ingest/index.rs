//! The index: an SQLite database with the files and a full-text table of their words.

use std::{fs, io, path::Path, thread, time::Duration};

use ergon::Error;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::{at, file::IndexFile, words::Words};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS file (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL UNIQUE,
        revision INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        state TEXT NOT NULL, -- indexed, skipped, unreadable, removed
        hash TEXT,
        reason TEXT,
        words INTEGER NOT NULL
    ) STRICT;
    CREATE VIRTUAL TABLE IF NOT EXISTS text USING fts5(words, content='', contentless_delete=1);
    CREATE VIRTUAL TABLE IF NOT EXISTS vocabulary USING fts5vocab('text', 'row');
";

/// What the index says about a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum State {
    Indexed {
        hash: String,
    },
    Skipped {
        reason: String,
    },
    /// It is looked at again by the next run.
    Unreadable {
        reason: String,
    },
}

/// A file for the index.
pub(crate) struct Document {
    pub(crate) file: IndexFile,
    pub(crate) state: State,
    pub(crate) words: Words,
}

type Job = (Document, oneshot::Sender<ergon::Result<()>>);

/// Writes into the index: one thread that commits in one transaction whatever waits.
pub(crate) struct IndexWriter {
    jobs: mpsc::Sender<Job>,
}

impl IndexWriter {
    pub(crate) fn start(path: &Path) -> ergon::Result<Self> {
        const GROUP_MAX: usize = 256;
        let mut connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        prepare(&mut connection).map_err(|error| at(path, &error))?;
        let (jobs, mut waiting) = mpsc::channel::<Job>(GROUP_MAX);
        thread::Builder::new().name("index".into()).spawn(move || {
            let mut group = Vec::new();
            while waiting.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
                let written = write(&mut connection, &group).map_err(|error| Error::new(format!("index: {error}")));
                for (_, done) in group.drain(..) {
                    // Whoever does not listen any more is asked again.
                    let _ = done.send(written.clone());
                }
            }
        })?;
        Ok(Self { jobs })
    }

    /// Returns when the file is in the index for good.
    pub(crate) async fn put(&self, document: Document) -> ergon::Result<()> {
        let (done, written) = oneshot::channel();
        let gone = "the index is not being written any more";
        self.jobs.send((document, done)).await.map_err(|_| Error::new(gone))?;
        written.await.map_err(|_| Error::new(gone))?
    }
}

fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    // SQLite has nobody wait for who else sets the mode of a new file.
    let mut tries = 0..1_000;
    while let Err(error) = connection.pragma_update(None, "journal_mode", "wal") {
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || tries.next().is_none() {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.commit()
}

fn write(connection: &mut Connection, group: &[Job]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (document, _) in group {
        put(&transaction, document)?;
    }
    transaction.commit()
}

fn put(transaction: &Transaction<'_>, document: &Document) -> rusqlite::Result<()> {
    let Document { file, state, words } = document;
    let (name, hash, reason) = match state {
        State::Indexed { hash } => ("indexed", Some(hash), None),
        State::Skipped { reason } => ("skipped", None, Some(reason)),
        State::Unreadable { reason } => ("unreadable", None, Some(reason)),
    };
    let total: u64 = words.values().map(|count| u64::from(*count)).sum();
    let id: Option<i64> = transaction
        .prepare_cached(
            "INSERT INTO file (path, revision, modified, bytes, state, hash, reason, words)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (path) DO UPDATE SET revision = ?2, modified = ?3, bytes = ?4, state = ?5, hash = ?6,
                 reason = ?7, words = ?8
             WHERE (?2, ?3) >= (revision, modified) -- what is newer stays
             RETURNING id",
        )?
        .query_row(
            params![
                file.path,
                file.revision,
                file.modified,
                file.bytes.cast_signed(),
                name,
                hash,
                reason,
                total.cast_signed()
            ],
            |row| row.get(0),
        )
        .optional()?;
    let Some(id) = id else { return Ok(()) };
    transaction.prepare_cached("DELETE FROM text WHERE rowid = ?1")?.execute([id])?;
    if !words.is_empty() {
        let mut text = String::new();
        for (word, count) in words {
            for _ in 0..*count {
                text.push_str(word);
                text.push(' ');
            }
        }
        transaction.prepare_cached("INSERT INTO text (rowid, words) VALUES (?1, ?2)")?.execute(params![id, text])?;
    }
    Ok(())
}

/// Reads the index.
pub(crate) struct Index {
    connection: Connection,
}

/// What the index knows about a path.
pub(crate) struct Known {
    /// False when it is to be looked at again though it did not change.
    pub(crate) settled: bool,
    pub(crate) revision: u32,
    pub(crate) modified: i64,
    pub(crate) bytes: u64,
}

/// Files of one state.
pub(crate) struct Group {
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) files: u64,
    pub(crate) words: u64,
}

impl Index {
    pub(crate) fn open(path: &Path) -> ergon::Result<Self> {
        Ok(Self { connection: connect(path, OpenFlags::empty())? })
    }

    /// The index beside a log that must be there.
    pub(crate) fn open_existing(db: &Path, path: &Path) -> ergon::Result<Self> {
        for file in [db, path] {
            if !file.is_file() {
                return Err(at(
                    file,
                    &format!("there is no such file; make it with index FOLDER --db {}", db.display()),
                ));
            }
        }
        Self::open(path)
    }

    pub(crate) fn known(&self, path: &str) -> ergon::Result<Option<Known>> {
        let sql = "SELECT state IN ('indexed', 'skipped'), revision, modified, bytes FROM file WHERE path = ?1";
        let known = self.connection.prepare_cached(sql)?.query_row([path], |row| {
            Ok(Known {
                settled: row.get(0)?,
                revision: row.get(1)?,
                modified: row.get(2)?,
                bytes: row.get::<_, i64>(3)?.cast_unsigned(),
            })
        });
        Ok(known.optional()?)
    }

    /// The files that hold all of the terms, the best first, and how many there are in all.
    pub(crate) fn search(&self, terms: &[String], limit: usize) -> ergon::Result<(Vec<String>, u64)> {
        let query = terms.iter().map(|term| format!("\"{term}\"")).collect::<Vec<_>>().join(" AND ");
        let sql = "SELECT path FROM text JOIN file ON file.id = text.rowid WHERE text MATCH ?1
                   ORDER BY bm25(text), path LIMIT ?2";
        let mut statement = self.connection.prepare(sql)?;
        let hits = statement.query_map(params![query, i64::try_from(limit)?], |row| row.get(0))?;
        let hits = hits.collect::<rusqlite::Result<_>>()?;
        let sql = "SELECT count(*) FROM text WHERE text MATCH ?1";
        let total: i64 = self.connection.query_row(sql, [query], |row| row.get(0))?;
        Ok((hits, total.cast_unsigned()))
    }

    /// How many files there are, with how many words, by state and reason.
    pub(crate) fn summary(&self) -> ergon::Result<Vec<Group>> {
        let sql = "SELECT state, reason, count(*), sum(words) FROM file WHERE state <> 'removed'
                   GROUP BY state, reason ORDER BY state, count(*) DESC, reason";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            let count = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            Ok(Group { state: row.get(0)?, reason: row.get(1)?, files: count(2)?, words: count(3)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Takes the files out that are no longer in the folder, and says how many.
    pub(crate) fn forget_missing(&self, folder: &Path) -> ergon::Result<u64> {
        let sql = "SELECT id, path FROM file WHERE state <> 'removed' AND path > ?1 || '/' AND path < ?1 || '0'";
        let missing: Vec<i64> = {
            let mut statement = self.connection.prepare(sql)?;
            let mut rows = statement.query([folder.to_string_lossy()])?;
            let mut missing = Vec::new();
            while let Some(row) = rows.next()? {
                let path: String = row.get(1)?;
                let kind = fs::symlink_metadata(path);
                let gone = match kind {
                    Ok(now) => !now.is_file(),
                    Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
                };
                if gone {
                    missing.push(row.get(0)?);
                }
            }
            missing
        };
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        for id in &missing {
            // The row stays, so that the file is a new revision when it comes back.
            transaction.execute(
                "UPDATE file SET state = 'removed', revision = revision + 1, hash = NULL, reason = NULL, words = 0
                 WHERE id = ?1",
                [id],
            )?;
            transaction.execute("DELETE FROM text WHERE rowid = ?1", [id])?;
        }
        transaction.commit()?;
        Ok(missing.len() as u64)
    }

    /// A digest of all that can be found in the index, whatever the order in which it was written.
    pub(crate) fn digest(&self) -> ergon::Result<String> {
        let mut digest = Sha256::new();
        for sql in [
            "SELECT path, state, ifnull(hash, reason), words FROM file WHERE state <> 'removed' ORDER BY path",
            "SELECT term, '', doc, cnt FROM vocabulary ORDER BY term",
        ] {
            let mut statement = self.connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let [a, b]: [String; 2] = [row.get(0)?, row.get(1)?];
                let c: rusqlite::types::Value = row.get(2)?;
                let d: i64 = row.get(3)?;
                digest.update(format!("{a}\0{b}\0{c:?}\0{d}\n"));
            }
        }
        Ok(format!("{:x}", digest.finalize()))
    }
}

fn connect(path: &Path, flags: OpenFlags) -> ergon::Result<Connection> {
    let open = || {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | flags)?;
        connection.busy_timeout(Duration::from_secs(10))?; // another process may be at work on it
        Ok(connection)
    };
    open().map_err(|error: rusqlite::Error| at(path, &error))
}
