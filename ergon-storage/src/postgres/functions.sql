-- The transitions that look before they write. Each is one transaction under READ COMMITTED: every statement of a
-- function sees what was committed before it began, so what is read after a row was locked is the present.
-- Rows of flows are locked in the order of their keys, a parent's before its child's.
-- Plans are made once, perhaps while the tables are all but empty, and must be good for ever. So tables are joined by
-- `key = ANY (ARRAY[...])`, which leaves the planner no way but to look the row up by its index; `=` would let it read
-- a table from end to end that was small when the plan was made.
-- A flow is the parent of one that names its id and has a greater key, and hears of its end if that key is also greater
-- than its `run_key`. Such keys are compared as `key + 0`, so that
-- nobody thinks of looking for them by the index over keys.
-- `{s}` stands for the schema's name.

-- The present instant: the server's, unless a test says otherwise.
CREATE FUNCTION {s}.now_us(p_now bigint) RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT coalesce(p_now, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) $$;

-- An instant and so many microseconds, at most the end of time; null when either is.
CREATE FUNCTION {s}.later(p_at bigint, p_by bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN p_at + p_by > 253402300799999999 THEN 253402300799999999 ELSE p_at + p_by END $$;

-- ---- queue -----------------------------------------------------------------------------------------------------

-- What a worker asks for, as `places` keeps it.
CREATE FUNCTION {s}.asked_for(p_queue text, p_type text, p_version bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT p_version || ' ' || octet_length(p_queue) || ' ' || p_queue || p_type $$;

-- Takes note that a worker was heard of, if it is a place or was heard of before, and of what it asks for, unless that is
-- null; answers whether it was.
CREATE FUNCTION {s}.hear(p_now bigint, p_worker text, p_is_place boolean, p_asks_for text[])
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_place {s}.places;
BEGIN
    SELECT * INTO v_place FROM {s}.places p WHERE p.worker = p_worker;
    IF v_place.worker IS NULL AND p_is_place THEN
        -- Those that were not heard of for long are forgotten, as `Affinity` says.
        DELETE FROM {s}.places p WHERE p.worker = ANY (ARRAY(
            SELECT g.worker FROM {s}.places g WHERE g.heard_us <= p_now - 2592000000000 FOR UPDATE SKIP LOCKED));
        INSERT INTO {s}.places (worker, heard_us, since_us, asks_for) VALUES (p_worker, p_now, p_now, p_asks_for)
        ON CONFLICT DO NOTHING;
    ELSIF p_now >= v_place.heard_us + 1000000 OR p_asks_for IS NOT NULL
        AND (v_place.asks_for IS NULL OR NOT (v_place.asks_for <@ p_asks_for AND p_asks_for <@ v_place.asks_for)) THEN
        UPDATE {s}.places p SET
            heard_us = CASE WHEN p_now >= p.heard_us + 1000000 THEN p_now ELSE p.heard_us END,
            asks_for = coalesce(p_asks_for, p.asks_for),
            since_us = CASE WHEN p_asks_for IS NULL OR p.asks_for <@ p_asks_for THEN p.since_us ELSE p_now END
        WHERE p.worker = p_worker;
    END IF;
    RETURN p_is_place OR v_place.worker IS NOT NULL;
END $$;

-- What binds a flow: its session, or else its affinity.
CREATE FUNCTION {s}.binding(p_key bigint) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT n.value FROM {s}.labels n
    WHERE n.flow = p_key AND n.name IN ('ergon.affinity', 'ergon.session') ORDER BY n.name DESC LIMIT 1
$$;

-- Keeps those of these flows, which are due and locked, for the workers that they are bound to that are bound to others
-- than this one; answers with the rest, in their order.
CREATE FUNCTION {s}.not_kept(p_now bigint, p_worker text, p_keys bigint[])
RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_kept bigint[];
BEGIN
    -- A worker that is not known counts from now on. If a flow was kept for it, it has not asked since that was due. In the
    -- order of their names, and not while others do the same: nobody waits for anybody who waits for these flows.
    IF pg_try_advisory_xact_lock(4572676, hashtext($name${s}.places$name$)) THEN
        INSERT INTO {s}.places (worker, heard_us, since_us)
        SELECT DISTINCT f.worker, p_now, p_now FROM unnest(p_keys) c (key) JOIN {s}.flows f ON f.key = ANY (ARRAY[c.key])
        WHERE f.worker <> p_worker AND {s}.binding(f.key) LIKE 'require %'
            AND NOT EXISTS (SELECT FROM {s}.places p WHERE p.worker = f.worker)
            AND NOT EXISTS (SELECT FROM {s}.kept k WHERE k.flow = f.key AND k.until_us = f.due_us)
        ORDER BY f.worker
        ON CONFLICT DO NOTHING;
    END IF;
    WITH bound AS MATERIALIZED (
        -- What cleans up has no time limit.
        SELECT f.key, f.lane, f.worker, CASE WHEN f.cleanup < 2 THEN f.deadline_us END AS deadline_us,
            string_to_array({s}.binding(f.key), ' ') AS words,
            CASE WHEN k.until_us = f.due_us THEN k.due_us ELSE f.due_us END AS due_us,
            coalesce(CASE WHEN p.asks_for IS NULL OR EXISTS (SELECT FROM {s}.lanes l WHERE l.lane = f.lane
                    AND {s}.asked_for(l.queue, l.flow_type, l.version) = ANY (p.asks_for)) THEN p.heard_us
                ELSE least(p.since_us, p.heard_us) END, CASE WHEN k.until_us = f.due_us THEN k.due_us ELSE p_now END) AS heard_us
        FROM unnest(p_keys) c (key) JOIN {s}.flows f ON f.key = ANY (ARRAY[c.key])
        LEFT JOIN {s}.kept k ON k.flow = ANY (ARRAY[c.key])
        LEFT JOIN {s}.places p ON p.worker = ANY (ARRAY[f.worker])
        WHERE f.worker <> p_worker
    ), opens AS MATERIALIZED (
        SELECT b.key, b.lane, b.worker, b.due_us, least(b.deadline_us, CASE
            WHEN b.words[1] = 'prefer' THEN {s}.later(b.due_us, b.words[2]::bigint)
            WHEN b.words[2] <> 'never' THEN {s}.later(b.heard_us, b.words[2]::bigint)
            WHEN {s}.later(b.heard_us, 60000000) > p_now THEN {s}.later(b.heard_us, 60000000)
            ELSE 253402300799999999 END) AS until_us
        FROM bound b WHERE b.words IS NOT NULL
    ), noted AS (
        INSERT INTO {s}.kept AS k (flow, worker, lane, due_us, until_us)
        SELECT o.key, o.worker, o.lane, o.due_us, o.until_us FROM opens o WHERE o.until_us > p_now
        ON CONFLICT (flow) DO UPDATE SET worker = excluded.worker, due_us = excluded.due_us, until_us = excluded.until_us
    ), filed AS (
        UPDATE {s}.flows f SET due_us = o.until_us FROM opens o
        WHERE f.key = ANY (ARRAY[o.key]) AND o.until_us > p_now RETURNING f.key
    )
    SELECT array_agg(filed.key) INTO v_kept FROM filed;
    IF v_kept IS NULL THEN
        RETURN p_keys;
    END IF;
    RETURN ARRAY(SELECT c.key FROM unnest(p_keys) WITH ORDINALITY c (key, place)
        LEFT JOIN unnest(v_kept) k (key) ON k.key = c.key WHERE k.key IS NULL ORDER BY c.place);
END $$;

-- Makes flows claimable that are kept for a worker, so many at most: those of these lanes, or this one.
CREATE FUNCTION {s}.bring_back(p_worker text, p_lanes integer[], p_key bigint, p_limit bigint)
RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_flows bigint[];
BEGIN
    -- In the order of their keys, as all rows of flows are locked; what others hold comes back later.
    v_flows := ARRAY(SELECT f.key FROM {s}.flows f WHERE f.key = ANY (ARRAY(
            SELECT k.flow FROM {s}.kept k JOIN {s}.flows o ON o.key = ANY (ARRAY[k.flow])
            WHERE k.worker = p_worker AND (k.lane = ANY (p_lanes) OR k.flow = p_key)
                AND o.due_us = k.until_us AND o.worker = p_worker
            ORDER BY k.due_us, k.flow LIMIT p_limit))
        ORDER BY f.key FOR NO KEY UPDATE SKIP LOCKED);
    UPDATE {s}.flows f SET due_us = k.due_us FROM {s}.kept k
    WHERE f.key = ANY (v_flows) AND k.flow = f.key AND f.due_us = k.until_us AND f.worker = p_worker;
    DELETE FROM {s}.kept k WHERE k.flow = ANY (v_flows);
END $$;

-- Leases the flow `p_flow`, or where that is null flows of these lanes, which come with their priorities, the highest
-- first, or stalls the ones that were delivered too often. Does nothing when there are more lanes than are known.
-- `p_granted` are passed over: an earlier round has leased them, perhaps for no time.
CREATE FUNCTION {s}.claim(p_now bigint, p_flow text, p_known bigint, p_lanes integer[], p_priorities smallint[],
    p_limit bigint, p_lease bigint, p_deliveries_max bigint, p_worker text, p_granted bigint[],
    p_is_place boolean, p_asks_for text[])
RETURNS SETOF {s}.claimed LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := {s}.now_us(p_now);
    v_missing bigint := p_limit;
    v_from integer := 1;
    v_to integer;
    v_lanes integer[];
    v_chosen bigint[] := '{}';
    v_seen bigint[];
    v_locked bigint[];
    v_next bigint;
    v_count bigint;
    v_free bigint[];
    v_kept integer := 0;
    v_last_due bigint;
    v_last_key bigint;
    -- Whether flows are bound to workers, or were; where it is false nothing else is looked at.
    v_binds boolean := EXISTS (SELECT FROM {s}.labels n WHERE n.name = 'ergon.affinity')
        OR EXISTS (SELECT FROM {s}.labels n WHERE n.name = 'ergon.session');
    v_is_place boolean := p_is_place OR v_binds OR EXISTS (SELECT FROM {s}.places);
BEGIN
    IF p_is_place AND NOT EXISTS (SELECT FROM {s}.places p WHERE p.worker = p_worker) THEN
        -- Nobody who has flows locked waits for this.
        PERFORM pg_advisory_xact_lock(4572676, hashtext($name${s}.places$name$));
    END IF;
    v_is_place := v_is_place AND {s}.hear(v_now, p_worker, p_is_place, p_asks_for);
    IF v_binds AND p_limit > 0 THEN
        PERFORM {s}.bring_back(p_worker, p_lanes, (SELECT a.key FROM {s}.facts a WHERE a.id = p_flow), p_limit);
    END IF;
    IF p_flow IS NOT NULL THEN
        SELECT array_agg(key) INTO v_seen FROM (
            SELECT f.key FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key])
            WHERE a.id = p_flow FOR NO KEY UPDATE OF f) one;
        -- It may have been waited for.
        v_now := {s}.now_us(p_now);
        IF p_limit > 0 AND EXISTS (SELECT FROM {s}.flows f WHERE f.key = v_seen[1] AND f.due_us <= v_now) THEN
            v_chosen := v_seen;
            IF v_binds THEN
                v_chosen := {s}.not_kept(v_now, p_worker, v_seen);
                v_kept := 1 - cardinality(v_chosen);
            END IF;
        END IF;
    ELSE
        SELECT count(*) INTO v_count FROM {s}.lanes;
        IF v_count <> p_known THEN
            v_missing := 0;
        END IF;
    END IF;
    WHILE v_missing > 0 AND v_from <= cardinality(p_lanes) LOOP
        v_to := v_from;
        WHILE p_priorities[v_to + 1] = p_priorities[v_from] LOOP
            v_to := v_to + 1;
        END LOOP;
        IF v_to = v_from AND NOT v_binds THEN
            SELECT array_agg(key) INTO v_locked FROM (
                SELECT f.key FROM {s}.flows f
                WHERE f.lane = p_lanes[v_from] AND f.due_us <= v_now AND f.key <> ALL (p_granted)
                ORDER BY f.due_us, f.key LIMIT v_missing FOR NO KEY UPDATE SKIP LOCKED) due;
            v_chosen := v_chosen || v_locked;
            v_missing := v_missing - coalesce(cardinality(v_locked), 0);
        ELSE
            v_lanes := p_lanes[v_from:v_to];
            v_last_due := -9223372036854775808;
            v_last_key := 0;
            -- So many are passed over by one claim, as in `Affinity`.
            WHILE v_missing > 0 AND v_kept < 1000 LOOP
                -- The first of all are among the first of each, more where those before were kept. What others hold is
                -- passed over in the next round.
                SELECT array_agg(first.key), max(first.due_us) INTO v_seen, v_last_due FROM (
                    SELECT due.key, due.due_us FROM unnest(v_lanes) l (lane) CROSS JOIN LATERAL (
                        SELECT f.due_us, f.key FROM {s}.flows f WHERE f.lane = l.lane AND f.due_us <= v_now
                            AND (f.due_us, f.key) > (v_last_due, v_last_key) AND f.key <> ALL (p_granted)
                        ORDER BY f.due_us, f.key LIMIT v_missing + least(v_kept, 1000 - v_kept)) due
                    ORDER BY due.due_us, due.key LIMIT v_missing + least(v_kept, 1000 - v_kept)) first;
                EXIT WHEN v_seen IS NULL;
                v_last_key := v_seen[cardinality(v_seen)];
                SELECT array_agg(key) INTO v_locked FROM (
                    SELECT f.key FROM {s}.flows f WHERE f.key = ANY (v_seen)
                        AND coalesce(f.due_us, 9223372036854775807) <= v_now
                    ORDER BY f.due_us, f.key FOR NO KEY UPDATE SKIP LOCKED) due;
                CONTINUE WHEN v_locked IS NULL;
                v_free := v_locked;
                IF v_binds THEN
                    v_free := {s}.not_kept(v_now, p_worker, v_locked);
                    v_kept := v_kept + cardinality(v_locked) - cardinality(v_free);
                    v_free := v_free[1:v_missing];
                END IF;
                v_chosen := v_chosen || v_free;
                v_missing := v_missing - cardinality(v_free);
            END LOOP;
        END IF;
        v_from := v_to + 1;
    END LOOP;
    IF v_chosen <> '{}' THEN
        IF v_binds THEN
            DELETE FROM {s}.kept k WHERE k.flow = ANY (v_chosen);
            IF EXISTS (SELECT FROM unnest(v_chosen) c (key) WHERE {s}.binding(c.key) LIKE 'require %') THEN
                v_is_place := {s}.hear(v_now, p_worker, true, p_asks_for);
            END IF;
        END IF;
        RETURN QUERY
        UPDATE {s}.flows f SET
            state = CASE WHEN f.deliveries < p_deliveries_max THEN 2 ELSE 7 END,
            due_us = CASE WHEN f.deliveries < p_deliveries_max THEN {s}.later(v_now, p_lease) END,
            fence = CASE WHEN f.deliveries < p_deliveries_max
                THEN ((f.fence >> 25) + 1) << 25 | floor(random() * 33554432)::bigint ELSE f.fence END,
            commit_number = CASE WHEN f.deliveries < p_deliveries_max THEN 0 ELSE f.commit_number END,
            started_us = CASE WHEN f.deliveries < p_deliveries_max THEN coalesce(f.started_us, v_now) ELSE f.started_us END,
            deliveries = CASE WHEN f.deliveries < p_deliveries_max THEN f.deliveries + 1 ELSE f.deliveries END,
            worker = CASE WHEN f.deliveries < p_deliveries_max THEN p_worker ELSE f.worker END,
            reason = CASE WHEN f.deliveries < p_deliveries_max THEN NULL
                ELSE format('claimed %s times without making progress, the last time by "%s"; `retry` offers it again',
                    f.deliveries, coalesce(replace(replace(f.worker, '\', '\\'), '"', '\"'), 'nobody')) END,
            stalled_by = NULL,
            wake_us = NULL,
            wake_channels = NULL
        FROM unnest(v_chosen) WITH ORDINALITY c (key, number) JOIN {s}.facts a ON a.key = ANY (ARRAY[c.key])
        WHERE f.key = ANY (ARRAY[c.key])
        RETURNING f.key, c.number, f.state, f.lane, f.fence, f.due_us, f.records, f.deliveries, f.waiting, f.deadline_us,
            f.started_us, a.id, a.parent_id, a.parent_path, a.detached, a.created_us, a.start_us,
            coalesce(a.run_input, a.input), a.run, f.emitted, v_now, a.labels, f.cleanup;
    END IF;
    IF p_flow IS NOT NULL THEN
        SELECT f.due_us INTO v_next FROM {s}.flows f WHERE f.key = v_seen[1];
    ELSE
        SELECT min(due.due_us) INTO v_next
        FROM unnest(p_lanes) l (lane) CROSS JOIN LATERAL (
            SELECT f.due_us FROM {s}.flows f WHERE f.lane = l.lane AND f.due_us IS NOT NULL
            ORDER BY f.due_us, f.key LIMIT 1) due;
    END IF;
    RETURN NEXT (NULL, v_count, NULL, NULL, NULL, v_next, NULL, NULL, v_kept, NULL, NULL, NULL, NULL, NULL,
        v_is_place, NULL, NULL, NULL, NULL, NULL, v_now, NULL, NULL)::{s}.claimed;
END $$;

-- ---- labels ----------------------------------------------------------------------------------------------------

-- The names and values in lines of name=value. No name has such a sign.
CREATE FUNCTION {s}.each_label(p_lines text) RETURNS TABLE (name text, value text) LANGUAGE sql IMMUTABLE AS $$
    SELECT split_part(l.line, '=', 1), substr(l.line, strpos(l.line, '=') + 1)
    FROM unnest(string_to_array(p_lines, E'\n')) l (line)
$$;

-- Gives a flow these labels and no others.
CREATE FUNCTION {s}.set_labels(p_key bigint, p_lines text) RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE {s}.facts a SET labels = nullif(p_lines, '') WHERE a.key = p_key;
    DELETE FROM {s}.labels n WHERE n.flow = p_key;
    INSERT INTO {s}.labels (flow, name, value) SELECT p_key, e.name, e.value FROM {s}.each_label(nullif(p_lines, '')) e;
$$;

-- ---- mailboxes -------------------------------------------------------------------------------------------------

-- Puts a message into the mailbox of a flow that is locked, and wakes the flow if it waits for it.
CREATE FUNCTION {s}.deliver(p_now bigint, p_key bigint, p_channel text, p_outcome smallint, p_reference text,
    p_payload bytea, OUT woken boolean)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_number integer;
BEGIN
    SELECT f.state = 3 AND p_channel = ANY (f.wake_channels) INTO woken FROM {s}.flows f WHERE f.key = p_key;
    IF woken THEN
        -- A timer may have come before the message, and nobody has claimed the flow since.
        UPDATE {s}.flows f SET messages = f.messages + 1, waiting = f.waiting + 1, state = 1,
            due_us = least(f.due_us, p_now), wake_us = NULL, wake_channels = NULL
        WHERE f.key = p_key RETURNING f.messages INTO v_number;
    ELSE
        woken := false;
        UPDATE {s}.flows f SET messages = f.messages + 1, waiting = f.waiting + 1
        WHERE f.key = p_key RETURNING f.messages INTO v_number;
    END IF;
    IF v_number > 16777215 THEN
        RAISE EXCEPTION 'a flow can receive 16777215 messages in its life; continue in a new one' USING ERRCODE = 'ER001';
    END IF;
    INSERT INTO {s}.messages (flow, seq, at_us, outcome, channel, reference, payload)
    VALUES (p_key, v_number, p_now, p_outcome, p_channel, p_reference, p_payload);
END $$;

-- Tells a parent how a child has ended, if it is there and may still want to know. Null when it does not.
CREATE FUNCTION {s}.tell(p_now bigint, p_child bigint, p_parent text, p_path text, p_outcome smallint, p_told bytea,
    OUT woken boolean)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_key bigint;
    v_state smallint;
BEGIN
    SELECT f.key, f.state INTO v_key, v_state FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key])
    WHERE a.id = p_parent AND a.key + 0 < p_child FOR NO KEY UPDATE OF f;
    -- Looked at again now that it is locked: a later run may have begun, which did not start the child.
    IF v_state NOT IN (4, 6) AND (SELECT a.run_key < p_child FROM {s}.facts a WHERE a.key = v_key) THEN
        woken := {s}.deliver(p_now, v_key, 'child', p_outcome,
            p_path || ' ' || (SELECT a.id FROM {s}.facts a WHERE a.key = p_child), p_told);
    END IF;
END $$;

-- Sends messages in their order. Answers 0 accepted, 1 accepted and the flow is woken, 2 duplicate, -1 unknown,
-- -2 full, and -10 - its state for a flow that has ended.
CREATE FUNCTION {s}.send(p_now bigint, p_ids text[], p_channels text[], p_keys text[], p_payloads bytea[])
RETURNS SETOF integer LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_now bigint;
    v_key bigint;
    v_state smallint;
    v_number integer;
BEGIN
    IF cardinality(p_ids) > 1 THEN
        PERFORM FROM {s}.flows f WHERE f.key = ANY (ARRAY(SELECT a.key FROM {s}.facts a WHERE a.id = ANY (p_ids)))
        ORDER BY f.key FOR NO KEY UPDATE;
    END IF;
    FOR i IN 1 .. cardinality(p_ids) LOOP
        SELECT f.key, f.state, f.messages INTO v_key, v_state, v_number
        FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key]) WHERE a.id = p_ids[i] FOR NO KEY UPDATE OF f;
        v_now := {s}.now_us(p_now);
        IF v_key IS NULL THEN
            RETURN NEXT -1;
        ELSIF p_keys[i] IS NOT NULL
            AND EXISTS (SELECT FROM {s}.message_keys m WHERE m.flow = v_key AND m.key = p_keys[i]) THEN
            RETURN NEXT 2;
        ELSIF v_state IN (4, 5, 6) THEN
            RETURN NEXT -10 - v_state;
        ELSIF v_number >= 16777215 THEN
            RETURN NEXT -2;
        ELSE
            IF p_keys[i] IS NOT NULL THEN
                INSERT INTO {s}.message_keys (flow, key) VALUES (v_key, p_keys[i]);
            END IF;
            RETURN NEXT {s}.deliver(v_now, v_key, p_channels[i], NULL, NULL, p_payloads[i])::integer;
        END IF;
    END LOOP;
END $$;

-- ---- upkeep ----------------------------------------------------------------------------------------------------

-- Removes flows with everything that belongs to them.
CREATE FUNCTION {s}.forget(p_keys bigint[]) RETURNS void LANGUAGE sql VOLATILE AS $$
    DELETE FROM {s}.flows f WHERE f.key = ANY (p_keys);
    DELETE FROM {s}.facts a WHERE a.key = ANY (p_keys);
    DELETE FROM {s}.records r USING unnest(p_keys) d (key) WHERE r.k BETWEEN d.key << 24 AND d.key << 24 | 16777215;
    DELETE FROM {s}.messages m WHERE m.flow = ANY (p_keys);
    DELETE FROM {s}.message_keys m WHERE m.flow = ANY (p_keys);
    DELETE FROM {s}.items i WHERE i.flow = ANY (p_keys);
    DELETE FROM {s}.effects e WHERE e.flow = ANY (p_keys);
    DELETE FROM {s}.labels n WHERE n.flow = ANY (p_keys);
    DELETE FROM {s}.kept k WHERE k.flow = ANY (p_keys);
$$;

-- True unless there is a flow of this id that has not ended.
CREATE FUNCTION {s}.has_ended(p_id text, p_child bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN p_id IS NULL OR NOT EXISTS (SELECT FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key])
        WHERE a.id = p_id AND a.key + 0 < p_child AND a.run_key < p_child AND f.state NOT IN (4, 5, 6));
END $$;

-- The flows among these that have ended and whose parent does not wait for them; they and their parents are locked.
CREATE FUNCTION {s}.forgettable(p_keys bigint[]) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM {s}.flows f WHERE f.key = ANY (p_keys || ARRAY(
        SELECT up.key FROM {s}.facts a JOIN {s}.facts up ON up.id = ANY (ARRAY[a.parent_id]) AND up.key + 0 < a.key
        WHERE a.key = ANY (p_keys) AND NOT a.detached))
    ORDER BY f.key FOR UPDATE;
    RETURN ARRAY(
        SELECT a.key FROM {s}.facts a JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key])
        WHERE a.key = ANY (p_keys) AND f.state IN (4, 5, 6) AND (a.detached OR {s}.has_ended(a.parent_id, a.key)));
END $$;

-- Forgets finished flows, and answers with their ids.
CREATE FUNCTION {s}.prune(p_now bigint, p_age bigint, p_states smallint[], p_type text, p_keep bigint, p_limit bigint)
RETURNS SETOF text LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    v_until bigint := {s}.now_us(p_now) - p_age;
    v_lanes integer[] := ARRAY(SELECT l.lane FROM {s}.lanes l WHERE p_type IS NULL OR l.flow_type = p_type);
    -- The newest of those that do not stay by their number.
    v_newest_us bigint := 9223372036854775807;
    v_newest bigint := v_newest_us;
    v_keys bigint[];
BEGIN
    IF p_keep > 0 THEN
        SELECT last.finished_us, last.key INTO v_newest_us, v_newest
        FROM unnest(v_lanes) l (lane) CROSS JOIN LATERAL (
            SELECT f.finished_us, f.key FROM {s}.flows f
            WHERE f.lane = l.lane AND f.finished_us IS NOT NULL AND (p_states = '{}' OR f.state = ANY (p_states))
            ORDER BY f.finished_us DESC, f.key DESC LIMIT p_keep + 1) last
        ORDER BY last.finished_us DESC, last.key DESC OFFSET p_keep LIMIT 1;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    -- The first of all are among the first of each lane.
    v_keys := ARRAY(
        SELECT first.key FROM unnest(v_lanes) l (lane) CROSS JOIN LATERAL (
            SELECT f.finished_us, f.key FROM {s}.flows f
            WHERE f.lane = l.lane AND f.finished_us <= v_until AND (f.finished_us, f.key) <= (v_newest_us, v_newest)
                AND (p_states = '{}' OR f.state = ANY (p_states))
                AND (SELECT a.detached OR {s}.has_ended(a.parent_id, a.key) FROM {s}.facts a WHERE a.key = ANY (ARRAY[f.key]))
            ORDER BY f.finished_us, f.key LIMIT p_limit) first
        ORDER BY first.finished_us, first.key LIMIT p_limit);
    v_keys := {s}.forgettable(v_keys);
    -- One that was retried before it was locked, and has ended again, ended later or otherwise.
    v_keys := ARRAY(
        SELECT f.key FROM {s}.flows f
        WHERE f.key = ANY (v_keys) AND f.finished_us <= v_until AND (p_states = '{}' OR f.state = ANY (p_states)));
    RETURN QUERY SELECT a.id FROM {s}.facts a WHERE a.key = ANY (v_keys);
    PERFORM {s}.forget(v_keys);
END $$;

-- Forgets one flow. Answers 0 done, -1 unknown, -2 its parent waits for it, and its state when it has not ended.
CREATE FUNCTION {s}.delete(p_id text) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_key bigint;
    v_state smallint;
    v_gone bigint[];
BEGIN
    SELECT a.key INTO v_key FROM {s}.facts a WHERE a.id = p_id;
    v_gone := {s}.forgettable(ARRAY[v_key]);
    SELECT f.state INTO v_state FROM {s}.flows f WHERE f.key = v_key;
    IF v_state IS NULL THEN
        RETURN -1;
    ELSIF v_state NOT IN (4, 5, 6) THEN
        RETURN v_state;
    ELSIF v_gone = '{}' THEN
        RETURN -2;
    END IF;
    PERFORM {s}.forget(v_gone);
    RETURN 0;
END $$;

-- ---- outside ---------------------------------------------------------------------------------------------------

-- Locks a flow and the parent that hears of it, in their order, and returns the flow's key.
CREATE FUNCTION {s}.lock_with_parent(p_id text) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_key bigint;
    v_parent bigint;
BEGIN
    SELECT a.key, (SELECT up.key FROM {s}.facts up WHERE up.id = a.parent_id AND up.key + 0 < a.key) INTO v_key, v_parent
    FROM {s}.facts a WHERE a.id = p_id;
    PERFORM FROM {s}.flows f WHERE f.key = ANY (ARRAY[v_key, v_parent]) ORDER BY f.key FOR NO KEY UPDATE;
    RETURN v_key;
END $$;

-- Cancels a flow and its attached descendants; those that have something to clean up are scheduled for that, but for the
-- flow itself where it is to end `p_at_once`. Answers -1 unknown, a state when it had ended, else 0; with the flows
-- that have changed, and whether one of them or the parent is on the queue now.
CREATE FUNCTION {s}.cancel(p_now bigint, p_id text, p_reason text, p_told bytea, p_at_once boolean,
    OUT answer integer, OUT changed text[], OUT woken boolean)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now bigint;
    v_key bigint := {s}.lock_with_parent(p_id);
    v_cleanup smallint;
    v_level bigint[];
    v_kept bigint[];
    v_ended bigint[];
    v_has_ended boolean := false;
    v_parent {s}.facts;
BEGIN
    v_now := {s}.now_us(p_now);
    SELECT f.state, f.cleanup INTO answer, v_cleanup FROM {s}.flows f WHERE f.key = v_key;
    IF answer IS NULL THEN
        answer := -1;
        RETURN;
    ELSIF answer IN (4, 5, 6) THEN
        RETURN;
    ELSIF v_cleanup = 2 AND NOT p_at_once THEN
        answer := 6;
        RETURN;
    END IF;
    answer := 0;
    changed := '{}';
    woken := false;
    v_level := ARRAY[v_key];
    -- Each flow ends before its children are looked for: no later commit of it starts another one.
    LOOP
        PERFORM FROM {s}.flows f WHERE f.key = ANY (v_level) ORDER BY f.key FOR NO KEY UPDATE;
        WITH ended AS (
            UPDATE {s}.flows f SET state = 6, due_us = NULL, finished_us = v_now, reason = p_reason, result = p_told,
                commit_number = 0, waiting = 0, stalled_by = NULL, again = NULL, wake_us = NULL, wake_channels = NULL
            WHERE f.key = ANY (v_level) AND f.state NOT IN (4, 5, 6)
                AND (f.cleanup = 0 OR f.cleanup = 1 AND f.records >= 16777213 OR p_at_once AND f.key = v_key)
            RETURNING f.key
        ) SELECT coalesce(array_agg(e.key), '{}') INTO v_ended FROM ended e;
        -- Whoever runs one may be in the middle of something.
        WITH kept AS (
            UPDATE {s}.flows f SET state = 1, due_us = CASE WHEN f.state = 2 THEN f.due_us ELSE v_now END,
                records = f.records + 1, deliveries = 0, commit_number = 0, commit_answer = 0, reason = NULL,
                stalled_by = NULL, wake_us = NULL, wake_channels = NULL, cleanup = 2
            WHERE f.key = ANY (v_level) AND f.state NOT IN (4, 5, 6) AND f.cleanup = 1 RETURNING f.key, f.records
        ), recorded AS (
            INSERT INTO {s}.records (k, at_us, started_us, args_hash, attempt, kind, phase, path, name, payload)
            SELECT k.key << 24 | k.records, v_now, v_now, 0, 0, 8, 3, '0', 'cancelled', p_told FROM kept k
        ) SELECT coalesce(array_agg(k.key), '{}') INTO v_kept FROM kept k;
        EXIT WHEN v_ended = '{}' AND v_kept = '{}';
        v_has_ended := v_has_ended OR v_key = ANY (v_ended);
        woken := woken OR v_kept <> '{}';
        DELETE FROM {s}.messages m WHERE m.flow = ANY (v_ended);
        v_ended := v_ended || v_kept;
        changed := changed || ARRAY(SELECT a.id FROM {s}.facts a WHERE a.key = ANY (v_ended));
        v_level := ARRAY(
            SELECT c.key FROM {s}.facts a CROSS JOIN LATERAL (
                SELECT c.key FROM {s}.facts c
                WHERE c.parent_id = a.id AND c.key + 0 > a.key AND c.parent_path IS NOT NULL AND NOT c.detached OFFSET 0) c
            WHERE a.key = ANY (v_ended));
    END LOOP;
    SELECT * INTO v_parent FROM {s}.facts a WHERE a.key = v_key;
    IF v_has_ended AND v_parent.parent_id IS NOT NULL AND NOT v_parent.detached THEN
        woken := coalesce({s}.tell(v_now, v_key, v_parent.parent_id, v_parent.parent_path, 3::smallint, p_told), false)
            OR woken;
        changed := changed || v_parent.parent_id;
    END IF;
END $$;

-- Takes back what a child has told its parent of its end; both are locked.
CREATE FUNCTION {s}.withdraw_end(p_child bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_facts {s}.facts;
    v_parent bigint;
    v_gone integer;
BEGIN
    SELECT * INTO v_facts FROM {s}.facts a WHERE a.key = p_child;
    SELECT a.key INTO v_parent FROM {s}.facts a
    WHERE a.id = v_facts.parent_id AND a.key + 0 < p_child AND a.run_key < p_child AND NOT v_facts.detached;
    IF v_parent IS NOT NULL THEN
        DELETE FROM {s}.messages m WHERE m.flow = v_parent AND m.channel = 'child'
            AND m.outcome IS NOT NULL AND m.reference = v_facts.parent_path || ' ' || v_facts.id;
        GET DIAGNOSTICS v_gone = ROW_COUNT;
        IF v_gone > 0 THEN
            UPDATE {s}.flows f SET waiting = f.waiting - v_gone WHERE f.key = v_parent;
        END IF;
    END IF;
END $$;

-- Takes out of the mailbox of a failed flow, which is locked, the ends of children that it is to hear anew: of the
-- calls that it makes again, and of those that have failed and are scheduled again, which are returned.
CREATE FUNCTION {s}.withdraw_failures(p_key bigint) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_flow {s}.flows;
    v_id text;
    v_run_key bigint;
    v_again text[];
    v_told text[];
    v_failed bigint[];
    v_calls text[];
    v_gone integer;
BEGIN
    SELECT * INTO v_flow FROM {s}.flows f WHERE f.key = p_key;
    IF v_flow.state <> 5 OR v_flow.waiting = 0 THEN
        RETURN '{}';
    END IF;
    v_again := coalesce(string_to_array(v_flow.again, ' '), '{}');
    v_told := ARRAY(
        SELECT m.reference FROM {s}.messages m
        WHERE m.flow = p_key AND m.channel = 'child' AND m.outcome = 2
            AND split_part(m.reference, ' ', 1) <> ALL (v_again));
    v_failed := '{}';
    v_calls := '{}';
    IF v_told <> '{}' THEN
        SELECT a.id, greatest(a.key, a.run_key) INTO v_id, v_run_key FROM {s}.facts a WHERE a.key = p_key;
        -- The last child of a call is the one that it waits for. Without the child, its end is all there is of it.
        SELECT coalesce(array_agg(last.key), '{}'), coalesce(array_agg(last.parent_path || ' ' || last.id), '{}') INTO v_failed, v_calls
        FROM (
            SELECT DISTINCT ON (c.parent_path) c.key, c.id, c.parent_path FROM {s}.facts c
            WHERE c.parent_id = v_id AND c.key + 0 > v_run_key AND c.parent_path IS NOT NULL AND NOT c.detached
                AND c.parent_path = ANY (ARRAY(SELECT split_part(t.origin, ' ', 1) FROM unnest(v_told) t (origin)))
            ORDER BY c.parent_path, c.key DESC) last
        JOIN {s}.flows f ON f.key = ANY (ARRAY[last.key])
        WHERE f.state = 5 AND last.parent_path || ' ' || last.id = ANY (v_told);
    END IF;
    DELETE FROM {s}.messages m WHERE m.flow = p_key AND m.channel = 'child'
        AND (m.outcome IS NOT NULL AND split_part(m.reference, ' ', 1) = ANY (v_again) OR m.outcome = 2 AND m.reference = ANY (v_calls));
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    IF v_gone > 0 THEN
        UPDATE {s}.flows f SET waiting = f.waiting - v_gone WHERE f.key = p_key;
    END IF;
    RETURN v_failed;
END $$;

-- Schedules a flow again that is locked.
CREATE FUNCTION {s}.schedule_one_again(p_now bigint, p_key bigint) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_flow {s}.flows;
    v_facts {s}.facts;
    v_gone integer;
    v_number integer := 0;
    v_k bigint;
BEGIN
    SELECT * INTO v_flow FROM {s}.flows f WHERE f.key = p_key;
    SELECT * INTO v_facts FROM {s}.facts a WHERE a.key = p_key;
    IF v_flow.again IS NOT NULL THEN
        DELETE FROM {s}.records r WHERE r.k BETWEEN p_key << 24 AND p_key << 24 | 16777215
            AND r.path = ANY (string_to_array(v_flow.again, ' '));
        GET DIAGNOSTICS v_gone = ROW_COUNT;
        IF v_gone > 0 THEN
            -- Downwards, in the order of the numbers: the place is free.
            FOR v_k IN SELECT r.k FROM {s}.records r WHERE r.k BETWEEN p_key << 24 AND p_key << 24 | 16777215 ORDER BY r.k
            LOOP
                v_number := v_number + 1;
                IF v_k <> p_key << 24 | v_number THEN
                    UPDATE {s}.records r SET k = p_key << 24 | v_number WHERE r.k = v_k;
                END IF;
            END LOOP;
            v_flow.records := v_number;
        END IF;
    END IF;
    UPDATE {s}.flows f SET state = 1, due_us = p_now, records = v_flow.records, deliveries = 0, finished_us = NULL,
        deadline_us = {s}.later(p_now, CASE WHEN f.deadline_us < v_facts.start_us THEN 0
            ELSE f.deadline_us - v_facts.start_us END),
        reason = NULL, stalled_by = NULL, again = NULL, result = NULL, wake_us = NULL, wake_channels = NULL
    WHERE f.key = p_key;
END $$;

-- Schedules a flow again that has failed or come to a standstill, and is locked with its parent, and with it the
-- descendants that it would fail of. Answers with the ids of all of them.
CREATE FUNCTION {s}.schedule_again(p_now bigint, p_key bigint) RETURNS text[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_all bigint[] := '{}';
    v_level bigint[] := ARRAY[p_key];
    v_below bigint[];
    v_key bigint;
BEGIN
    PERFORM {s}.withdraw_end(p_key);
    WHILE v_level <> '{}' LOOP
        -- No failed child changes while its parent is locked.
        PERFORM FROM {s}.flows f WHERE f.key = ANY (v_level) ORDER BY f.key FOR NO KEY UPDATE;
        v_below := '{}';
        FOREACH v_key IN ARRAY v_level LOOP
            v_below := v_below || {s}.withdraw_failures(v_key);
            PERFORM {s}.schedule_one_again(p_now, v_key);
        END LOOP;
        v_all := v_all || v_level;
        v_level := v_below;
    END LOOP;
    RETURN ARRAY(SELECT a.id FROM {s}.facts a WHERE a.key = ANY (v_all));
END $$;

-- Answers -1 unknown, 0 scheduled, with the flows that have changed, and its state when there is nothing to retry.
CREATE FUNCTION {s}.retry(p_now bigint, p_id text, OUT answer integer, OUT changed text[])
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_key bigint := {s}.lock_with_parent(p_id);
BEGIN
    SELECT f.state INTO answer FROM {s}.flows f WHERE f.key = v_key;
    IF answer IS NULL THEN
        answer := -1;
    ELSIF answer IN (5, 7) THEN
        answer := 0;
        changed := {s}.schedule_again({s}.now_us(p_now), v_key);
    END IF;
END $$;

-- Takes a flow back to its first `p_keep` records, without those of the calls `p_again`. Answers -1 unknown, -2 it is not
-- as it was seen, -3 the child in `changed` has something to clean up, else 0 with the flows that have changed.
CREATE FUNCTION {s}.reset(p_now bigint, p_id text, p_run integer, p_epoch bigint, p_records integer, p_keep integer,
    p_again text, p_children text[], p_reason text, m_seq integer[], m_at bigint[], m_channel text[], m_payload bytea[],
    m_outcome smallint[], OUT answer integer, OUT changed text[])
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_key bigint := {s}.lock_with_parent(p_id);
    v_now bigint;
    v_flow {s}.flows;
    v_facts {s}.facts;
    v_child bigint;
    v_id text;
BEGIN
    SELECT * INTO v_flow FROM {s}.flows f WHERE f.key = v_key;
    IF v_flow.key IS NULL THEN
        answer := -1;
        RETURN;
    END IF;
    SELECT * INTO v_facts FROM {s}.facts a WHERE a.key = v_key;
    IF v_facts.run <> p_run OR v_flow.fence >> 25 <> p_epoch OR v_flow.records <> p_records THEN
        answer := -2;
        RETURN;
    END IF;
    IF p_children <> '{}' THEN
        PERFORM FROM {s}.flows f WHERE f.key = ANY (ARRAY(
            SELECT a.key FROM {s}.facts a WHERE a.id = ANY (p_children) AND a.parent_id = p_id AND NOT a.detached
                AND a.key + 0 > greatest(v_key, v_facts.run_key)))
        ORDER BY f.key FOR NO KEY UPDATE;
        SELECT a.id INTO v_id FROM unnest(p_children) WITH ORDINALITY c (id, place) JOIN {s}.facts a ON a.id = ANY (ARRAY[c.id])
        JOIN {s}.flows f ON f.key = ANY (ARRAY[a.key])
        WHERE a.parent_id = p_id AND NOT a.detached AND a.key + 0 > greatest(v_key, v_facts.run_key)
            AND f.state NOT IN (4, 5, 6) AND f.cleanup > 0
        ORDER BY c.place LIMIT 1;
        IF v_id IS NOT NULL THEN
            answer := -3;
            changed := ARRAY[v_id];
            RETURN;
        END IF;
    END IF;
    v_now := {s}.now_us(p_now);
    answer := 0;
    changed := ARRAY[p_id];
    PERFORM {s}.withdraw_end(v_key);
    FOREACH v_id IN ARRAY p_children LOOP
        SELECT a.key INTO v_child FROM {s}.facts a
        WHERE a.id = v_id AND a.parent_id = p_id AND NOT a.detached
            AND a.key + 0 > greatest(v_key, v_facts.run_key);
        IF v_child IS NOT NULL THEN
            -- The end of the flow's own child is told to it, and withdrawn below.
            changed := changed || coalesce((SELECT c.changed FROM {s}.cancel(v_now, v_id, p_reason, convert_to(p_reason, 'UTF8'), true) c), '{}') || v_id;
            PERFORM FROM {s}.flows f WHERE f.key = v_child FOR UPDATE;
            PERFORM {s}.forget(ARRAY[v_child]);
        END IF;
    END LOOP;
    DELETE FROM {s}.records r WHERE r.k > (v_key << 24 | p_keep) AND r.k <= (v_key << 24 | 16777215);
    INSERT INTO {s}.messages (flow, seq, at_us, outcome, channel, reference, payload)
    SELECT v_key, m.seq, m.at_us, m.outcome, m.channel, NULL, m.payload
    FROM unnest(m_seq, m_at, m_channel, m_payload, m_outcome) AS m (seq, at_us, channel, payload, outcome)
    ON CONFLICT (flow, seq) DO NOTHING;
    DELETE FROM {s}.messages m WHERE m.flow = v_key AND m.channel = 'child' AND m.outcome IS NOT NULL;
    UPDATE {s}.flows f SET records = p_keep, again = p_again, emitted = 0, cleanup = least(f.cleanup, 1), commit_number = 0, commit_answer = 0,
        fence = ((f.fence >> 25) + 1) << 25,
        messages = greatest(f.messages, (SELECT max(m.seq) FROM unnest(m_seq) AS m (seq))),
        waiting = (SELECT count(*) FROM {s}.messages m WHERE m.flow = v_key)
    WHERE f.key = v_key;
    PERFORM {s}.schedule_one_again(v_now, v_key);
END $$;

-- ---- run -------------------------------------------------------------------------------------------------------

-- Locks these flows and the parents that hear of them, in their order.
CREATE FUNCTION {s}.lock_all(p_keys bigint[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM FROM {s}.flows f WHERE f.key = ANY (p_keys || ARRAY(
        SELECT up.key FROM {s}.facts a JOIN {s}.facts up ON up.id = ANY (ARRAY[a.parent_id]) AND up.key + 0 < a.key
        WHERE a.key = ANY (p_keys) AND NOT a.detached))
    ORDER BY f.key FOR NO KEY UPDATE;
END $$;

-- Starts a child of a flow that is locked, and whose present run began at `p_run_key`. Answers 0 started or left alone, 1 resumed, else how it is refused: 2 the
-- id belongs to another flow, 3 to a child of an earlier flow, 4 to the call's own child that has another value.
CREATE FUNCTION {s}.start_child(p_now bigint, p_run_key bigint, p_parent_id text, p_id text, p_lane integer,
    p_start bigint, p_delay bigint, p_timeout bigint, p_path text, p_detached boolean, p_input bytea,
    p_labels text)
RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_key bigint;
    v_start bigint := coalesce(p_start, {s}.later(p_now, coalesce(p_delay, 0)));
    v_taken {s}.facts;
    v_flow {s}.flows;
BEGIN
    LOOP
        v_key := nextval('{s}.flow_key');
        INSERT INTO {s}.facts (key, id, created_us, start_us, detached, parent_id, parent_path, labels, input)
        VALUES (v_key, p_id, p_now, v_start, p_detached, p_parent_id, p_path, p_labels, p_input)
        ON CONFLICT (id) DO NOTHING;
        IF FOUND THEN
            INSERT INTO {s}.flows (key, lane, due_us, deadline_us, attached)
            VALUES (v_key, p_lane, v_start, {s}.later(greatest(v_start, p_now), p_timeout), NOT p_detached);
            IF p_labels IS NOT NULL THEN
                INSERT INTO {s}.labels (flow, name, value) SELECT v_key, e.name, e.value FROM {s}.each_label(p_labels) e;
            END IF;
            RETURN 0;
        END IF;
        SELECT * INTO v_taken FROM {s}.facts a WHERE a.id = p_id;
        SELECT * INTO v_flow FROM {s}.flows f WHERE f.key = v_taken.key FOR UPDATE;
        -- It may be gone by now.
        CONTINUE WHEN NOT FOUND;
        IF v_taken.parent_id IS DISTINCT FROM p_parent_id OR v_taken.parent_path IS DISTINCT FROM p_path THEN
            RETURN 2;
        ELSIF v_taken.key > p_run_key AND v_taken.input = p_input AND EXISTS (
            SELECT FROM {s}.lanes has JOIN {s}.lanes wants ON wants.flow_type = has.flow_type AND wants.version = has.version
            WHERE has.lane = v_flow.lane AND wants.lane = p_lane)
        THEN
            IF p_detached THEN
                RETURN 0;
            ELSIF v_flow.state = 5 THEN
                PERFORM {s}.schedule_again(p_now, v_taken.key);
                RETURN 1;
            ELSIF v_flow.state IN (4, 6) AND NOT v_taken.detached THEN
                -- It may have told it before, while its parent had failed.
                PERFORM {s}.withdraw_end(v_taken.key);
                PERFORM {s}.tell(p_now, v_taken.key, p_parent_id, p_path, CASE v_flow.state WHEN 4 THEN 1 ELSE 3 END::smallint,
                    coalesce(v_flow.result, ''));
            END IF;
            RETURN 0;
        ELSIF v_flow.state NOT IN (4, 5, 6) THEN
            RETURN CASE WHEN v_taken.key > p_run_key THEN 4 ELSE 3 END;
        END IF;
        PERFORM {s}.withdraw_end(v_taken.key);
        PERFORM {s}.forget(ARRAY[v_taken.key]);
    END LOOP;
END $$;

-- Adds items to the feeds of a flow that is locked.
CREATE FUNCTION {s}.emit(p_key bigint, p_epoch bigint, i_feed text[], i_last boolean[], i_at bigint[], i_path text[],
    i_attempt bigint[], i_payload bytea[])
RETURNS void LANGUAGE sql VOLATILE AS $$
    INSERT INTO {s}.items (flow, feed, seq, at_us, run, epoch, path, attempt, payload)
    SELECT p_key, i.feed, coalesce(had.seq, 0) + row_number() OVER (PARTITION BY i.feed ORDER BY i.place), i.at_us, a.run,
        p_epoch, i.path, i.attempt, i.payload
    FROM unnest(i_feed, i_at, i_path, i_attempt, i_payload) WITH ORDINALITY
        AS i (feed, at_us, path, attempt, payload, place)
    JOIN {s}.facts a ON a.key = ANY (ARRAY[p_key])
    CROSS JOIN LATERAL (SELECT max(x.seq) AS seq FROM {s}.items x WHERE x.flow = p_key AND x.feed = i.feed) had;
    DELETE FROM {s}.items x
    USING (SELECT i.feed, max(i.place) AS place FROM unnest(i_feed, i_last) WITH ORDINALITY AS i (feed, is_last, place)
        WHERE i.is_last GROUP BY i.feed) l
    WHERE x.flow = p_key AND x.feed = l.feed AND x.seq < (
        SELECT max(y.seq) FROM {s}.items y WHERE y.flow = p_key AND y.feed = l.feed) - (
        SELECT count(*) FROM unnest(i_feed) WITH ORDINALITY AS later (feed, place)
        WHERE later.feed = l.feed AND later.place > l.place);
$$;

-- Applies one commit. Answers as the columns `commit_answer` do; -1 the lease is lost, -2 the number does not follow
-- on `last`, -3 the records do not follow on `last`, -5 a heartbeat names none of the records up to `last`, -4 it would not
-- be refused. `told` is the parent that was told.
-- `p_doomed`: something else is wrong with it. `p_locked`: the flow and its parent are locked already.
CREATE FUNCTION {s}.commit_one(p_now bigint, p_key bigint, p_id text, p_fence bigint, p_number bigint,
    p_doomed boolean, p_locked boolean, r_seq integer[], r_at bigint[], r_started bigint[], r_due bigint[], r_hash bigint[],
    r_attempt bigint[], r_kind smallint[], r_phase smallint[], r_path text[], r_name text[], r_reference text[],
    r_payload bytea[], p_consumed integer[], c_id text[], c_quoted text[], c_lane integer[], c_start bigint[],
    c_delay bigint[], c_timeout bigint[], c_path text[], c_detached boolean[], c_input bytea[],
    c_labels text[], p_next smallint, p_wake bigint, p_channels text, p_result bytea, p_reason text, p_build text,
    p_again text, p_labels text, p_emitted integer, i_feed text[], i_last boolean[], i_at bigint[], i_path text[],
    i_attempt bigint[], i_payload bytea[], b_seq integer[], b_at bigint[], b_payload bytea[], p_cleanup smallint,
    p_heard integer[], OUT answer integer, OUT last bigint, OUT told text, OUT queued boolean)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now bigint;
    v_flow {s}.flows;
    v_parent {s}.facts;
    v_consumed integer := 0;
    v_channels text[] := (string_to_array(p_channels, E'\n'))[2:];
    v_due bigint;
    v_deliveries integer;
    v_records integer;
    v_child integer;
    v_run_key bigint;
BEGIN
    IF p_next IN (4, 5, 6) AND NOT p_locked AND (SELECT f.attached FROM {s}.flows f WHERE f.key = p_key) THEN
        PERFORM {s}.lock_all(ARRAY[p_key]);
    END IF;
    SELECT * INTO v_flow FROM {s}.flows f WHERE f.key = p_key FOR NO KEY UPDATE;
    v_now := {s}.now_us(p_now);
    queued := false;
    IF NOT FOUND OR v_flow.fence <> p_fence THEN
        answer := -1;
        RETURN;
    ELSIF v_flow.commit_number > 0 AND v_flow.commit_number = p_number THEN
        answer := v_flow.commit_answer;
        -- Whoever applied it may have died before it told anybody.
        queued := true;
        IF v_flow.attached AND v_flow.state IN (4, 5, 6) THEN
            SELECT a.parent_id INTO told FROM {s}.facts a WHERE a.key = p_key;
        END IF;
        RETURN;
    ELSIF v_flow.state <> 2 THEN
        answer := -1;
        RETURN;
    ELSIF v_flow.commit_number + 1 <> p_number THEN
        answer := -2;
        last := v_flow.commit_number;
        RETURN;
    ELSIF EXISTS (SELECT FROM unnest(r_seq) WITH ORDINALITY r (seq, i) WHERE r.seq <> v_flow.records + r.i) THEN
        answer := -3;
        last := v_flow.records;
        RETURN;
    ELSIF EXISTS (SELECT FROM unnest(b_seq) b (seq) WHERE b.seq NOT BETWEEN 1 AND v_flow.records) THEN
        answer := -5;
        last := v_flow.records;
        RETURN;
    ELSIF p_doomed THEN
        answer := -4;
        RETURN;
    END IF;

    -- From here on nothing is refused.
    v_records := v_flow.records + cardinality(r_seq);
    v_deliveries := CASE WHEN r_seq = '{}' THEN v_flow.deliveries ELSE 0 END;
    IF r_seq <> '{}' AND p_next <> 8 THEN
        INSERT INTO {s}.records (k, at_us, started_us, due_us, args_hash, attempt, kind, phase, path, name, reference,
            payload)
        SELECT p_key << 24 | r.seq, r.at_us, r.started_us, r.due_us, r.args_hash, r.attempt, r.kind, r.phase, r.path,
            r.name, r.reference, r.payload
        FROM unnest(r_seq, r_at, r_started, r_due, r_hash, r_attempt, r_kind, r_phase, r_path, r_name, r_reference,
            r_payload) r (seq, at_us, started_us, due_us, args_hash, attempt, kind, phase, path, name, reference, payload);
    END IF;
    FOR i IN 1 .. cardinality(b_seq) LOOP
        UPDATE {s}.records r SET at_us = b_at[i], payload = b_payload[i] WHERE r.k = p_key << 24 | b_seq[i];
    END LOOP;
    IF p_consumed <> '{}' THEN
        DELETE FROM {s}.messages m WHERE m.flow = p_key AND m.seq = ANY (p_consumed);
        GET DIAGNOSTICS v_consumed = ROW_COUNT;
    END IF;
    IF p_labels IS NOT NULL THEN
        PERFORM {s}.set_labels(p_key, p_labels);
    END IF;
    IF i_feed <> '{}' THEN
        PERFORM {s}.emit(p_key, v_flow.fence >> 25, i_feed, i_last, i_at, i_path, i_attempt, i_payload);
    END IF;
    IF p_emitted IS NOT NULL THEN
        UPDATE {s}.flows f SET emitted = p_emitted WHERE f.key = p_key;
    END IF;
    IF p_cleanup > v_flow.cleanup THEN
        v_flow.cleanup := p_cleanup;
        UPDATE {s}.flows f SET cleanup = p_cleanup WHERE f.key = p_key;
    END IF;
    IF c_id <> '{}' THEN
        SELECT greatest(a.key, a.run_key) INTO v_run_key FROM {s}.facts a WHERE a.key = p_key;
    END IF;
    FOR i IN 1 .. cardinality(c_id) LOOP
        v_child := {s}.start_child(v_now, v_run_key, p_id, c_id[i], c_lane[i], c_start[i], c_delay[i], c_timeout[i],
            c_path[i], c_detached[i], c_input[i], c_labels[i]);
        queued := true;
        IF v_child > 1 THEN
            PERFORM {s}.deliver(v_now, p_key, 'child', 4::smallint, c_path[i] || ' ' || c_id[i], convert_to(
                format('the id %s belongs to %s', c_quoted[i], CASE v_child
                    WHEN 2 THEN 'a flow that this call did not start'
                    WHEN 3 THEN 'a child of an earlier flow or run that has not ended'
                    ELSE 'this call''s child, which has not ended and runs with another value' END), 'UTF8'));
        END IF;
    END LOOP;

    answer := 0;
    IF p_next = 1 THEN
        -- A deadline wakes a flow just as its own instant does.
        v_due := least(p_wake, CASE WHEN v_flow.cleanup < 2 THEN v_flow.deadline_us END);
        IF v_due <= v_now OR EXISTS (
            SELECT FROM unnest(v_channels, p_heard) c (name, heard) CROSS JOIN LATERAL (
                SELECT FROM {s}.messages m
                WHERE m.flow = p_key AND m.channel = c.name AND m.seq > coalesce(c.heard, 0) LIMIT 1) m)
        THEN
            answer := 2;
        ELSE
            answer := 1;
            queued := queued OR v_due IS NOT NULL;
            UPDATE {s}.flows f SET state = 3, due_us = v_due, commit_number = p_number, commit_answer = 1,
                records = v_records, deliveries = 0, waiting = f.waiting - v_consumed, wake_us = p_wake,
                wake_channels = v_channels
            WHERE f.key = p_key;
            RETURN;
        END IF;
    ELSIF p_next = 7 THEN
        UPDATE {s}.flows f SET state = 7, due_us = NULL, commit_number = p_number, commit_answer = 0,
            records = v_records, deliveries = v_deliveries, waiting = f.waiting - v_consumed, reason = p_reason,
            stalled_by = p_build
        WHERE f.key = p_key;
        RETURN;
    ELSIF p_next = 8 THEN
        DELETE FROM {s}.records r WHERE r.k BETWEEN p_key << 24 AND p_key << 24 | 16777215;
        DELETE FROM {s}.effects e WHERE e.flow = p_key;
        -- A later run hears of no child that an earlier one has started.
        DELETE FROM {s}.messages m WHERE m.flow = p_key AND m.channel = 'child' AND m.outcome IS NOT NULL;
        GET DIAGNOSTICS v_child = ROW_COUNT;
        -- The key of a flow that never is: what the next run starts gets greater ones.
        UPDATE {s}.facts a SET run = a.run + 1, run_key = nextval('{s}.flow_key'), run_input = p_result
        WHERE a.key = p_key;
        queued := true;
        UPDATE {s}.flows f SET state = 1, due_us = v_now, commit_number = p_number, commit_answer = 0, records = 0,
            emitted = 0, cleanup = 0, deliveries = 0, waiting = f.waiting - v_consumed - v_child, started_us = NULL, worker = NULL
        WHERE f.key = p_key;
        RETURN;
    ELSIF p_next IN (4, 5, 6) THEN
        -- A failed flow may go on, and finds its messages where they were.
        IF p_next <> 5 THEN
            DELETE FROM {s}.messages m WHERE m.flow = p_key;
        END IF;
        UPDATE {s}.flows f SET state = p_next, due_us = NULL, finished_us = v_now, commit_number = p_number,
            commit_answer = 0, records = v_records, deliveries = v_deliveries, reason = p_reason, result = p_result,
            again = p_again, waiting = CASE WHEN p_next <> 5 THEN 0 ELSE f.waiting - v_consumed END
        WHERE f.key = p_key;
        IF v_flow.attached THEN
            SELECT * INTO v_parent FROM {s}.facts a WHERE a.key = p_key;
            told := v_parent.parent_id;
            queued := coalesce({s}.tell(v_now, p_key, v_parent.parent_id, v_parent.parent_path,
                (p_next - 3)::smallint, p_result), false) OR queued;
        END IF;
        RETURN;
    END IF;
    UPDATE {s}.flows f SET commit_number = p_number, commit_answer = answer, records = v_records,
        deliveries = v_deliveries, waiting = f.waiting - v_consumed
    WHERE f.key = p_key;
END $$;
