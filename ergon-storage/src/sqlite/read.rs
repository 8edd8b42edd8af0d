//! Answers to questions; nothing here changes the log.

use std::{collections::BTreeMap, fmt::Write as _};

use rusqlite::{Connection, OptionalExtension, params, params_from_iter, types::Value};

use super::{
    error::{Fault, Outcome},
    lanes::Lanes,
    row::{self, INPUT, RESULT, SEQ_LAST, slot},
    statements::{CHANNEL_MESSAGES, FLOW_BY_ID, FLOW_COLUMNS, ITEMS, KEY_BY_ID, MESSAGES, PAYLOAD, RECORDS},
};
use crate::{
    Channel, Count, Cursor, Error, Feed, Filter, FlowId, FlowPage, FlowRecord, FlowState, Item, Message, Record,
    Timestamp,
};

/// A connection to read with, within a read transaction.
pub(super) struct Reading<'r> {
    pub(super) conn: &'r Connection,
    pub(super) lanes: &'r mut Lanes,
}

pub(super) fn flow(on: &mut Reading<'_>, id: &FlowId) -> Outcome<Option<FlowRecord>> {
    let mut statement = on.conn.prepare_cached(FLOW_BY_ID)?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let flow = row::flow(row, on.conn, on.lanes)?;
    let mut payload = on.conn.prepare_cached(PAYLOAD)?;
    let mut payload = |seq| -> Outcome<_> {
        let mut rows = payload.query([slot(flow.key, seq)])?;
        rows.next()?.map(|row| row::bytes(row, 0)).transpose()
    };
    let input = payload(INPUT)?.ok_or_else(|| Fault::Unreadable(format!("the input of flow {id:?} is missing")))?;
    let result = payload(RESULT)?.unwrap_or_default();
    Ok(Some(FlowRecord { info: flow.info, input, result }))
}

fn key(on: &Reading<'_>, id: &FlowId) -> Outcome<i64> {
    let key = on.conn.prepare_cached(KEY_BY_ID)?.query_row([id.as_str()], |row| row.get(0)).optional()?;
    Ok(key.ok_or_else(|| Error::not_found(id))?)
}

pub(super) fn history(on: &Reading<'_>, id: &FlowId, after: u32, limit: usize) -> Outcome<Vec<Record>> {
    let key = key(on, id)?;
    let from = after.saturating_add(1);
    let to = u32::try_from(limit).unwrap_or(u32::MAX).saturating_add(after).min(Record::SEQ_MAX);
    if from > to {
        return Ok(Vec::new());
    }
    let mut statement = on.conn.prepare_cached(RECORDS)?;
    let mut rows = statement.query([slot(key, from), slot(key, to)])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(row::record(row)?);
    }
    Ok(records)
}

pub(super) fn messages(
    on: &Reading<'_>,
    id: &FlowId,
    channels: &[Channel],
    after: u32,
    limit: usize,
) -> Outcome<Vec<Message>> {
    let key = key(on, id)?;
    let mut messages = Vec::new();
    if after >= SEQ_LAST {
        return Ok(messages);
    }
    let (from, to) = (slot(key, after + 1), slot(key, SEQ_LAST));
    let rows_max = i64::try_from(limit).unwrap_or(i64::MAX);
    if channels.is_empty() {
        let mut statement = on.conn.prepare_cached(MESSAGES)?;
        let mut rows = statement.query([from, to, rows_max])?;
        while let Some(row) = rows.next()? {
            messages.push(row::message(row)?);
        }
        return Ok(messages);
    }
    // The first `limit` of all are among the first `limit` of each.
    let mut statement = on.conn.prepare_cached(CHANNEL_MESSAGES)?;
    for channel in channels {
        let mut rows = statement.query(params![from, to, rows_max, channel.as_str()])?;
        while let Some(row) = rows.next()? {
            messages.push(row::message(row)?);
        }
    }
    messages.sort_unstable_by_key(|message| message.seq);
    messages.dedup_by_key(|message| message.seq);
    messages.truncate(limit);
    Ok(messages)
}

pub(super) fn items(on: &Reading<'_>, id: &FlowId, feed: &Feed, after: u32, limit: usize) -> Outcome<Vec<Item>> {
    let key = key(on, id)?;
    let rows_max = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = on.conn.prepare_cached(ITEMS)?;
    let mut rows = statement.query(params![key, feed.as_str(), after, rows_max])?;
    let mut items = Vec::new();
    while let Some(row) = rows.next()? {
        items.push(row::item(row)?);
    }
    Ok(items)
}

/// What selects the flows of a filter after a key: all that follows on the columns, and its values.
fn select(on: &mut Reading<'_>, filter: &Filter, after: i64) -> Outcome<(String, Vec<Value>)> {
    let mut values = vec![Value::from(after)];
    let mut bind = |value: Value| {
        values.push(value);
        values.len()
    };
    let mut labels = filter.labels.iter();
    let is_about_due = filter.is_about_due();
    let mut sql = match labels.clone().next() {
        // By their lanes, which are named below. The sign keeps the planner from going by the keys.
        _ if is_about_due => " FROM flows INDEXED BY flows_due WHERE +key > ?1".to_owned(),
        // In the order of the keys as it is, and of flows with this label alone.
        Some((name, value)) => {
            let (name, value) = (bind(name.to_string().into()), bind(value.to_string().into()));
            labels.next();
            format!(
                " FROM flow_labels CROSS JOIN flows ON key = flow_labels.flow \
                 WHERE flow_labels.name = ?{name} AND flow_labels.value = ?{value} AND flow_labels.flow > ?1"
            )
        }
        None => " FROM flows WHERE key > ?1".to_owned(),
    };
    for (name, value) in labels {
        let (name, value) = (bind(name.to_string().into()), bind(value.to_string().into()));
        _ = write!(
            sql,
            " AND EXISTS (SELECT 1 FROM flow_labels l WHERE l.flow = key AND l.name = ?{name} AND l.value = ?{value})"
        );
    }
    if let Some(parent) = &filter.parent {
        _ = write!(sql, " AND parent_id = ?{}", bind(parent.as_str().to_owned().into()));
    }
    if let Some(text) = &filter.reason {
        _ = write!(sql, " AND instr(reason, ?{}) > 0", bind(text.to_string().into()));
    }
    for (column, compared, at) in [
        ("created_us", ">=", filter.created_from),
        ("created_us", "<", filter.created_before),
        ("finished_us", ">=", filter.finished_from),
        ("finished_us", "<", filter.finished_before),
        ("due_us", ">=", filter.due_from),
        ("due_us", "<", filter.due_before),
    ] {
        if let Some(at) = at {
            _ = write!(sql, " AND {column} {compared} ?{}", bind(at.as_micros().into()));
        }
    }
    if !filter.states.is_empty() {
        add_in(&mut sql, "state", filter.states.iter().map(|state| i64::from(state.code())));
    }
    if filter.queue.is_some() || filter.flow_type.is_some() || is_about_due {
        on.lanes.load(on.conn)?;
        let lanes = on.lanes.keys_where(|lane| {
            filter.queue.as_ref().is_none_or(|queue| *queue == lane.queue)
                && filter.flow_type.as_ref().is_none_or(|flow_type| *flow_type == lane.flow_type)
        });
        // No lane has this number: SQLite goes by no index for none at all.
        add_in(&mut sql, "lane", lanes.into_iter().chain([0]));
    }
    Ok((sql, values))
}

pub(super) fn list(on: &mut Reading<'_>, filter: &Filter, after: Option<Cursor>, limit: usize) -> Outcome<FlowPage> {
    let after = after.map_or(0, |cursor| i64::try_from(cursor.number()).unwrap_or(i64::MAX));
    let (selected, values) = select(on, filter, after)?;
    let order = if filter.labels.is_empty() || filter.is_about_due() { "key" } else { "flow_labels.flow" };
    let sql = format!("{FLOW_COLUMNS}{selected} ORDER BY {order}");

    let mut statement = on.conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut page = FlowPage::default();
    let mut last = 0;
    while let Some(row) = rows.next()? {
        if page.flows.len() >= limit.max(1) {
            page.next = Some(Cursor::from_number(last));
            break;
        }
        match row::flow(row, on.conn, on.lanes) {
            Ok(flow) => {
                last = flow.key.cast_unsigned();
                page.flows.push(flow.info);
            }
            // It must not hide the others; asked for by its id it gives the error.
            Err(Fault::Unreadable(what)) => tracing::error!("a flow cannot be read and is not listed: {what}"),
            Err(fault) => return Err(fault),
        }
    }
    Ok(page)
}

/// Adds a condition on a column with few values, which are our own numbers.
pub(super) fn add_in(sql: &mut String, column: &str, values: impl Iterator<Item = i64>) {
    let values: Vec<String> = values.map(|value| value.to_string()).collect();
    sql.extend([" AND ", column, " IN (", &values.join(", "), ")"]);
}

pub(super) fn counts(on: &mut Reading<'_>, filter: &Filter) -> Outcome<Vec<Count>> {
    let (selected, values) = select(on, filter, 0)?;
    let sql = format!("SELECT lane, state, count(*), min(due_us){selected} GROUP BY lane, state");
    let mut statement = on.conn.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut counts = BTreeMap::new();
    while let Some(row) = rows.next()? {
        // Lanes differ in their priority too.
        let (Ok(lane), Ok(state)) = (on.lanes.get(on.conn, row.get(0)?), row::state(row, 1)) else { continue };
        let kind = (lane.queue.clone(), lane.flow_type.clone(), lane.version, state);
        let (flows, oldest): &mut (u64, Option<i64>) = counts.entry(kind).or_default();
        *flows += row.get::<_, i64>(2)?.cast_unsigned();
        *oldest = (*oldest).into_iter().chain(row.get::<_, Option<i64>>(3)?).min();
    }
    let count = |((queue, flow_type, version, state), (flows, oldest)): ((_, _, _, FlowState), (u64, Option<i64>))| {
        Count { queue, flow_type, version, state, flows, oldest_due_at: oldest.map(Timestamp::from_micros) }
    };
    Ok(counts.into_iter().map(count).collect())
}

#[cfg(test)]
mod tests {
    use super::{super::schema::open_in_memory, *};

    #[test]
    fn what_is_due_is_found_without_what_has_ended() {
        let conn = open_in_memory().unwrap();
        let lane = "INSERT INTO lanes (queue, flow_type, version, priority) VALUES ('q', 'A', 1, 0), ('q', 'B', 1, 0)";
        conn.execute_batch(lane).unwrap();
        let soon = Filter::all().with_label("of", "us").with_state(FlowState::Running).due_before(Timestamp::MAX);
        let (selected, values) = select(&mut Reading { conn: &conn, lanes: &mut Lanes::default() }, &soon, 0).unwrap();
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN SELECT key{selected} ORDER BY key")).unwrap();
        let plan = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
        let plan: Vec<String> = plan.collect::<rusqlite::Result<_>>().unwrap();
        assert_eq!(plan[0], "SEARCH flows USING INDEX flows_due (lane=? AND due_us<?)", "{plan:?}");
    }
}
