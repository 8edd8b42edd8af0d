-- Version 1. What is updated at every step is small and lies in `flows`; what is written once or is large lies
-- elsewhere, under keys that rise in the order of time. `k` is the flow's key << 24 | a number within the flow.
-- Instants are microseconds since 1970, UTC. `{s}` stands for the schema's name.

CREATE TABLE {s}.lanes (
    lane integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    flow_type text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    priority smallint NOT NULL,
    UNIQUE (queue, flow_type, version, priority)
);

-- Keys are never used again, and an earlier one was accepted earlier.
CREATE SEQUENCE {s}.flow_key MAXVALUE 549755813887;

CREATE TABLE {s}.flows (
    key bigint PRIMARY KEY,
    -- When it may be claimed: the start, the wake-up or deadline, the end of the lease; null for never.
    due_us bigint,
    -- How often it was claimed, << 25 | a random number of the latest claim. A server that came back without its
    -- latest writes counts some claims again; no lease that was granted in what it lost is taken for theirs.
    fence bigint NOT NULL DEFAULT 0,
    -- The last commit under the latest lease, and what was answered.
    commit_number bigint NOT NULL DEFAULT 0,
    started_us bigint,
    finished_us bigint,
    deadline_us bigint,
    wake_us bigint,
    lane integer NOT NULL,
    records integer NOT NULL DEFAULT 0,
    -- How many items the flow's own code has emitted in its present run.
    emitted integer NOT NULL DEFAULT 0,
    deliveries integer NOT NULL DEFAULT 0,
    -- The number of the latest message, and how many are in the mailbox.
    messages integer NOT NULL DEFAULT 0,
    waiting integer NOT NULL DEFAULT 0,
    state smallint NOT NULL DEFAULT 1,
    commit_answer smallint NOT NULL DEFAULT 0,
    -- Whether it has something to clean up when it is cancelled: 0 nothing, 1 something, 2 it was cancelled.
    cleanup smallint NOT NULL DEFAULT 0,
    -- True when it names a parent that hears of its end.
    attached boolean NOT NULL DEFAULT false,
    wake_channels text[] COLLATE "C",
    worker text,
    reason text,
    -- The build that could not go on; null unless stalled by one.
    stalled_by text COLLATE "C",
    -- The paths of the calls that a retry makes again, with spaces between; null unless failed.
    again text,
    -- What it ended with, as its parent is told.
    result bytea
) WITH (
    -- Room for the next versions of a row on its own page: a step then touches no index.
    fillfactor = 60,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.05
);
-- One range per lane; flows that are not due yet lie behind the ones that are.
CREATE INDEX flows_due ON {s}.flows (lane, due_us, key) WHERE due_us IS NOT NULL;
-- By their lanes, so that those of a type that are to be forgotten are found without the others.
CREATE INDEX flows_finished ON {s}.flows (lane, finished_us, key) WHERE finished_us IS NOT NULL;
-- Failed, cancelled, stalled: what people ask for.
CREATE INDEX flows_stopped ON {s}.flows (state, key) WHERE state IN (5, 6, 7);

CREATE TABLE {s}.facts (
    key bigint PRIMARY KEY,
    created_us bigint NOT NULL,
    start_us bigint NOT NULL,
    -- The greatest key that there was when the present run began: its children have greater ones.
    run_key bigint NOT NULL DEFAULT 0,
    -- The number of the present run.
    run integer NOT NULL DEFAULT 1,
    detached boolean NOT NULL,
    id text COLLATE "C" NOT NULL UNIQUE,
    parent_id text COLLATE "C",
    parent_path text COLLATE "C",
    -- As lines of name=value; null when there are none.
    labels text COLLATE "C",
    -- What the flow was accepted with, and the input of the present run where that is another.
    input bytea NOT NULL,
    run_input bytea
);
-- By an expression and a condition that only queries about children name: no other query is ever planned over it.
CREATE INDEX facts_parent ON {s}.facts (parent_id, (key + 0)) WHERE parent_path IS NOT NULL;

-- The labels again, to look flows up by: touched by flows alone that have some.
CREATE TABLE {s}.labels (
    flow bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    PRIMARY KEY (flow, name)
);
CREATE INDEX labels_value ON {s}.labels (name, value, flow);

CREATE TABLE {s}.records (
    k bigint PRIMARY KEY,
    at_us bigint NOT NULL,
    started_us bigint NOT NULL,
    due_us bigint,
    args_hash bigint NOT NULL,
    attempt bigint NOT NULL,
    kind smallint NOT NULL,
    phase smallint NOT NULL,
    path text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    reference text COLLATE "C",
    payload bytea NOT NULL
) WITH (autovacuum_vacuum_insert_scale_factor = 0.1);

CREATE TABLE {s}.messages (
    flow bigint NOT NULL,
    at_us bigint NOT NULL,
    seq integer NOT NULL,
    -- How a child ended; null for what others sent.
    outcome smallint,
    channel text COLLATE "C" NOT NULL,
    reference text COLLATE "C",
    payload bytea NOT NULL,
    PRIMARY KEY (flow, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
CREATE INDEX messages_channel ON {s}.messages (flow, channel, seq);

CREATE TABLE {s}.message_keys (
    flow bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    PRIMARY KEY (flow, key)
);

-- What flows tell of themselves.
CREATE TABLE {s}.items (
    flow bigint NOT NULL,
    at_us bigint NOT NULL,
    epoch bigint NOT NULL,
    attempt bigint NOT NULL,
    seq integer NOT NULL,
    run integer NOT NULL,
    feed text COLLATE "C" NOT NULL,
    -- The step whose body emitted it; null for the flow's own code.
    path text COLLATE "C",
    payload bytea NOT NULL,
    PRIMARY KEY (flow, feed, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- What the user's own transactions have resulted in, by the call that made them; null while one is under way.
CREATE TABLE {s}.effects (
    flow bigint NOT NULL,
    call text COLLATE "C" NOT NULL,
    outcome bytea,
    PRIMARY KEY (flow, call)
);

-- The flows that are due and are kept for the workers that they are bound to: since when they are due, and what they are
-- filed under meanwhile. What is filed otherwise by now is kept no more.
CREATE TABLE {s}.kept (
    flow bigint PRIMARY KEY,
    worker text COLLATE "C" NOT NULL,
    lane integer NOT NULL,
    due_us bigint NOT NULL,
    until_us bigint NOT NULL
);
CREATE INDEX kept_worker ON {s}.kept (worker, due_us, flow);
-- When workers were heard of that flows are or were bound to.
CREATE TABLE {s}.places (
    worker text COLLATE "C" PRIMARY KEY,
    heard_us bigint NOT NULL,
    -- Since when it asks for no more than these queues, types and versions; null while that is not known.
    since_us bigint NOT NULL,
    asks_for text[] COLLATE "C"
);

-- What a claim answers with: the flows, by their numbers, and last one row without a key that says what is due next,
-- and how many lanes there are.
CREATE TYPE {s}.claimed AS (
    key bigint,
    number bigint,
    state smallint,
    lane integer,
    fence bigint,
    due_us bigint,
    records integer,
    deliveries integer,
    waiting integer,
    deadline_us bigint,
    started_us bigint,
    id text,
    parent_id text,
    parent_path text,
    detached boolean,
    created_us bigint,
    start_us bigint,
    input bytea,
    run integer,
    emitted integer,
    now_us bigint,
    labels text,
    cleanup smallint
);
