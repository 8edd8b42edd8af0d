//! Every statement of the hot paths, prepared once and held for the life of the writing connection.

use rusqlite::{Connection, PrepFlags, Statement};

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident: $sql:expr;)*) => {
        /// The prepared statements of the writer.
        pub(super) struct Statements<'c> {
            $($(#[$doc])* pub(super) $name: Statement<'c>,)*
        }

        impl<'c> Statements<'c> {
            pub(super) fn prepare(conn: &'c Connection) -> rusqlite::Result<Self> {
                // SQLite keeps what lives for long out of the memory that it hands out fastest.
                let prepare = |sql| conn.prepare_with_flags(sql, PrepFlags::SQLITE_PREPARE_PERSISTENT);
                Ok(Self { $($name: prepare($sql)?,)* })
            }
        }
    };
}

/// [`ACCEPTED`](super::row::ACCEPTED), for a statement.
macro_rules! accepted {
    () => {
        16_777_214
    };
}
const _: () = assert!(super::row::ACCEPTED == accepted!());

/// The columns of a flow that [`row::flow`](super::row::flow) reads, in its order.
macro_rules! flow_columns {
    () => {
        "key, id, lane, state, due_us, epoch, records, deliveries, messages, deadline_us, parent_id, parent_path, \
         detached, created_us, start_us, started_us, finished_us, worker, reason, wake_us, wake_channels, \
         run, labels, emitted, cleanup"
    };
}

/// The columns of a record that [`row::record`](super::row::record) reads, in its order.
macro_rules! record_columns {
    () => {
        "k, at_us, path, kind, phase, name, args_hash, attempt, started_us, due_us, reference, payload"
    };
}

/// The columns of a message that [`row::message`](super::row::message) reads, in its order.
macro_rules! message_columns {
    () => {
        "k, channel, at_us, outcome, reference, payload"
    };
}

/// The first flows of a lane that are due, after one that was seen; also what the tests look at the plan of.
pub(super) const DUE: &str = "SELECT due_us, key FROM flows WHERE lane = ?1 AND due_us IS NOT NULL \
    AND due_us <= ?2 AND (due_us, key) > (?3, ?4) ORDER BY due_us, key LIMIT ?5";

/// When the first flow of a lane is due.
pub(super) const NEXT_DUE: &str =
    "SELECT due_us FROM flows WHERE lane = ?1 AND due_us IS NOT NULL ORDER BY due_us LIMIT 1";

/// The next of the logs that have running flows; null after the last.
pub(super) const OWNER_AFTER: &str = "SELECT min(owner) FROM flows WHERE owner > ?1";
/// Ends the leases of a log.
pub(super) const FREE: &str = "UPDATE flows SET due_us = min(due_us, ?2), owner = NULL WHERE owner = ?1 RETURNING id";

pub(super) const FLOW_BY_ID: &str = concat!("SELECT ", flow_columns!(), " FROM flows WHERE id = ?1");
/// What a list reads of each flow.
pub(super) const FLOW_COLUMNS: &str = concat!("SELECT ", flow_columns!());
pub(super) const KEY_BY_ID: &str = "SELECT key FROM flows WHERE id = ?1";
pub(super) const RECORDS: &str =
    concat!("SELECT ", record_columns!(), " FROM records WHERE k BETWEEN ?1 AND ?2 ORDER BY k");
pub(super) const PAYLOAD: &str = "SELECT payload FROM records WHERE k = ?1";
pub(super) const MESSAGES: &str =
    concat!("SELECT ", message_columns!(), " FROM messages WHERE k BETWEEN ?1 AND ?2 ORDER BY k LIMIT ?3");
pub(super) const ITEMS: &str = "SELECT seq, at_us, run, epoch, path, attempt, payload FROM items \
    WHERE flow = ?1 AND feed = ?2 AND seq > ?3 ORDER BY seq LIMIT ?4";
/// Of one channel: never looks at the messages of another.
pub(super) const CHANNEL_MESSAGES: &str = concat!(
    "SELECT ",
    message_columns!(),
    " FROM messages INDEXED BY messages_channel WHERE channel = ?4 AND k BETWEEN ?1 AND ?2 ORDER BY k LIMIT ?3"
);

statements! {
    // Transactions.
    begin: "BEGIN IMMEDIATE";
    commit: "COMMIT";
    rollback: "ROLLBACK";
    data_version: "PRAGMA data_version";

    // Enqueue.
    key_last: "SELECT max(coalesce((SELECT max(key) FROM flows), 0), (SELECT value FROM meta WHERE name = 'key_floor'))";
    insert_lane: "INSERT INTO lanes (queue, flow_type, version, priority) VALUES (?1, ?2, ?3, ?4)";
    insert_flow: "INSERT INTO flows (key, id, lane, state, due_us, deadline_us, parent_id, parent_path, detached, \
        created_us, start_us, labels) VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7, ?8, ?9, ?4, ?10) ON CONFLICT (id) DO NOTHING";
    insert_payload: "INSERT OR REPLACE INTO records (k, payload) VALUES (?1, ?2)";
    taken: concat!("SELECT f.lane, r.payload FROM flows f LEFT JOIN records r \
        ON r.k = f.key << 24 | iif(f.run > 1, ", accepted!(), ", 0) WHERE f.id = ?1");

    // Claim.
    due: DUE;
    next_due: NEXT_DUE;
    due_by_id: "SELECT due_us, key FROM flows WHERE id = ?1";
    flow: concat!("SELECT ", flow_columns!(), " FROM flows WHERE key = ?1");
    records: RECORDS;
    messages: MESSAGES;
    lease: "UPDATE flows SET state = 2, due_us = ?2, epoch = ?3, commit_number = 0, deliveries = ?4, \
        started_us = ?5, worker = ?6, owner = ?7, reason = NULL, stalled_by = NULL, wake_us = NULL, wake_channels = NULL \
        WHERE key = ?1";
    stall: "UPDATE flows SET state = 7, due_us = NULL, owner = NULL, reason = ?2, stalled_by = NULL, wake_us = NULL, \
        wake_channels = NULL WHERE key = ?1";

    // The logs on the file.
    owner_after: OWNER_AFTER;
    owns: "SELECT EXISTS (SELECT 1 FROM flows WHERE owner = ?1)";
    free: FREE;

    // Heartbeat and release.
    renew: "UPDATE flows SET due_us = ?4, owner = ?5 WHERE key = ?1 AND id = ?2 AND epoch = ?3 AND state = 2";
    state_of_lease: "SELECT iif(cleanup = 2 AND state = 1, 6, state) FROM flows WHERE key = ?1 AND id = ?2 AND epoch = ?3";
    release: "UPDATE flows SET state = 1, due_us = ?4, owner = NULL, deliveries = max(deliveries - 1, 0) \
        WHERE key = ?1 AND id = ?2 AND epoch = ?3 AND state = 2";

    let_go: "UPDATE flows SET due_us = min(due_us, ?4), owner = NULL \
        WHERE key = ?1 AND id = ?2 AND epoch = ?3 AND state = 1 AND cleanup = 2";

    // Commit.
    step: "UPDATE flows SET commit_number = ?4, commit_answer = 0, records = ?6, deliveries = 0 \
        WHERE key = ?1 AND id = ?2 AND epoch = ?3 AND state = 2 AND commit_number = ?4 - 1 AND records = ?5";
    complete: "UPDATE flows SET state = 4, due_us = NULL, owner = NULL, commit_number = ?4, commit_answer = 0, \
        records = ?6, deliveries = 0, finished_us = ?7, reason = NULL, stalled_by = NULL, wake_us = NULL, \
        wake_channels = NULL \
        WHERE key = ?1 AND id = ?2 AND epoch = ?3 AND state = 2 AND commit_number = ?4 - 1 AND records = ?5 \
        AND messages = 0 AND (parent_id IS NULL OR detached = 1)";
    head: "SELECT id, epoch, state, commit_number, commit_answer, records, deliveries, messages, deadline_us, \
        parent_id, parent_path, detached, run_key, cleanup FROM flows WHERE key = ?1";
    insert_record: "INSERT INTO records (k, at_us, path, kind, phase, name, args_hash, attempt, started_us, due_us, \
        reference, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    amend_record: "UPDATE records SET at_us = ?2, payload = ?3 WHERE k = ?1";
    progress: "UPDATE flows SET commit_number = ?2, commit_answer = ?3, records = ?4, deliveries = ?5 WHERE key = ?1";
    suspend: "UPDATE flows SET state = 3, due_us = ?2, owner = NULL, commit_number = ?3, commit_answer = 1, records = ?4, \
        deliveries = 0, wake_us = ?5, wake_channels = ?6 WHERE key = ?1";
    end: "UPDATE flows SET state = ?2, due_us = NULL, owner = NULL, commit_number = ?3, commit_answer = 0, records = ?4, \
        deliveries = ?5, finished_us = ?6, reason = ?7, stalled_by = NULL, wake_us = NULL, wake_channels = NULL \
        WHERE key = ?1";
    clean_up: "UPDATE flows SET state = 1, due_us = iif(state = 2, due_us, ?2), commit_number = 0, commit_answer = 0, \
        records = ?3, deliveries = 0, reason = NULL, stalled_by = NULL, wake_us = NULL, wake_channels = NULL, cleanup = 2 \
        WHERE key = ?1";
    cleanup: "UPDATE flows SET cleanup = max(cleanup, ?2) WHERE key = ?1";
    stall_by_build: "UPDATE flows SET state = 7, due_us = NULL, owner = NULL, commit_number = ?2, commit_answer = 0, \
        records = ?3, deliveries = ?4, reason = ?5, stalled_by = ?6 WHERE key = ?1";

    // Feeds.
    item_last: "SELECT max(seq) FROM items WHERE flow = ?1 AND feed = ?2";
    insert_item: "INSERT INTO items (flow, feed, seq, at_us, run, epoch, path, attempt, payload) \
        SELECT ?1, ?2, ?3, ?4, run, ?5, ?6, ?7, ?8 FROM flows WHERE key = ?1";
    delete_items: "DELETE FROM items WHERE flow = ?1 AND feed = ?2 AND seq < ?3";
    emitted: "UPDATE flows SET emitted = ?2 WHERE key = ?1";

    // Mailbox.
    receiver: "SELECT key, state, due_us, messages, wake_channels, run_key FROM flows WHERE id = ?1";
    insert_message: "INSERT INTO messages (k, channel, at_us, outcome, reference, payload) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    delete_message: "DELETE FROM messages WHERE k = ?1";
    clear_messages: "DELETE FROM messages WHERE k BETWEEN ?1 AND ?2";
    has_message: "SELECT EXISTS (SELECT 1 FROM messages INDEXED BY messages_channel \
        WHERE channel = ?3 AND k BETWEEN ?1 AND ?2)";
    knows_key: "SELECT EXISTS (SELECT 1 FROM message_keys WHERE flow = ?1 AND key = ?2)";
    insert_key: "INSERT INTO message_keys (flow, key) VALUES (?1, ?2)";
    received: "UPDATE flows SET messages = ?2 WHERE key = ?1";
    awaken: "UPDATE flows SET messages = ?2, state = 1, due_us = ?3, wake_us = NULL, wake_channels = NULL \
        WHERE key = ?1";
}
