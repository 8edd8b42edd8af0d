//! Every statement, prepared on a connection when it first needs it.

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident: $sql:expr;)*) => {
        /// A statement.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Statement {
            $($(#[$doc])* $name,)*
        }

        impl Statement {
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];

            fn template(self) -> String {
                match self {
                    $(Self::$name => String::from($sql),)*
                }
            }
        }
    };
}

impl Statement {
    /// How many there are.
    pub(super) const COUNT: usize = Self::ALL.len();

    /// All of them for a schema, whose name is quoted, by their numbers.
    pub(super) fn texts(schema: &str) -> Vec<String> {
        Self::ALL.iter().map(|statement| statement.template().replace("{s}", schema)).collect()
    }
}

/// The columns of a flow that [`row::flow`](super::row::flow) reads, in its order.
macro_rules! flow_columns {
    () => {
        "f.key, f.lane, f.state, f.due_us, f.fence, f.records, f.deliveries, f.deadline_us, f.started_us, \
         f.finished_us, f.worker, f.reason, f.wake_us, f.wake_channels, a.id, a.parent_id, a.parent_path, a.detached, \
         a.created_us, a.start_us, a.run, a.labels, f.emitted, f.cleanup"
    };
}

/// The columns of a record that [`row::record`](super::row::record) reads, in its order.
macro_rules! record_columns {
    () => {
        "r.k, r.at_us, r.path, r.kind, r.phase, r.name, r.args_hash, r.attempt, r.started_us, r.due_us, r.reference, \
         r.payload"
    };
}

/// The columns of a message that [`row::message`](super::row::message) reads, in its order.
macro_rules! message_columns {
    () => {
        "m.flow, m.seq, m.channel, m.at_us, m.outcome, m.reference, m.payload"
    };
}

/// What a list reads of each flow.
pub(super) const FLOW_COLUMNS: &str = concat!("SELECT ", flow_columns!());
/// All flows after a key; conditions are added.
pub(super) const FLOWS: &str = " FROM {s}.flows f JOIN {s}.facts a ON a.key = ANY (ARRAY[f.key]) WHERE f.key > $1";
/// Flows after a key that are due at some time; conditions on the lane and the instant are added. Nobody is to think of looking
/// for them by the index over keys.
pub(super) const DUE: &str = " FROM {s}.flows f JOIN {s}.facts a ON a.key = ANY (ARRAY[f.key]) \
     WHERE f.key + 0 > $1 AND f.due_us IS NOT NULL";
/// The children of a flow after a key.
pub(super) const CHILDREN: &str = " FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key]) \
     WHERE a.parent_id = $2 AND a.parent_path IS NOT NULL AND a.key + 0 > $1";
/// The flows with a label after a key.
pub(super) const LABELLED: &str = " FROM {s}.labels n JOIN {s}.flows f ON f.key = ANY (ARRAY[n.flow]) \
     JOIN {s}.facts a ON a.key = ANY (ARRAY[n.flow]) WHERE n.name = $2 AND n.value = $3 AND n.flow > $1";

/// Applies the commits that need no look at anything but their own row, all in one statement: the row says by itself
/// whether the lease is good, the numbers follow, no message waits that would keep the flow awake or would have to
/// leave with it, and no parent waits for the end. Answers with the places of those that were applied.
///
/// The conditions hold for the row as it is when it is locked, also when another transaction has just changed it. The
/// rows are locked in the order of their keys. The messages that are counted are those of the statement's snapshot,
/// though: where it `consumes`, a [`Lock`](Statement::Lock) of the flows goes before it in the same transaction.
fn commit(consumes: bool) -> String {
    let (count_taken, take) = if consumes {
        (
            "LEFT JOIN LATERAL (SELECT count(*)::integer AS n FROM {s}.messages m \
               WHERE m.flow = i.key AND m.seq = ANY (string_to_array(i.consumed, ',')::integer[])) gone \
               ON i.consumed IS NOT NULL",
            ", taken AS (DELETE FROM {s}.messages m USING unnest($26::bigint[], $28::integer[]) AS t (flow, seq) \
               WHERE m.flow = ANY (ARRAY[t.flow]) AND m.seq = t.seq \
               AND (t.flow IN (SELECT d.key FROM done d)) IS TRUE)",
        )
    } else {
        ("CROSS JOIN (SELECT 0 AS n) gone", "")
    };
    format!(
        "WITH now AS MATERIALIZED (SELECT {{s}}.now_us($1) AS us), \
         input AS MATERIALIZED (SELECT * FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::integer[], \
             $6::integer[], $7::smallint[], $8::bigint[], $9::text[], $10::bytea[], $11::text[], $12::text[], \
             $13::text[], $25::text[]) WITH ORDINALITY AS i (key, fence, number, before, after, next, wake_us, \
             channels, result, reason, build, again, consumed, place) ORDER BY i.key), \
         done AS (UPDATE {{s}}.flows f SET \
             commit_number = i.number, \
             commit_answer = CASE WHEN i.next = 1 THEN 1 ELSE 0 END, \
             records = coalesce(i.after, f.records), \
             deliveries = CASE WHEN i.after IS NOT NULL OR i.next = 1 THEN 0 ELSE f.deliveries END, \
             waiting = f.waiting - coalesce(gone.n, 0), \
             state = CASE i.next WHEN 0 THEN 2 WHEN 1 THEN 3 ELSE i.next END, \
             due_us = CASE i.next WHEN 0 THEN f.due_us \
               WHEN 1 THEN least(i.wake_us, CASE WHEN f.cleanup < 2 THEN f.deadline_us END) END, \
             finished_us = CASE WHEN i.next IN (4, 5) THEN now.us END, \
             wake_us = i.wake_us, \
             wake_channels = (string_to_array(i.channels, E'\\n'))[2:], \
             result = i.result, reason = i.reason, stalled_by = i.build, again = i.again \
           FROM input i CROSS JOIN now {count_taken} \
           WHERE f.key = ANY (ARRAY[i.key]) AND f.fence = i.fence AND f.state = 2 AND f.commit_number = i.number - 1 \
             AND (i.before IS NULL OR f.records = i.before) \
             AND CASE WHEN i.next = 1 \
                 THEN f.waiting = coalesce(gone.n, 0) \
                   AND (least(i.wake_us, CASE WHEN f.cleanup < 2 THEN f.deadline_us END) <= now.us) IS NOT TRUE \
               WHEN i.next = 4 THEN f.waiting = coalesce(gone.n, 0) AND NOT f.attached \
               WHEN i.next = 5 THEN NOT f.attached \
               ELSE true END \
           RETURNING f.key, i.place, f.state = 3 AND f.due_us IS NOT NULL AS queued), \
         written AS (INSERT INTO {{s}}.records (k, at_us, started_us, due_us, args_hash, attempt, kind, phase, path, \
             name, reference, payload) \
           SELECT r.k, r.at_us, r.started_us, r.due_us, r.args_hash, r.attempt, r.kind, r.phase, r.path, r.name, \
             r.reference, r.payload \
           FROM unnest($14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[], \
             $20::smallint[], $21::smallint[], $22::text[], $23::text[], $24::text[], $27::bytea[]) \
             AS r (k, at_us, started_us, due_us, args_hash, attempt, kind, phase, path, name, reference, payload) \
           WHERE ((r.k >> 24) IN (SELECT d.key FROM done d)) IS TRUE){take} \
         SELECT d.place, d.queued{unused} FROM done d",
        unused = if consumes { "" } else { " AND $26::bigint[] IS NOT NULL AND $28::integer[] IS NOT NULL" },
    )
}

statements! {
    // Connections.
    Now: "SELECT {s}.now_us(NULL)";
    Notify: "SELECT pg_notify($1, $2)";
    Lanes: "SELECT lane, queue, flow_type, version, priority FROM {s}.lanes";
    AddLanes: "INSERT INTO {s}.lanes (queue, flow_type, version, priority) \
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::smallint[]) AS l (q, t, v, p) ORDER BY q, t, v, p \
        ON CONFLICT DO NOTHING";

    // Enqueue. Keys are given in the order of the flows, ids are taken in an order of their own, so that batches that
    // overlap do not wait for each other in a circle.
    Enqueue: "WITH now AS MATERIALIZED (SELECT {s}.now_us($1) AS us), \
        input AS MATERIALIZED (SELECT nextval('{s}.flow_key') AS key, i.*, now.us, \
            coalesce(i.start_us, {s}.later(now.us, coalesce(i.delay_us, 0))) AS begin_us \
          FROM now CROSS JOIN unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], \
            $8::text[], $9::boolean[], $10::bytea[], $11::text[]) WITH ORDINALITY AS i (id, lane, start_us, delay_us, \
            timeout_us, parent_id, parent_path, detached, input, labels, place)), \
        created AS (INSERT INTO {s}.facts (key, id, created_us, start_us, detached, parent_id, parent_path, labels, \
            input) \
          SELECT i.key, i.id, i.us, i.begin_us, i.detached, i.parent_id, i.parent_path, i.labels, i.input FROM input i \
          ORDER BY i.id, i.key ON CONFLICT (id) DO NOTHING RETURNING key), \
        queued AS (INSERT INTO {s}.flows (key, lane, due_us, deadline_us, attached) \
          SELECT i.key, i.lane, i.begin_us, {s}.later(greatest(i.begin_us, i.us), i.timeout_us), \
            i.parent_id IS NOT NULL AND NOT i.detached \
          FROM input i WHERE (i.key IN (SELECT c.key FROM created c)) IS TRUE), \
        labelled AS (INSERT INTO {s}.labels (flow, name, value) SELECT i.key, e.name, e.value \
          FROM input i CROSS JOIN LATERAL {s}.each_label(i.labels) e \
          WHERE i.labels IS NOT NULL AND (i.key IN (SELECT c.key FROM created c)) IS TRUE) \
        SELECT i.place FROM input i WHERE (i.key IN (SELECT c.key FROM created c)) IS TRUE";
    Existing: "SELECT i.place, l.flow_type = i.flow_type AND a.input = i.input \
        FROM unnest($1::text[], $2::text[], $3::bytea[]) WITH ORDINALITY AS i (id, flow_type, input, place) \
        JOIN {s}.facts a ON a.id = ANY (ARRAY[i.id]) JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key]) \
        JOIN {s}.lanes l ON l.lane = f.lane";

    // Claim.
    Claim: "SELECT c.* FROM {s}.claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) c";
    Histories: concat!("SELECT ", record_columns!(), " FROM unnest($1::bigint[], $2::bigint[]) AS i (first, last) \
        CROSS JOIN LATERAL (SELECT * FROM {s}.records r WHERE r.k BETWEEN i.first AND i.last ORDER BY r.k) r");
    Mailboxes: concat!("SELECT ", message_columns!(), " FROM unnest($1::bigint[]) AS i (flow) CROSS JOIN LATERAL \
        (SELECT * FROM {s}.messages m WHERE m.flow = i.flow ORDER BY m.seq LIMIT $2) m");
    Stall: "UPDATE {s}.flows f SET state = 7, due_us = NULL, reason = $3, stalled_by = NULL \
        WHERE f.key = $1 AND f.fence = $2 AND f.state = 2";

    // Heartbeat and release.
    Renew: "WITH now AS MATERIALIZED (SELECT {s}.now_us($1) AS us), \
        input AS MATERIALIZED (SELECT * FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY AS i (key, fence, place) \
          ORDER BY i.key), \
        held AS (UPDATE {s}.flows f SET due_us = {s}.later(now.us, $4) FROM input i CROSS JOIN now \
          WHERE f.key = ANY (ARRAY[i.key]) AND f.fence = i.fence AND f.state = 2 RETURNING i.place) \
        SELECT h.place, now.us FROM now LEFT JOIN held h ON true";
    GiveBack: "UPDATE {s}.flows f SET state = 1, due_us = {s}.now_us($1), deliveries = greatest(f.deliveries - 1, 0) \
        FROM (SELECT * FROM unnest($2::bigint[], $3::bigint[]) AS i (key, fence) ORDER BY i.key) i \
        WHERE f.key = ANY (ARRAY[i.key]) AND f.fence = i.fence AND f.state = 2";
    StatesOfLeases: "SELECT i.place, CASE WHEN f.cleanup = 2 AND f.state = 1 THEN 6::smallint ELSE f.state END FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY \
        AS i (key, fence, place) JOIN {s}.flows f ON f.key = ANY (ARRAY[i.key]) AND f.fence = i.fence";
    Release: "UPDATE {s}.flows f SET state = 1, \
            due_us = CASE f.state WHEN 2 THEN {s}.now_us($1) ELSE least(f.due_us, {s}.now_us($1)) END, \
            deliveries = CASE f.state WHEN 2 THEN greatest(f.deliveries - 1, 0) ELSE f.deliveries END \
        WHERE f.key = $2 AND f.fence = $3 AND (f.state = 2 OR f.state = 1 AND f.cleanup = 2) RETURNING f.key";

    // Commit.
    Commit: commit(false);
    CommitConsuming: commit(true);
    CommitOne: "SELECT c.* FROM {s}.commit_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
        $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, \
        $39, $40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50) c";
    Lock: "SELECT FROM {s}.flows f WHERE f.key = ANY ($1::bigint[]) ORDER BY f.key FOR NO KEY UPDATE";
    LockAll: "SELECT {s}.lock_all($1)";

    // From outside.
    Send: "SELECT * FROM {s}.send($1, $2, $3, $4, $5)";
    Cancel: "SELECT c.* FROM {s}.cancel($1, $2, $3, $4, $5) c";
    Retry: "SELECT r.* FROM {s}.retry($1, $2) r";
    Reoffer: "WITH stalled AS MATERIALIZED (SELECT f.key FROM {s}.flows f JOIN {s}.lanes l ON l.lane = f.lane \
          JOIN unnest($2::text[], $3::bigint[]) AS t (name, version) ON t.name = l.flow_type AND t.version = l.version \
          WHERE f.state = 7 AND f.stalled_by <> $4 ORDER BY f.key FOR NO KEY UPDATE OF f), \
        offered AS (UPDATE {s}.flows f SET state = 1, due_us = {s}.now_us($1), reason = NULL, stalled_by = NULL \
          FROM (SELECT DISTINCT s.key FROM stalled s) s WHERE f.key = ANY (ARRAY[s.key]) AND f.state = 7 \
          RETURNING f.key) \
        SELECT a.id FROM offered o JOIN {s}.facts a ON a.key = ANY (ARRAY[o.key])";

    // Read.
    Flow: concat!("SELECT ", flow_columns!(), ", coalesce(a.run_input, a.input), CASE WHEN f.state IN (4, 5) THEN f.result END \
        FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key]) WHERE a.id = $1");
    History: concat!("SELECT ", record_columns!(), " FROM {s}.facts a LEFT JOIN LATERAL (SELECT * FROM {s}.records r \
        WHERE r.k BETWEEN a.key << 24 | $2::bigint AND a.key << 24 | $3::bigint ORDER BY r.k) r ON true WHERE a.id = $1 \
        ORDER BY r.k");
    Messages: concat!("SELECT ", message_columns!(), " FROM {s}.facts a LEFT JOIN LATERAL (SELECT * FROM {s}.messages m \
        WHERE m.flow = a.key AND m.seq >= $2 ORDER BY m.seq LIMIT $3) m ON true WHERE a.id = $1 ORDER BY m.seq");
    /// The first of all are among the first of each channel.
    MessagesOn: concat!("SELECT ", message_columns!(), " FROM {s}.facts a LEFT JOIN LATERAL (SELECT x.* \
        FROM unnest($4::text[]) AS c (channel) CROSS JOIN LATERAL (SELECT * FROM {s}.messages m \
          WHERE m.flow = a.key AND m.channel = c.channel AND m.seq >= $2 ORDER BY m.seq LIMIT $3) x \
        ORDER BY x.seq LIMIT $3) m ON true WHERE a.id = $1 ORDER BY m.seq");
    Items: "SELECT i.seq, i.at_us, i.run, i.epoch, i.path, i.attempt, i.payload FROM {s}.facts a LEFT JOIN LATERAL \
        (SELECT * FROM {s}.items i WHERE i.flow = a.key AND i.feed = $2 AND i.seq > $3 ORDER BY i.seq LIMIT $4) i ON true \
        WHERE a.id = $1 ORDER BY i.seq";
    Counts: "SELECT lane, state, count(*), min(due_us) FROM {s}.flows GROUP BY lane, state";

    Extras: "SELECT CASE WHEN a.run > 1 THEN a.input END, f.messages, f.again, f.stalled_by, \
        ARRAY(SELECT m.key FROM {s}.message_keys m WHERE m.flow = a.key), \
        ARRAY(SELECT DISTINCT i.feed FROM {s}.items i WHERE i.flow = a.key) \
        FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key]) WHERE a.id = $1";

    // Flows that come whole, and flows that are taken back.
    Import: "WITH f AS (INSERT INTO {s}.facts (key, id, created_us, start_us, run, detached, parent_id, parent_path, \
            labels, input, run_input) \
          VALUES (nextval('{s}.flow_key'), $1, $22, $23, $24, $25, $26, $27, $28, $29, $30) \
          ON CONFLICT (id) DO NOTHING RETURNING key), \
        flow AS (INSERT INTO {s}.flows (key, lane, state, due_us, fence, started_us, finished_us, deadline_us, wake_us, \
            records, emitted, deliveries, messages, waiting, attached, wake_channels, worker, reason, stalled_by, again, \
            result, cleanup) \
          SELECT f.key, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $58 \
          FROM f), \
        labelled AS (INSERT INTO {s}.labels (flow, name, value) SELECT f.key, e.name, e.value \
          FROM f CROSS JOIN LATERAL {s}.each_label($28::text) e WHERE $28::text IS NOT NULL), \
        recorded AS (INSERT INTO {s}.records (k, at_us, started_us, due_us, args_hash, attempt, kind, phase, path, name, \
            reference, payload) \
          SELECT f.key << 24 | r.seq, r.at_us, r.started_us, r.due_us, r.args_hash, r.attempt, r.kind, r.phase, r.path, \
            r.name, r.reference, r.payload \
          FROM f CROSS JOIN unnest($31::integer[], $32::bigint[], $33::bigint[], $34::bigint[], $35::bigint[], \
            $36::bigint[], $37::smallint[], $38::smallint[], $39::text[], $40::text[], $41::text[], $42::bytea[]) \
            AS r (seq, at_us, started_us, due_us, args_hash, attempt, kind, phase, path, name, reference, payload)), \
        sent AS (INSERT INTO {s}.messages (flow, seq, at_us, outcome, channel, reference, payload) \
          SELECT f.key, m.seq, m.at_us, m.outcome, m.channel, m.reference, m.payload \
          FROM f CROSS JOIN unnest($43::integer[], $44::bigint[], $45::smallint[], $46::text[], $47::text[], $48::bytea[]) \
            AS m (seq, at_us, outcome, channel, reference, payload)), \
        keyed AS (INSERT INTO {s}.message_keys (flow, key) SELECT f.key, m.key \
          FROM f CROSS JOIN unnest($49::text[]) AS m (key)), \
        told AS (INSERT INTO {s}.items (flow, feed, seq, at_us, run, epoch, path, attempt, payload) \
          SELECT f.key, i.feed, i.seq, i.at_us, i.run, i.epoch, i.path, i.attempt, i.payload \
          FROM f CROSS JOIN unnest($50::text[], $51::integer[], $52::bigint[], $53::integer[], $54::bigint[], $55::text[], \
            $56::bigint[], $57::bytea[]) AS i (feed, seq, at_us, run, epoch, path, attempt, payload)) \
        SELECT f.key FROM f";
    Reset: "SELECT r.* FROM {s}.reset($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) r";

    // Upkeep.
    Prune: "SELECT * FROM {s}.prune($1, $2, $3, $4, $5, $6)";
    Delete: "SELECT {s}.delete($1)";
}
