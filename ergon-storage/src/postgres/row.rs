//! From rows to values.

use bytes::Bytes;
use tokio_postgres::{Row, types::FromSql};

use super::{
    lanes::Known,
    text::{hash, unescape},
};
use crate::{
    CallKind, CallPath, Channel, ChildOutcome, Cleanup, Error, ErrorKind, FlowId, FlowInfo, FlowState, Item, Labels,
    Lease, Message, Parent, Phase, Record, Result, Timestamp, Wake,
};

/// How many of the low bits of a record's or message's key are its number; the others are its flow's key.
const SEQ_BITS: u32 = 24;
/// The greatest number within a flow.
pub(super) const SEQ_LAST: u32 = (1 << SEQ_BITS) - 1;
/// The greatest key of a flow, with which a record's key still is positive.
pub(super) const KEY_MAX: i64 = (1 << (63 - SEQ_BITS)) - 1;

const _: () = assert!(Record::SEQ_MAX < SEQ_LAST);

/// The key of a flow's record or message.
pub(super) fn slot(key: i64, seq: u32) -> i64 {
    debug_assert!((0..=KEY_MAX).contains(&key) && seq <= SEQ_LAST);
    (key << SEQ_BITS) | i64::from(seq)
}

/// The key of the flow that a slot belongs to.
pub(super) fn key_of(slot: i64) -> i64 {
    slot >> SEQ_BITS
}

/// The number within its flow.
fn seq_of(slot: i64) -> u32 {
    u32::try_from(slot & i64::from(SEQ_LAST)).unwrap_or(SEQ_LAST)
}

/// How many of the low bits of a fence are the random number of the claim; the others count the claims.
pub(super) const NONCE_BITS: u32 = u64::BITS - KEY_MAX.count_ones();
const NONCE_MASK: u64 = (1 << NONCE_BITS) - 1;

const _: () = assert!(NONCE_BITS == 25, "claims give as many");

/// How often a flow with this fence was claimed.
fn epoch_of(fence: i64) -> u64 {
    (fence >> NONCE_BITS).cast_unsigned()
}

/// What is on a lease to tell apart claims that have the same epoch, and leases that were put together from two.
fn seal(id: &FlowId, fence: i64) -> u64 {
    (hash(id.as_str()) ^ fence.cast_unsigned()) & NONCE_MASK
}

/// The lease on a flow that was claimed. Its key is the flow's, and above it the seal.
pub(super) fn lease(key: i64, id: &FlowId, fence: i64) -> Lease {
    debug_assert!((0..=KEY_MAX).contains(&key));
    let sealed = key.cast_unsigned() | seal(id, fence) << KEY_MAX.count_ones();
    Lease { flow: id.clone(), epoch: epoch_of(fence), key: sealed }
}

/// The key and the fence that a flow with this lease has; `None` when there is none.
pub(super) fn key_and_fence(lease: &Lease) -> Option<(i64, i64)> {
    let key = (lease.key & KEY_MAX.cast_unsigned()).cast_signed();
    let nonce = seal(&lease.flow, (lease.key >> KEY_MAX.count_ones()).cast_signed());
    // Neither more than there can be, nor the none of a flow that nobody has claimed.
    let is_granted = (1..1 << (i64::BITS - 1 - NONCE_BITS)).contains(&lease.epoch);
    is_granted.then(|| (key, (lease.epoch << NONCE_BITS | nonce).cast_signed()))
}

pub(super) fn unreadable(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// A value that must be readable, or the row is not one of ours.
pub(super) fn get<'r, T: FromSql<'r>>(row: &'r Row, index: usize) -> Result<T> {
    row.try_get(index).map_err(|error| {
        let column = row.columns().get(index).map_or("?", |column| column.name());
        unreadable(format!("column {column} cannot be read")).with_source(error)
    })
}

/// A number that is never negative.
fn count(row: &Row, index: usize) -> Result<u32> {
    u32::try_from(get::<i32>(row, index)?).map_err(|_| unreadable("a count is negative"))
}

pub(super) fn instant(row: &Row, index: usize) -> Result<Timestamp> {
    get(row, index).map(Timestamp::from_micros)
}

pub(super) fn instant_opt(row: &Row, index: usize) -> Result<Option<Timestamp>> {
    Ok(get::<Option<i64>>(row, index)?.map(Timestamp::from_micros))
}

pub(super) fn bytes(row: &Row, index: usize) -> Result<Bytes> {
    get(row, index).map(Bytes::copy_from_slice)
}

pub(super) fn state(row: &Row, index: usize) -> Result<FlowState> {
    state_of(i64::from(get::<i16>(row, index)?))
}

/// The state of this number.
pub(super) fn state_of(code: i64) -> Result<FlowState> {
    known(code, "state", FlowState::from_code)
}

fn cleanup(row: &Row, index: usize) -> Result<Cleanup> {
    known(i64::from(get::<i16>(row, index)?), "cleanup", Cleanup::from_code)
}

fn known<T>(code: i64, what: &str, of: impl Fn(u8) -> Option<T>) -> Result<T> {
    let known = u8::try_from(code).ok().and_then(of);
    known.ok_or_else(|| unreadable(format!("{what} {code} is unknown to this program")))
}

pub(super) fn flow_id(row: &Row, index: usize) -> Result<FlowId> {
    FlowId::new(unescape(get(row, index)?)).map_err(|error| unreadable(error.to_string()))
}

/// The parent in three columns: its id, the path, whether the child is detached.
fn parent(row: &Row, index: usize) -> Result<Option<Parent>> {
    if get::<Option<&str>>(row, index)?.is_none() {
        return Ok(None);
    }
    Ok(Some(Parent { id: flow_id(row, index)?, path: path(row, index + 1)?, detached: get(row, index + 2)? }))
}

fn path(row: &Row, index: usize) -> Result<CallPath> {
    get::<&str>(row, index)?.parse().map_err(|error: crate::InvalidPath| unreadable(error.to_string()))
}

fn labels(row: &Row, index: usize) -> Result<Labels> {
    Ok(get::<Option<&str>>(row, index)?.map(Labels::from_lines).unwrap_or_default())
}

/// Reads the columns of `flow_columns!`.
pub(super) fn flow(row: &Row, lanes: &Known) -> Result<FlowInfo> {
    let lane = lanes.get(get(row, 1)?)?;
    let text = |index| Ok::<_, Error>(get::<Option<&str>>(row, index)?.map(|text| unescape(text).into()));
    let channels: Option<Vec<&str>> = get(row, 13)?;
    let channels = channels.unwrap_or_default().into_iter().map(|name| Channel::from_name(&unescape(name))).collect();
    Ok(FlowInfo {
        id: flow_id(row, 14)?,
        flow_type: lane.flow_type,
        version: lane.version,
        queue: lane.queue,
        priority: lane.priority,
        state: state(row, 2)?,
        due_at: instant_opt(row, 3)?,
        epoch: epoch_of(get(row, 4)?),
        records: count(row, 5)?,
        deliveries: count(row, 6)?,
        deadline_at: instant_opt(row, 7)?,
        parent: parent(row, 15)?,
        labels: labels(row, 21)?,
        created_at: instant(row, 18)?,
        start_at: instant(row, 19)?,
        run: count(row, 20)?,
        emitted: count(row, 22)?,
        cleanup: cleanup(row, 23)?,
        started_at: instant_opt(row, 8)?,
        finished_at: instant_opt(row, 9)?,
        worker: text(10)?,
        reason: text(11)?,
        wake: Wake { at: instant_opt(row, 12)?, channels },
    })
}

/// A flow as a claim answers with it.
pub(super) struct Leased {
    pub(super) key: i64,
    pub(super) fence: i64,
    pub(super) waiting: u32,
    pub(super) info: FlowInfo,
    pub(super) input: Bytes,
}

/// Reads a row of the type `claimed` that has a key, but for the worker, who knows himself.
pub(super) fn leased(row: &Row, lanes: &Known) -> Result<Leased> {
    let lane = lanes.get(get(row, 3)?)?;
    let info = FlowInfo {
        id: flow_id(row, 11)?,
        flow_type: lane.flow_type,
        version: lane.version,
        queue: lane.queue,
        priority: lane.priority,
        state: state(row, 2)?,
        reason: None,
        wake: Wake::default(),
        parent: parent(row, 12)?,
        labels: labels(row, 21)?,
        created_at: instant(row, 15)?,
        start_at: instant(row, 16)?,
        run: count(row, 18)?,
        emitted: count(row, 19)?,
        cleanup: cleanup(row, 22)?,
        started_at: instant_opt(row, 10)?,
        finished_at: None,
        deadline_at: instant_opt(row, 9)?,
        due_at: instant_opt(row, 5)?,
        epoch: epoch_of(get(row, 4)?),
        deliveries: count(row, 7)?,
        records: count(row, 6)?,
        worker: None,
    };
    Ok(Leased { key: get(row, 0)?, fence: get(row, 4)?, waiting: count(row, 8)?, info, input: bytes(row, 17)? })
}

/// Reads the columns of `record_columns!`, and whose record it is.
pub(super) fn record(row: &Row) -> Result<(i64, Record)> {
    let slot = get(row, 0)?;
    let (kind, phase): (i16, i16) = (get(row, 3)?, get(row, 4)?);
    let record = Record {
        seq: seq_of(slot),
        at: instant(row, 1)?,
        path: path(row, 2)?,
        kind: known(i64::from(kind), "call kind", CallKind::from_code)?,
        phase: known(i64::from(phase), "phase", Phase::from_code)?,
        name: unescape(get(row, 5)?).into(),
        args_hash: get::<i64>(row, 6)?.cast_unsigned(),
        attempt: u32::try_from(get::<i64>(row, 7)?).map_err(|_| unreadable("an attempt is out of range"))?,
        started_at: instant(row, 8)?,
        due_at: instant_opt(row, 9)?,
        reference: get::<Option<&str>>(row, 10)?.map(|text| unescape(text).into()),
        payload: bytes(row, 11)?,
    };
    Ok((key_of(slot), record))
}

/// Reads an item.
pub(super) fn item(row: &Row) -> Result<Item> {
    let call = if get::<Option<&str>>(row, 4)?.is_some() { Some(path(row, 4)?) } else { None };
    Ok(Item {
        seq: count(row, 0)?,
        at: instant(row, 1)?,
        run: count(row, 2)?,
        epoch: get::<i64>(row, 3)?.cast_unsigned(),
        call,
        attempt: u32::try_from(get::<i64>(row, 5)?).map_err(|_| unreadable("an attempt is out of range"))?,
        payload: bytes(row, 6)?,
    })
}

/// Reads the columns of `message_columns!`, and whose message it is.
pub(super) fn message(row: &Row) -> Result<(i64, Message)> {
    let channel = Channel::from_name(&unescape(get(row, 2)?));
    let message = Message::new(count(row, 1)?, channel, instant(row, 3)?, bytes(row, 6)?);
    let message = match get::<Option<i16>>(row, 4)? {
        None => message,
        Some(code) => {
            let outcome = known(i64::from(code), "child outcome", ChildOutcome::from_code)?;
            message.with_child(outcome, &unescape(get(row, 5)?))
        }
    };
    Ok((get(row, 0)?, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap() {
        assert_eq!(slot(1, 0), slot(0, SEQ_LAST) + 1);
        assert_eq!((key_of(slot(KEY_MAX, 7)), seq_of(slot(KEY_MAX, 7))), (KEY_MAX, 7));
        assert_eq!(slot(KEY_MAX, SEQ_LAST), i64::MAX);
    }

    #[test]
    fn leases_hold_the_key_and_the_fence() {
        let (a, b) = (FlowId::new("a").unwrap(), FlowId::new("b").unwrap());
        let last = i64::MAX >> NONCE_BITS;
        for (key, epoch, nonce) in [(0, 1, 0), (7, 2, NONCE_MASK.cast_signed()), (KEY_MAX, last, 42)] {
            let fence = epoch << NONCE_BITS | nonce;
            let lease = lease(key, &a, fence);
            assert_eq!((lease.epoch, key_and_fence(&lease)), (epoch.cast_unsigned(), Some((key, fence))));
            let other = Lease { flow: b.clone(), ..lease.clone() };
            assert_ne!(key_and_fence(&other), Some((key, fence)), "another flow's id breaks the seal");
            for epoch in [0, last.cast_unsigned() + 1, u64::MAX] {
                assert_eq!(key_and_fence(&Lease { epoch, ..lease.clone() }), None);
            }
        }
    }
}
