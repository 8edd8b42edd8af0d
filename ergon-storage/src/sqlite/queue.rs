//! Putting flows on the queue and taking them off it.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};

use super::{
    error::{Fault, Outcome},
    lanes::Lane,
    owners, places,
    row::{self, FlowRow, INPUT, SEQ_LAST, slot},
    writer::Tx,
};
use crate::{
    Affinity, ClaimRequest, ClaimTarget, Claimed, ClaimedFlow, Enqueued, Error, FlowId, FlowState, Labels, Lease,
    LeaseState, NewFlow, Record, Timestamp, Wake,
};

/// Up to how many due flows of a lane are looked up at once when several lanes are merged.
const LANE_CHUNK_MIN: usize = 16;
/// How many due flows of a lane are looked up at once because those before them were not to be had.
const LANE_CHUNK_MAX: usize = 1_024;

pub(super) fn enqueue(tx: &mut Tx<'_, '_>, flows: &[NewFlow]) -> Outcome<Vec<Enqueued>> {
    let now = tx.now();
    let instants = flows.iter().map(|flow| flow.check(now, tx.limits)).collect::<Result<Vec<_>, Error>>()?;
    let mut answers = Vec::with_capacity(flows.len());
    for (flow, instants) in flows.iter().zip(instants) {
        answers.push(if insert(tx, flow, instants, now)? {
            Enqueued::Created
        } else {
            let taken = taken(tx, &flow.id)?;
            Enqueued::Existing { same: *taken.flow_type == *flow.flow_type && taken.input == flow.input }
        });
    }
    Ok(answers)
}

/// Accepts a flow; false when its id is taken.
pub(super) fn insert(
    tx: &mut Tx<'_, '_>,
    flow: &NewFlow,
    (start_at, deadline_at): (Timestamp, Option<Timestamp>),
    now: Timestamp,
) -> Outcome<bool> {
    let lane = lane(tx, Lane::of(flow))?;
    let key = tx.next_key()?;
    let parent = flow.parent.as_ref();
    let inserted = tx.st.insert_flow.execute(params![
        key,
        flow.id.as_str(),
        lane,
        start_at.as_micros(),
        deadline_at.map(Timestamp::as_micros),
        parent.map(|parent| parent.id.as_str()),
        parent.map(|parent| parent.path.to_string()),
        parent.is_some_and(|parent| parent.detached),
        now.as_micros(),
        (!flow.labels.is_empty()).then(|| flow.labels.to_lines()),
    ])?;
    if inserted == 0 {
        return Ok(false);
    }
    index_labels(tx, key, &flow.labels)?;
    tx.st.insert_payload.execute(params![slot(key, INPUT), &flow.input[..]])?;
    // Also for one that is not due yet: whoever waits may have been told a later instant.
    tx.hints.queue = true;
    tx.hints.flows.push(flow.id.clone());
    Ok(true)
}

/// Makes a flow known by its labels.
pub(super) fn index_labels(tx: &Tx<'_, '_>, key: i64, labels: &Labels) -> Outcome<()> {
    for (name, value) in labels.iter() {
        let sql = "INSERT INTO flow_labels (flow, name, value) VALUES (?1, ?2, ?3)";
        tx.conn.prepare_cached(sql)?.execute(params![key, name, value])?;
    }
    Ok(())
}

/// Gives a flow these labels and no others.
pub(super) fn set_labels(tx: &Tx<'_, '_>, key: i64, labels: &Labels) -> Outcome<()> {
    let lines = (!labels.is_empty()).then(|| labels.to_lines());
    tx.conn.prepare_cached("UPDATE flows SET labels = ?2 WHERE key = ?1")?.execute(params![key, lines])?;
    tx.conn.prepare_cached("DELETE FROM flow_labels WHERE flow = ?1")?.execute([key])?;
    index_labels(tx, key, labels)
}

/// The number of a new flow's lane, made if it is the first in it.
pub(super) fn lane(tx: &mut Tx<'_, '_>, lane: Lane) -> Outcome<i64> {
    if let Some(key) = tx.lanes.key(&lane) {
        return Ok(key);
    }
    tx.st.insert_lane.execute(params![&*lane.queue, &*lane.flow_type, lane.version, lane.priority])?;
    let key = tx.conn.last_insert_rowid();
    tx.lanes.add(key, lane);
    Ok(key)
}

/// What is known of a flow whose id was asked for again.
struct Taken {
    flow_type: Box<str>,
    version: u32,
    input: Bytes,
}

fn taken(tx: &mut Tx<'_, '_>, id: &FlowId) -> Outcome<Taken> {
    let mut rows = tx.st.taken.query([id.as_str()])?;
    let row = rows.next()?.ok_or_else(|| Fault::Unreadable(format!("flow {id:?} is there and is not")))?;
    let lane = tx.lanes.get(tx.conn, row::get(row, 0)?)?;
    Ok(Taken { flow_type: lane.flow_type.as_ref().into(), version: lane.version, input: row::bytes(row, 1)? })
}

/// True when the flow with this id is the one that a call asks for.
pub(super) fn is_what_is_wanted(tx: &mut Tx<'_, '_>, wanted: &NewFlow) -> Outcome<bool> {
    let taken = taken(tx, &wanted.id)?;
    Ok(*taken.flow_type == *wanted.flow_type && taken.version == wanted.version && taken.input == wanted.input)
}

pub(super) fn claim(tx: &mut Tx<'_, '_>, request: &ClaimRequest) -> Outcome<Claimed> {
    let is_heard = places::hear(tx, request, request.is_place)?;
    places::bring_back(tx, request)?;
    let mut claimed = claim_due(tx, request)?;
    if claimed.flows.is_empty() && request.limit > 0 && owners::look(tx)? {
        claimed = claim_due(tx, request)?;
    }
    claimed.is_place = is_heard || places::hear(tx, request, false)?;
    Ok(claimed)
}

fn claim_due(tx: &mut Tx<'_, '_>, request: &ClaimRequest) -> Outcome<Claimed> {
    let now = tx.now();
    let (mut claimed, mut passed) = (Claimed::default(), 0);
    match &request.target {
        ClaimTarget::Flow(id) => {
            let mut due = || -> Outcome<Option<(Option<i64>, i64)>> {
                let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                Ok(tx.st.due_by_id.query_row([id.as_str()], read).optional()?)
            };
            if let Some((Some(due_us), key)) = due()?
                && due_us <= now.as_micros()
                && request.limit > 0
            {
                claimed.flows.extend(lease(tx, key, request, now, &mut passed)?);
            }
            let read = |row: &rusqlite::Row<'_>| row.get::<_, Option<i64>>(0);
            let due_us = tx.st.due_by_id.query_row([id.as_str()], read).optional()?.flatten();
            claimed.next_due_at = due_us.map(Timestamp::from_micros);
        }
        ClaimTarget::Queues { queues, types } => {
            let lanes = tx.lanes.matching(queues, types);
            for group in lanes.chunk_by(|a, b| a.0 == b.0) {
                claim_from(tx, group, request, now, &mut passed, &mut claimed.flows)?;
            }
            let mut next = None;
            for (_, lane) in lanes {
                let due: Option<i64> = tx.st.next_due.query_row([lane], |row| row.get(0)).optional()?;
                next = next.into_iter().chain(due).min();
            }
            claimed.next_due_at = next.map(Timestamp::from_micros);
        }
    }
    Ok(claimed)
}

/// Leases the due flows of lanes of one priority in the order of their instants.
fn claim_from(
    tx: &mut Tx<'_, '_>,
    group: &[(i16, i64)],
    request: &ClaimRequest,
    now: Timestamp,
    passed: &mut usize,
    claimed: &mut Vec<ClaimedFlow>,
) -> Outcome<()> {
    let missing = request.limit.saturating_sub(claimed.len());
    if missing == 0 {
        return Ok(());
    }
    let chunk = if group.len() == 1 { missing } else { (2 * missing / group.len()).max(LANE_CHUNK_MIN) };
    let mut cursors: Vec<LaneCursor> = group.iter().map(|(_, lane)| LaneCursor::new(*lane, chunk)).collect();
    while claimed.len() < request.limit && *passed < Affinity::PASSED_MAX {
        let mut first: Option<((i64, i64), usize)> = None;
        for (index, cursor) in cursors.iter_mut().enumerate() {
            if let Some(head) = cursor.head(tx, now)?
                && first.is_none_or(|(other, _)| head < other)
            {
                first = Some((head, index));
            }
        }
        let Some(((_, key), index)) = first else { break };
        cursors[index].ahead.pop_front();
        claimed.extend(lease(tx, key, request, now, passed)?);
    }
    Ok(())
}

/// The due flows of one lane, read a chunk at a time.
struct LaneCursor {
    lane: i64,
    chunk: usize,
    ahead: VecDeque<(i64, i64)>,
    last: (i64, i64),
    exhausted: bool,
}

impl LaneCursor {
    fn new(lane: i64, chunk: usize) -> Self {
        Self { lane, chunk, ahead: VecDeque::new(), last: (i64::MIN, 0), exhausted: false }
    }

    /// The instant and key of the next flow.
    fn head(&mut self, tx: &mut Tx<'_, '_>, now: Timestamp) -> Outcome<Option<(i64, i64)>> {
        if self.ahead.is_empty() && !self.exhausted {
            let limit = i64::try_from(self.chunk).unwrap_or(i64::MAX);
            let mut rows = tx.st.due.query(params![self.lane, now.as_micros(), self.last.0, self.last.1, limit])?;
            while let Some(row) = rows.next()? {
                self.ahead.push_back((row.get(0)?, row.get(1)?));
            }
            self.exhausted = self.ahead.len() < self.chunk;
            // Others come behind those that were not to be had.
            self.chunk = self.chunk.saturating_mul(2).min(LANE_CHUNK_MAX).max(self.chunk);
            self.last = self.ahead.back().copied().unwrap_or(self.last);
        }
        Ok(self.ahead.front().copied())
    }
}

/// Leases a due flow; `None` when it is stalled instead, or kept for another worker, which is counted.
fn lease(
    tx: &mut Tx<'_, '_>,
    key: i64,
    request: &ClaimRequest,
    now: Timestamp,
    passed: &mut usize,
) -> Outcome<Option<ClaimedFlow>> {
    let row = match head(tx, key) {
        Ok(row) => row,
        Err(fault) => return stall_unreadable(tx, key, fault),
    };
    let may_be_bound = !row.info.labels.is_empty();
    // Before more is read of it, for there may be many.
    if may_be_bound && places::keep(tx, key, &row.info, &request.worker, now)? {
        *passed += 1;
        return Ok(None);
    }
    let mut claimed = match read(tx, row, request) {
        Ok(claimed) => claimed,
        Err(fault) => return stall_unreadable(tx, key, fault),
    };
    let info = &mut claimed.info;
    if info.deliveries >= request.deliveries_max.max(1) {
        let (times, worker) = (info.deliveries, info.worker.as_deref().unwrap_or("nobody"));
        let reason = format!(
            "claimed {times} times without making progress, the last time by {worker:?}; `retry` offers it again"
        );
        tx.st.stall.execute(params![key, reason])?;
        tx.hints.flows.push(info.id.clone());
        return Ok(None);
    }
    let until = now.saturating_add(request.lease);
    info.state = FlowState::Running;
    info.due_at = Some(until);
    info.epoch += 1;
    info.deliveries += 1;
    info.started_at.get_or_insert(now);
    info.worker = Some(request.worker.clone());
    info.reason = None;
    info.wake = Wake::default();
    tx.st.lease.execute(params![
        key,
        until.as_micros(),
        info.epoch.cast_signed(),
        info.deliveries,
        info.started_at.map(Timestamp::as_micros),
        &*request.worker,
        tx.owners.id(),
    ])?;
    if may_be_bound {
        places::leased(tx, key, info, request)?;
    }
    claimed.lease.epoch = info.epoch;
    tx.hints.flows.push(info.id.clone());
    Ok(Some(claimed))
}

/// A flow that cannot be read hides no others.
fn stall_unreadable(tx: &mut Tx<'_, '_>, key: i64, fault: Fault) -> Outcome<Option<ClaimedFlow>> {
    let Fault::Unreadable(what) = fault else { return Err(fault) };
    tracing::error!(key, "a flow cannot be read and is stalled: {what}");
    tx.st.stall.execute(params![key, format!("the log cannot read the flow: {what}")])?;
    Ok(None)
}

fn head(tx: &mut Tx<'_, '_>, key: i64) -> Outcome<FlowRow> {
    let mut rows = tx.st.flow.query([key])?;
    let row = rows.next()?.ok_or_else(|| Fault::Unreadable("the flow is in an index only".into()))?;
    row::flow(row, tx.conn, tx.lanes)
}

/// Reads all that the holder of a lease is given.
fn read(tx: &mut Tx<'_, '_>, row: FlowRow, request: &ClaimRequest) -> Outcome<ClaimedFlow> {
    let FlowRow { key, info, messages: last_message } = row;
    let wanted = u32::try_from(request.history_max).unwrap_or(u32::MAX).min(info.records);
    let (input, history) = input_and_history(tx, key, wanted)?;
    let mut messages = Vec::new();
    if last_message > 0 {
        let limit = i64::try_from(request.messages_max).unwrap_or(i64::MAX).saturating_add(1);
        let mut rows = tx.st.messages.query(params![slot(key, 1), slot(key, SEQ_LAST), limit])?;
        while let Some(row) = rows.next()? {
            messages.push(row::message(row)?);
        }
    }
    let more_messages = messages.len() > request.messages_max;
    messages.truncate(request.messages_max);
    let lease = Lease { flow: info.id.clone(), epoch: info.epoch, key: key.cast_unsigned() };
    Ok(ClaimedFlow { lease, info, input, history, messages, more_messages })
}

fn input_and_history(tx: &mut Tx<'_, '_>, key: i64, wanted: u32) -> Outcome<(Bytes, Vec<Record>)> {
    let mut rows = tx.st.records.query([slot(key, INPUT), slot(key, wanted)])?;
    let lost = || Fault::Unreadable("a part of the flow is missing".into());
    let first = rows.next()?.ok_or_else(lost)?;
    if row::get::<i64>(first, 0)? != slot(key, INPUT) {
        return Err(lost());
    }
    let input = row::bytes(first, 11)?;
    let mut history = Vec::with_capacity(wanted as usize);
    while let Some(row) = rows.next()? {
        history.push(row::record(row)?);
    }
    if history.len() != wanted as usize {
        return Err(lost());
    }
    Ok((input, history))
}

pub(super) fn heartbeat(tx: &mut Tx<'_, '_>, leases: &[Lease], lease: Duration) -> Outcome<Vec<LeaseState>> {
    let until = tx.now().saturating_add(lease).as_micros();
    // Leases may have been passed on: whoever renews them answers for them.
    let owner = tx.owners.id();
    let mut states = Vec::with_capacity(leases.len());
    for lease in leases {
        let (key, epoch) = (lease.key.cast_signed(), lease.epoch.cast_signed());
        let id = lease.flow.as_str();
        if tx.st.renew.execute(params![key, id, epoch, until, owner])? > 0 {
            states.push(LeaseState::Held);
            continue;
        }
        let state: Option<u8> = tx.st.state_of_lease.query_row(params![key, id, epoch], |row| row.get(0)).optional()?;
        let cancelled = state == Some(FlowState::Cancelled.code());
        states.push(if cancelled { LeaseState::Cancelled } else { LeaseState::Lost });
    }
    Ok(states)
}

pub(super) fn release(tx: &mut Tx<'_, '_>, lease: &Lease) -> Outcome<()> {
    let now = tx.now().as_micros();
    let (key, epoch) = (lease.key.cast_signed(), lease.epoch.cast_signed());
    let values = params![key, lease.flow.as_str(), epoch, now];
    if tx.st.release.execute(values)? == 0 && tx.st.let_go.execute(values)? == 0 {
        return Err(Error::lease_lost(&lease.flow).into());
    }
    tx.hints.queue = true;
    tx.hints.flows.push(lease.flow.clone());
    Ok(())
}
