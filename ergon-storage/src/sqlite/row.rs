//! From rows to values and back.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, Row, types::FromSql};

use super::{
    error::{Fault, Outcome},
    lanes::Lanes,
};
use crate::{
    CallKind, CallPath, Channel, ChildOutcome, Cleanup, FlowId, FlowInfo, FlowState, Item, Labels, Message, Parent,
    Phase, Record, Timestamp, Wake,
};

/// How many of the low bits of a record's or message's key are its number; the others are its flow's key.
const SEQ_BITS: u32 = 24;
/// The greatest number within a flow; as a record's number it is where the result is kept.
pub(super) const SEQ_LAST: u32 = (1 << SEQ_BITS) - 1;
/// Where the input of the present run is kept among the records.
pub(super) const INPUT: u32 = 0;
/// Where the input that the flow was accepted with is kept among the records, once it has begun again with another.
pub(super) const ACCEPTED: u32 = SEQ_LAST - 1;
/// Where the result is kept among the records: after the last one there can be.
pub(super) const RESULT: u32 = SEQ_LAST;
/// The greatest key of a flow, with which a record's key still is positive.
pub(super) const KEY_MAX: i64 = (1 << (63 - SEQ_BITS)) - 1;

const _: () = assert!(Record::SEQ_MAX < ACCEPTED && ACCEPTED < RESULT);

/// The key of a flow's record or message.
pub(super) fn slot(key: i64, seq: u32) -> i64 {
    debug_assert!((0..=KEY_MAX).contains(&key) && seq <= SEQ_LAST);
    (key << SEQ_BITS) | i64::from(seq)
}

/// The number within its flow.
fn seq_of(slot: i64) -> u32 {
    u32::try_from(slot & i64::from(SEQ_LAST)).unwrap_or(SEQ_LAST)
}

/// A value that must be readable, or the row is not one of ours.
pub(super) fn get<T: FromSql>(row: &Row<'_>, index: usize) -> Outcome<T> {
    row.get(index).map_err(|error| {
        let column = row.as_ref().column_name(index).unwrap_or("?");
        Fault::Unreadable(format!("column {column} cannot be read: {error}"))
    })
}

pub(super) fn instant(row: &Row<'_>, index: usize) -> Outcome<Timestamp> {
    get(row, index).map(Timestamp::from_micros)
}

pub(super) fn instant_opt(row: &Row<'_>, index: usize) -> Outcome<Option<Timestamp>> {
    Ok(get::<Option<i64>>(row, index)?.map(Timestamp::from_micros))
}

pub(super) fn bytes(row: &Row<'_>, index: usize) -> Outcome<Bytes> {
    let value = row.get_ref(index)?;
    value
        .as_blob()
        .map(Bytes::copy_from_slice)
        .map_err(|error| Fault::Unreadable(format!("a payload cannot be read: {error}")))
}

fn text<'r>(row: &'r Row<'_>, index: usize) -> Outcome<&'r str> {
    row.get_ref(index)?.as_str().map_err(|error| {
        let column = row.as_ref().column_name(index).unwrap_or("?");
        Fault::Unreadable(format!("column {column} cannot be read: {error}"))
    })
}

pub(super) fn state(row: &Row<'_>, index: usize) -> Outcome<FlowState> {
    let code = get(row, index)?;
    FlowState::from_code(code).ok_or_else(|| unknown("state", code))
}

pub(super) fn cleanup(row: &Row<'_>, index: usize) -> Outcome<Cleanup> {
    let code = get(row, index)?;
    Cleanup::from_code(code).ok_or_else(|| unknown("cleanup", code))
}

fn unknown(what: &str, code: u8) -> Fault {
    Fault::Unreadable(format!("{what} {code} is unknown to this program"))
}

pub(super) fn flow_id(row: &Row<'_>, index: usize) -> Outcome<FlowId> {
    FlowId::new(text(row, index)?).map_err(|error| Fault::Unreadable(error.to_string()))
}

/// The parent in three columns: its id, the path, whether the child is detached.
pub(super) fn parent(row: &Row<'_>, index: usize) -> Outcome<Option<Parent>> {
    if row.get_ref(index)? == rusqlite::types::ValueRef::Null {
        return Ok(None);
    }
    Ok(Some(Parent { id: flow_id(row, index)?, path: path(row, index + 1)?, detached: get(row, index + 2)? }))
}

fn path(row: &Row<'_>, index: usize) -> Outcome<CallPath> {
    text(row, index)?.parse().map_err(|error: crate::InvalidPath| Fault::Unreadable(error.to_string()))
}

/// A flow as one row has it.
pub(super) struct FlowRow {
    pub(super) key: i64,
    pub(super) info: FlowInfo,
    /// The number of its latest message; 0 when none has ever arrived.
    pub(super) messages: u32,
}

/// Reads the columns of `flow_columns!`.
pub(super) fn flow(row: &Row<'_>, conn: &Connection, lanes: &mut Lanes) -> Outcome<FlowRow> {
    let lane = lanes.get(conn, get(row, 2)?)?.clone();
    let info = FlowInfo {
        id: flow_id(row, 1)?,
        flow_type: lane.flow_type,
        version: lane.version,
        queue: lane.queue,
        priority: lane.priority,
        state: state(row, 3)?,
        due_at: instant_opt(row, 4)?,
        epoch: get::<i64>(row, 5)?.cast_unsigned(),
        records: get(row, 6)?,
        deliveries: get(row, 7)?,
        deadline_at: instant_opt(row, 9)?,
        parent: parent(row, 10)?,
        labels: get::<Option<Box<str>>>(row, 22)?.map(|lines| Labels::from_lines(&lines)).unwrap_or_default(),
        created_at: instant(row, 13)?,
        start_at: instant(row, 14)?,
        run: get(row, 21)?,
        emitted: get(row, 23)?,
        cleanup: cleanup(row, 24)?,
        started_at: instant_opt(row, 15)?,
        finished_at: instant_opt(row, 16)?,
        worker: get(row, 17)?,
        reason: get(row, 18)?,
        wake: Wake { at: instant_opt(row, 19)?, channels: channels(get::<Option<Box<str>>>(row, 20)?.as_deref()) },
    };
    Ok(FlowRow { key: get(row, 0)?, info, messages: get(row, 8)? })
}

/// Reads the columns of `record_columns!`.
pub(super) fn record(row: &Row<'_>) -> Outcome<Record> {
    let (kind, phase) = (get(row, 3)?, get(row, 4)?);
    Ok(Record {
        seq: seq_of(get(row, 0)?),
        at: instant(row, 1)?,
        path: path(row, 2)?,
        kind: CallKind::from_code(kind).ok_or_else(|| unknown("call kind", kind))?,
        phase: Phase::from_code(phase).ok_or_else(|| unknown("phase", phase))?,
        name: text(row, 5)?.into(),
        args_hash: get::<i64>(row, 6)?.cast_unsigned(),
        attempt: get(row, 7)?,
        started_at: instant(row, 8)?,
        due_at: instant_opt(row, 9)?,
        reference: get(row, 10)?,
        payload: bytes(row, 11)?,
    })
}

/// Reads the columns of `message_columns!`.
pub(super) fn message(row: &Row<'_>) -> Outcome<Message> {
    let message =
        Message::new(seq_of(get(row, 0)?), Channel::from_name(text(row, 1)?), instant(row, 2)?, bytes(row, 5)?);
    let Some(code) = get::<Option<u8>>(row, 3)? else { return Ok(message) };
    let outcome = ChildOutcome::from_code(code).ok_or_else(|| unknown("child outcome", code))?;
    Ok(message.with_child(outcome, text(row, 4)?))
}

/// Reads the columns of `ITEMS`.
pub(super) fn item(row: &Row<'_>) -> Outcome<Item> {
    let call = if row.get_ref(4)? == rusqlite::types::ValueRef::Null { None } else { Some(path(row, 4)?) };
    Ok(Item {
        seq: get(row, 0)?,
        at: instant(row, 1)?,
        run: get(row, 2)?,
        epoch: get::<i64>(row, 3)?.cast_unsigned(),
        call,
        attempt: get(row, 5)?,
        payload: bytes(row, 6)?,
    })
}

/// Paths with spaces between.
pub(super) fn paths(text: Option<&str>) -> Outcome<Vec<CallPath>> {
    let read = |path: &str| path.parse().map_err(|error: crate::InvalidPath| Fault::Unreadable(error.to_string()));
    text.into_iter().flat_map(|text| text.split(' ')).map(read).collect()
}

/// Channels as one text: their names on a line each, with a backslash and a line break inside a name escaped.
pub(super) fn channels_text(channels: &[Channel]) -> Option<String> {
    if channels.is_empty() {
        return None;
    }
    let lines: Vec<String> =
        channels.iter().map(|channel| channel.as_str().replace('\\', r"\\").replace('\n', r"\n")).collect();
    Some(lines.join("\n"))
}

/// The channels of [`channels_text`].
pub(super) fn channels(text: Option<&str>) -> Vec<Channel> {
    let Some(text) = text else { return Vec::new() };
    text.split('\n').map(|line| Channel::from_name(&unescape(line))).collect()
}

fn unescape(line: &str) -> Arc<str> {
    if !line.contains('\\') {
        return line.into();
    }
    let mut name = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        name.push(match c {
            '\\' if rest.next() == Some('n') => '\n',
            other => other,
        });
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_back_as_they_were() {
        let all: Vec<Channel> =
            ["signal:a", "", "with\nbreak", r"back\slash", r"\n", "\\\n\\", "ü"].map(Channel::from_name).into();
        assert_eq!(channels(channels_text(&all).as_deref()), all);
        assert_eq!(channels(channels_text(&all[1..2]).as_deref()), &all[1..2]);
        assert_eq!(channels(None), []);
        assert_eq!(channels_text(&[]), None);
    }

    #[test]
    fn slots_do_not_overlap() {
        assert_eq!(slot(1, INPUT), slot(0, RESULT) + 1);
        assert_eq!(seq_of(slot(KEY_MAX, RESULT)), RESULT);
        assert_eq!(slot(KEY_MAX, RESULT), i64::MAX);
    }
}
