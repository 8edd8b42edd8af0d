//! Answers to questions; nothing here changes the log.

use std::{collections::BTreeMap, fmt::Write as _};

use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};

use super::{
    Inner,
    error::Remedy,
    pool::{Repeat, Role},
    row::{self, SEQ_LAST, get},
    statements::{CHILDREN, DUE, FLOW_COLUMNS, FLOWS, LABELLED, Statement},
    text::{escape, escape_line},
};
use crate::{
    Channel, Count, Cursor, Error, Feed, Filter, FlowId, FlowPage, FlowRecord, FlowState, Item, Message, Record,
    Result, Timestamp,
};

pub(super) async fn flow(log: &Inner, id: &FlowId) -> Result<Option<FlowRecord>> {
    let rows = log.pool.query(Role::Reads, Statement::Flow, &[&escape(id.as_str())], Repeat::Safe).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let lanes = log.lanes.know(&log.pool, &rows, 1).await?;
    let result: Option<&[u8]> = get(row, 25)?;
    let result = result.map(bytes::Bytes::copy_from_slice).unwrap_or_default();
    Ok(Some(FlowRecord { info: row::flow(row, &lanes)?, input: row::bytes(row, 24)?, result }))
}

pub(super) async fn history(log: &Inner, id: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
    let to = u32::try_from(limit).unwrap_or(u32::MAX).saturating_add(after).min(Record::SEQ_MAX);
    // An empty range also tells whether there is such a flow.
    let (from, to) = (i64::from(after.min(SEQ_LAST - 1) + 1), i64::from(to));
    let values: [&(dyn ToSql + Sync); 3] = [&escape(id.as_str()), &from, &to];
    let rows = log.pool.query(Role::Reads, Statement::History, &values, Repeat::Safe).await?;
    if rows.is_empty() {
        return Err(Error::not_found(id));
    }
    let mut records = Vec::with_capacity(rows.len());
    for row in &rows {
        if get::<Option<i64>>(row, 0)?.is_some() {
            records.push(row::record(row)?.1);
        }
    }
    Ok(records)
}

pub(super) async fn messages(
    log: &Inner,
    id: &FlowId,
    channels: &[Channel],
    after: u32,
    limit: usize,
) -> Result<Vec<Message>> {
    let limit = if after >= SEQ_LAST { 0 } else { i64::try_from(limit).unwrap_or(i64::MAX).min(i64::from(SEQ_LAST)) };
    let (id_text, from) = (escape(id.as_str()), (after.min(SEQ_LAST - 1) + 1).cast_signed());
    let mut names: Vec<_> = channels.iter().map(|channel| escape_line(channel.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    let rows = if names.is_empty() {
        let values: [&(dyn ToSql + Sync); 3] = [&id_text, &from, &limit];
        log.pool.query(Role::Reads, Statement::Messages, &values, Repeat::Safe).await?
    } else {
        let values: [&(dyn ToSql + Sync); 4] = [&id_text, &from, &limit, &names];
        log.pool.query(Role::Reads, Statement::MessagesOn, &values, Repeat::Safe).await?
    };
    if rows.is_empty() {
        return Err(Error::not_found(id));
    }
    let mut messages = Vec::with_capacity(rows.len());
    for row in &rows {
        if get::<Option<i64>>(row, 0)?.is_some() {
            messages.push(row::message(row)?.1);
        }
    }
    Ok(messages)
}

pub(super) async fn items(log: &Inner, id: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let after = i32::try_from(after).unwrap_or(i32::MAX);
    let (id_text, feed) = (escape(id.as_str()), escape(feed.as_str()));
    let values: [&(dyn ToSql + Sync); 4] = [&id_text, &feed, &after, &limit];
    let rows = log.pool.query(Role::Reads, Statement::Items, &values, Repeat::Safe).await?;
    if rows.is_empty() {
        return Err(Error::not_found(id));
    }
    let mut items = Vec::with_capacity(rows.len());
    for row in &rows {
        if get::<Option<i32>>(row, 0)?.is_some() {
            items.push(row::item(row)?);
        }
    }
    Ok(items)
}

/// What selects the flows of a filter, and the values that it names.
struct Selection {
    sql: String,
    values: Vec<Box<dyn ToSql + Sync + Send>>,
    /// What the flows are in the order of.
    key: &'static str,
}

impl Selection {
    fn new(filter: &Filter, after: i64) -> Self {
        let mut selection = Self { sql: FLOWS.to_owned(), values: vec![Box::new(after)], key: "f.key" };
        let mut labels = filter.labels.iter();
        if let Some(parent) = &filter.parent {
            (selection.sql, selection.key) = (CHILDREN.to_owned(), "a.key + 0");
            selection.bind(escape(parent.as_str()).into_owned());
        } else if filter.is_about_due() {
            (selection.sql, selection.key) = (DUE.to_owned(), "f.key + 0");
        } else if let Some((name, value)) = labels.next() {
            (selection.sql, selection.key) = (LABELLED.to_owned(), "n.flow");
            selection.bind(escape(name).into_owned());
            selection.bind(escape(value).into_owned());
        }
        for (name, value) in labels {
            let (name, value) = (selection.bind(escape(name).into_owned()), selection.bind(escape(value).into_owned()));
            _ = write!(
                selection.sql,
                " AND EXISTS (SELECT FROM {{s}}.labels m WHERE m.flow = f.key AND m.name = ${name} AND m.value = ${value})"
            );
        }
        if let Some(text) = &filter.reason {
            let text = selection.bind(escape(text).into_owned());
            _ = write!(selection.sql, " AND strpos(f.reason, ${text}) > 0");
        }
        for (column, compared, at) in [
            ("a.created_us", ">=", filter.created_from),
            ("a.created_us", "<", filter.created_before),
            ("f.finished_us", ">=", filter.finished_from),
            ("f.finished_us", "<", filter.finished_before),
            ("f.due_us", ">=", filter.due_from),
            ("f.due_us", "<", filter.due_before),
        ] {
            if let Some(at) = at {
                let at = selection.bind(at.as_micros());
                _ = write!(selection.sql, " AND {column} {compared} ${at}");
            }
        }
        if !filter.states.is_empty() {
            let states: Vec<String> = filter.states.iter().map(|state| state.code().to_string()).collect();
            selection.sql.extend([" AND f.state IN (", &states.join(", "), ")"]);
        }
        let mut conditions = Vec::new();
        if filter.is_about_due() {
            // All lanes, where nothing else is said, for the index begins with them.
            conditions.push("true".to_owned());
        }
        for (column, wanted) in [("queue", &filter.queue), ("flow_type", &filter.flow_type)] {
            if let Some(wanted) = wanted {
                let wanted = selection.bind(escape(wanted).into_owned());
                conditions.push(format!("l.{column} = ${wanted}"));
            }
        }
        if !conditions.is_empty() {
            let conditions = conditions.join(" AND ");
            _ = write!(selection.sql, " AND f.lane = ANY (ARRAY(SELECT l.lane FROM {{s}}.lanes l WHERE {conditions}))");
        }
        selection
    }

    /// Adds a value, and answers with its number.
    fn bind(&mut self, value: impl ToSql + Sync + Send + 'static) -> usize {
        self.values.push(Box::new(value));
        self.values.len()
    }

    /// Asks for these columns of what is selected. Prepared each time: there are as many of these as there are
    /// combinations of conditions.
    async fn ask(&self, log: &Inner, columns: &str, ending: &str) -> Result<Vec<Row>> {
        let sql = log.connector.localize(&format!("{columns}{}{ending}", self.sql));
        let values: Vec<&(dyn ToSql + Sync)> =
            self.values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
        let deadline = Instant::now() + log.pool.options().answer_timeout;
        loop {
            let session = log.pool.session(Role::Reads).await?;
            match session.answer(session.client.query(&sql, &values)).await {
                Ok(rows) => return Ok(rows),
                Err(failed) if failed.remedy == Remedy::Reconnect && Instant::now() < deadline => {}
                Err(failed) => return Err(failed.error),
            }
        }
    }
}

pub(super) async fn list(log: &Inner, filter: &Filter, after: Option<Cursor>, limit: usize) -> Result<FlowPage> {
    let limit = limit.max(1);
    let after = after.map_or(0, |cursor| i64::try_from(cursor.number()).unwrap_or(i64::MAX));
    let mut selection = Selection::new(filter, after);
    let rows_max = selection.bind(i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1));
    let ending = format!(" ORDER BY {} LIMIT ${rows_max}", selection.key);
    let rows = selection.ask(log, FLOW_COLUMNS, &ending).await?;
    let lanes = log.lanes.know(&log.pool, &rows, 1).await?;
    let mut page = FlowPage::default();
    for row in rows.iter().take(limit) {
        match row::flow(row, &lanes) {
            Ok(info) => page.flows.push(info),
            // It must not hide the others; asked for by its id it gives the error.
            Err(error) => tracing::error!(%error, "a flow cannot be read and is not listed"),
        }
    }
    if let Some(last) = rows.get(limit).and(rows.get(limit - 1)) {
        page.next = Some(Cursor::from_number(get::<i64>(last, 0)?.cast_unsigned()));
    }
    Ok(page)
}

pub(super) async fn counts(log: &Inner, filter: &Filter) -> Result<Vec<Count>> {
    let rows = if *filter == Filter::all() {
        log.pool.query(Role::Reads, Statement::Counts, &[], Repeat::Safe).await?
    } else {
        let columns = "SELECT f.lane, f.state, count(*), min(f.due_us)";
        Selection::new(filter, 0).ask(log, columns, " GROUP BY f.lane, f.state").await?
    };
    let lanes = log.lanes.know(&log.pool, &rows, 0).await?;
    let mut counts = BTreeMap::new();
    for row in &rows {
        // Lanes differ in their priority too.
        let (Ok(lane), Ok(state)) = (lanes.get(get(row, 0)?), row::state(row, 1)) else { continue };
        let kind = (lane.queue, lane.flow_type, lane.version, state);
        let (flows, oldest): &mut (u64, Option<i64>) = counts.entry(kind).or_default();
        *flows += get::<i64>(row, 2)?.cast_unsigned();
        *oldest = (*oldest).into_iter().chain(get::<Option<i64>>(row, 3)?).min();
    }
    let count = |((queue, flow_type, version, state), (flows, oldest)): ((_, _, _, FlowState), (u64, Option<i64>))| {
        Count { queue, flow_type, version, state, flows, oldest_due_at: oldest.map(Timestamp::from_micros) }
    };
    Ok(counts.into_iter().map(count).collect())
}
