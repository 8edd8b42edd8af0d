//! Flows that come whole, and flows that are taken back.

use std::{collections::HashSet, sync::Arc};

use rusqlite::{OptionalExtension, params};

use super::{
    error::Outcome,
    lanes::Lane,
    mailbox, outside, queue,
    read::Reading,
    row::{self, ACCEPTED, INPUT, RESULT, slot},
    run::{self, Head},
    statements::PAYLOAD,
    upkeep,
    writer::Tx,
};
use crate::{
    CallPath, Cleanup, Error, Extras, Feed, FlowId, FlowState, Imported, Message, Record, Reset, Snapshot, Timestamp,
};

pub(super) fn extras(on: &Reading<'_>, id: &FlowId) -> Outcome<Option<Extras>> {
    let sql = "SELECT key, messages, again, stalled_by, run FROM flows WHERE id = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        let (key, received): (i64, u32) = (row.get(0)?, row.get(1)?);
        let (again, stalled_by): (Option<String>, Option<String>) = (row.get(2)?, row.get(3)?);
        Ok((key, received, again, stalled_by, row.get::<_, u32>(4)?))
    };
    let found = on.conn.prepare_cached(sql)?.query_row([id.as_str()], read).optional()?;
    let Some((key, received, again, stalled_by, run)) = found else { return Ok(None) };
    let mut accepted = None;
    if run > 1 {
        let mut statement = on.conn.prepare_cached(PAYLOAD)?;
        let mut rows = statement.query([slot(key, ACCEPTED)])?;
        accepted = rows.next()?.map(|row| row::bytes(row, 0)).transpose()?;
    }
    let texts = |sql: &str| -> Outcome<Vec<Arc<str>>> {
        let mut statement = on.conn.prepare_cached(sql)?;
        let texts = statement.query_map([key], |row| row.get::<_, Arc<str>>(0))?;
        Ok(texts.collect::<rusqlite::Result<_>>()?)
    };
    let keys = texts("SELECT key FROM message_keys WHERE flow = ?1 ORDER BY key")?;
    let feeds = texts("SELECT DISTINCT feed FROM items WHERE flow = ?1 ORDER BY feed")?;
    let feeds = feeds.iter().map(|feed| Feed::from_name(feed)).collect();
    let again = row::paths(again.as_deref())?;
    Ok(Some(Extras { accepted, received, keys, feeds, again, stalled_by: stalled_by.map(Arc::from) }))
}

/// Puts in a flow that was admitted.
pub(super) fn import(tx: &mut Tx<'_, '_>, snapshot: &Snapshot) -> Outcome<Imported> {
    let Snapshot { flow, extras, records, messages, items } = snapshot;
    let info = &flow.info;
    if outside::find(tx, &info.id)?.is_some() {
        return Ok(Imported::Taken);
    }
    let (queue, flow_type) = (Arc::clone(&info.queue), Arc::clone(&info.flow_type));
    let lane = Lane { queue, flow_type, version: info.version, priority: info.priority };
    let lane = queue::lane(tx, lane)?;
    let key = tx.next_key()?;
    let parent = info.parent.as_ref();
    let micros = |at: Option<Timestamp>| at.map(Timestamp::as_micros);
    let again = extras.again.iter().map(CallPath::to_string).collect::<Vec<_>>().join(" ");
    let sql = "INSERT INTO flows (key, id, lane, state, due_us, epoch, records, deliveries, messages, deadline_us, \
        parent_id, parent_path, detached, created_us, start_us, started_us, finished_us, worker, reason, stalled_by, \
        wake_us, wake_channels, again, run, emitted, labels, cleanup) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
        ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27)";
    tx.conn.prepare_cached(sql)?.execute(params![
        key,
        info.id.as_str(),
        lane,
        info.state.code(),
        micros(info.due_at),
        info.epoch.cast_signed(),
        info.records,
        info.deliveries,
        extras.received,
        micros(info.deadline_at),
        parent.map(|parent| parent.id.as_str()),
        parent.map(|parent| parent.path.to_string()),
        parent.is_some_and(|parent| parent.detached),
        info.created_at.as_micros(),
        info.start_at.as_micros(),
        micros(info.started_at),
        micros(info.finished_at),
        info.worker.as_deref(),
        info.reason.as_deref(),
        extras.stalled_by.as_deref(),
        micros(info.wake.at),
        row::channels_text(&info.wake.channels),
        (!again.is_empty()).then_some(again),
        info.run,
        info.emitted,
        (!info.labels.is_empty()).then(|| info.labels.to_lines()),
        info.cleanup.code(),
    ])?;
    queue::index_labels(tx, key, &info.labels)?;
    tx.st.insert_payload.execute(params![slot(key, INPUT), &flow.input[..]])?;
    if let Some(accepted) = &extras.accepted {
        tx.st.insert_payload.execute(params![slot(key, ACCEPTED), &accepted[..]])?;
    }
    run::keep_result(tx, key, &flow.result)?;
    run::write_records(tx, key, records)?;
    for message in messages {
        put_back(tx, key, message)?;
    }
    for message_key in &extras.keys {
        tx.st.insert_key.execute(params![key, &**message_key])?;
    }
    for (feed, items) in items {
        let sql = "INSERT INTO items (flow, feed, seq, at_us, run, epoch, path, attempt, payload) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let mut statement = tx.conn.prepare_cached(sql)?;
        for item in items {
            let (path, epoch) = (item.call.as_ref().map(CallPath::to_string), item.epoch.cast_signed());
            let (at, feed, payload) = (item.at.as_micros(), feed.as_str(), &item.payload[..]);
            statement.execute(params![key, feed, item.seq, at, item.run, epoch, path, item.attempt, payload])?;
        }
    }
    tx.hints.queue |= info.due_at.is_some();
    tx.hints.flows.push(info.id.clone());
    Ok(Imported::Created)
}

/// Puts a message into a mailbox under its number; one that is there is left alone.
fn put_back(tx: &Tx<'_, '_>, key: i64, message: &Message) -> Outcome<()> {
    let sql = "INSERT OR IGNORE INTO messages (k, channel, at_us, outcome, reference, payload) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    tx.conn.prepare_cached(sql)?.execute(params![
        slot(key, message.seq),
        message.channel.as_str(),
        message.at.as_micros(),
        message.child.map(crate::ChildOutcome::code),
        message.kept_origin(),
        &message.payload[..],
    ])?;
    Ok(())
}

pub(super) fn reset(tx: &mut Tx<'_, '_>, reset: &Reset) -> Outcome<()> {
    let now = tx.now();
    let key = outside::key(tx, &reset.flow)?;
    let sql = "SELECT run, epoch, records, deadline_us, start_us FROM flows WHERE key = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(((row.get(0)?, row.get(1)?, row.get(2)?), row.get::<_, Option<i64>>(3)?, row.get::<_, i64>(4)?))
    };
    let (seen, deadline_us, start_us): ((u32, i64, u32), _, _) = tx.conn.prepare_cached(sql)?.query_row([key], read)?;
    if seen != (reset.run, reset.epoch.cast_signed(), reset.records) {
        return Err(reset.conflict().into());
    }

    let head = Head::by_key(tx, key)?.ok_or_else(|| Error::not_found(&reset.flow))?;
    for child in &reset.children {
        let Some(child_key) = outside::find(tx, child)?.filter(|child| *child > head.run_key()) else { continue };
        let Some(child_head) = Head::by_key(tx, child_key)? else { continue };
        let is_own = child_head.parent().is_some_and(|parent| parent.id == reset.flow && !parent.detached);
        if is_own && !child_head.state().is_final() && child_head.cleanup() != Cleanup::None {
            return Err(reset.child_cleans_up(child).into());
        }
    }

    // From here on nothing is refused.
    if let Some(parent) = head.parent() {
        mailbox::withdraw_end(tx, (key, &reset.flow), parent)?;
    }
    for child in &reset.children {
        let Some(child_key) = outside::find(tx, child)?.filter(|child| *child > head.run_key()) else { continue };
        let Some(child_head) = Head::by_key(tx, child_key)? else { continue };
        if child_head.parent().is_some_and(|parent| parent.id == reset.flow && !parent.detached) {
            // The end of the flow's own child is told to it, and withdrawn below.
            outside::cancel(tx, child, Reset::REASON, outside::Ending::AtOnce)?;
            upkeep::forget(tx, child_key)?;
            tx.hints.flows.push(child.clone());
        }
    }
    let sql = "DELETE FROM records WHERE k BETWEEN ?1 AND ?2";
    tx.conn.prepare_cached(sql)?.execute([slot(key, reset.keep + 1), slot(key, Record::SEQ_MAX)])?;
    tx.conn.prepare_cached("DELETE FROM records WHERE k = ?1")?.execute([slot(key, RESULT)])?;
    let again: Vec<String> = reset.again.iter().map(CallPath::to_string).collect();
    let again: HashSet<&str> = again.iter().map(String::as_str).collect();
    let records = if again.is_empty() { reset.keep } else { outside::forget_calls(tx, key, reset.keep, &again)? };
    for message in &reset.messages {
        put_back(tx, key, message)?;
    }
    mailbox::withdraw_ends(tx, key)?;
    let last = reset.messages.iter().map(|message| message.seq).max().unwrap_or(0);
    let deadline_us = deadline_us.map(|deadline_us| {
        now.saturating_add(Timestamp::from_micros(deadline_us).since(Timestamp::from_micros(start_us))).as_micros()
    });
    let sql = "UPDATE flows SET state = ?2, due_us = ?3, owner = NULL, epoch = epoch + 1, commit_number = 0, \
        commit_answer = 0, records = ?4, deliveries = 0, messages = max(messages, ?5), emitted = 0, cleanup = min(cleanup, 1), finished_us = NULL, \
        reason = NULL, stalled_by = NULL, again = NULL, wake_us = NULL, wake_channels = NULL, deadline_us = ?6 \
        WHERE key = ?1";
    let values = params![key, FlowState::Scheduled.code(), now.as_micros(), records, last, deadline_us];
    tx.conn.prepare_cached(sql)?.execute(values)?;
    tx.hints.queue = true;
    tx.hints.flows.push(reset.flow.clone());
    Ok(())
}
