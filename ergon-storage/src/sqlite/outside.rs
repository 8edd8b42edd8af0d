//! What others do to a flow.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use rusqlite::{OptionalExtension, Row, params};

use super::{
    error::Outcome,
    mailbox,
    row::{self, RESULT, slot},
    run::{self, Head},
    statements::KEY_BY_ID,
    writer::Tx,
};
use crate::{Cancelled, Cleanup, Error, FlowId, FlowState, Record, Retried, Timestamp};

pub(super) fn key(tx: &Tx<'_, '_>, flow: &FlowId) -> Outcome<i64> {
    Ok(find(tx, flow)?.ok_or_else(|| Error::not_found(flow))?)
}

pub(super) fn find(tx: &Tx<'_, '_>, flow: &FlowId) -> Outcome<Option<i64>> {
    Ok(tx.conn.prepare_cached(KEY_BY_ID)?.query_row([flow.as_str()], |row| row.get(0)).optional()?)
}

/// Whether a flow that is cancelled may clean up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    InOrder,
    AtOnce,
}

pub(super) fn cancel(tx: &mut Tx<'_, '_>, flow: &FlowId, reason: &str, ending: Ending) -> Outcome<Cancelled> {
    let now = tx.now();
    let first = key(tx, flow)?;
    let mut pending = vec![first];
    let mut answer = None;
    while let Some(key) = pending.pop() {
        let Some(head) = Head::by_key(tx, key)? else { continue };
        let at_once = key == first && ending == Ending::AtOnce;
        if head.state().is_final() {
            answer.get_or_insert(Cancelled::Already(head.state()));
            continue;
        }
        if head.is_cleaning_up() && !at_once {
            answer.get_or_insert(Cancelled::Already(FlowState::Cancelled));
            continue;
        }
        answer.get_or_insert(Cancelled::Now);
        if head.cleanup() == Cleanup::Needed && head.records() < Record::SEQ_MAX && !at_once {
            run::clean_up(tx, &head, reason, now)?;
        } else {
            // What goes with its parent has nobody to tell.
            run::cancel(tx, &head, reason, key == first, now)?;
        }
        let sql = "SELECT key FROM flows WHERE parent_id = ?1 AND key > ?2 AND detached = 0 AND state NOT IN (4, 5, 6)";
        let mut statement = tx.conn.prepare_cached(sql)?;
        let children = statement.query_map(params![head.id().as_str(), key], |row| row.get(0))?;
        pending.extend(children.collect::<rusqlite::Result<Vec<i64>>>()?);
    }
    Ok(answer.ok_or_else(|| Error::not_found(flow))?)
}

pub(super) fn retry(tx: &mut Tx<'_, '_>, flow: &FlowId) -> Outcome<Retried> {
    let now = tx.now();
    let key = key(tx, flow)?;
    let head = Head::by_key(tx, key)?.ok_or_else(|| Error::not_found(flow))?;
    match head.state() {
        FlowState::Failed | FlowState::Stalled => schedule_again(tx, &head, now)?,
        other => return Ok(Retried::Not(other)),
    }
    Ok(Retried::Scheduled)
}

/// Schedules a flow that has failed or come to a standstill, and with it the descendants that it would fail of.
pub(super) fn schedule_again(tx: &mut Tx<'_, '_>, flow: &Head, now: Timestamp) -> Outcome<()> {
    if let Some(parent) = flow.parent() {
        mailbox::withdraw_end(tx, (flow.key(), flow.id()), parent)?;
    }
    let mut pending = schedule_one_again(tx, flow, now)?;
    while let Some(key) = pending.pop_last() {
        if let Some(flow) = Head::by_key(tx, key)? {
            pending.extend(schedule_one_again(tx, &flow, now)?);
        }
    }
    Ok(())
}

/// Schedules a flow, and returns the children that are to be scheduled with it.
fn schedule_one_again(tx: &mut Tx<'_, '_>, flow: &Head, now: Timestamp) -> Outcome<BTreeSet<i64>> {
    let key = flow.key();
    let sql = "SELECT again, deadline_us, start_us FROM flows WHERE key = ?1";
    let (again, deadline_us, start_us): (Option<String>, Option<i64>, i64) =
        tx.conn.prepare_cached(sql)?.query_row([key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let deadline_us =
        deadline_us.map(|deadline_us| now.as_micros().saturating_add(deadline_us.saturating_sub(start_us)));
    let again: HashSet<&str> = again.iter().flat_map(|again| again.split(' ')).collect();
    let failed = match flow.state() {
        FlowState::Failed => mailbox::withdraw_failures(tx, (key, flow.run_key()), flow.id(), &again)?,
        _ => BTreeSet::new(),
    };
    let records = if again.is_empty() { flow.records() } else { forget_calls(tx, key, flow.records(), &again)? };
    tx.conn.prepare_cached("DELETE FROM records WHERE k = ?1")?.execute([slot(key, RESULT)])?;
    tx.conn
        .prepare_cached(
            "UPDATE flows SET state = 1, due_us = ?2, records = ?3, deliveries = 0, finished_us = NULL, \
             reason = NULL, stalled_by = NULL, again = NULL, deadline_us = ?4 WHERE key = ?1",
        )?
        .execute(params![key, now.as_micros(), records, deadline_us])?;
    tx.hints.queue = true;
    tx.hints.flows.push(flow.id().clone());
    Ok(failed)
}

/// Removes the records of these calls, and returns how many are left.
pub(super) fn forget_calls(tx: &Tx<'_, '_>, key: i64, records: u32, paths: &HashSet<&str>) -> Outcome<u32> {
    let mut all = tx.conn.prepare_cached("SELECT k, path FROM records WHERE k BETWEEN ?1 AND ?2 ORDER BY k")?;
    let goes = |row: &Row<'_>| Ok((row.get(0)?, paths.contains(row.get_ref(1)?.as_str()?)));
    let all = all.query_map([slot(key, 1), slot(key, records)], goes)?;
    let all = all.collect::<rusqlite::Result<Vec<(i64, bool)>>>()?;
    let mut forget = tx.conn.prepare_cached("DELETE FROM records WHERE k = ?1")?;
    let mut renumber = tx.conn.prepare_cached("UPDATE records SET k = ?2 WHERE k = ?1")?;
    let mut left = 0;
    for (old, goes) in all {
        if goes {
            forget.execute([old])?;
            continue;
        }
        left += 1;
        // Downwards, in the order of the numbers: the place is free.
        if old != slot(key, left) {
            renumber.execute([old, slot(key, left)])?;
        }
    }
    Ok(left)
}

pub(super) fn reoffer(tx: &mut Tx<'_, '_>, types: &[(Arc<str>, u32)], build: &str) -> Outcome<u64> {
    let now = tx.now().as_micros();
    let lanes = tx.lanes.keys_where(|lane| {
        types.iter().any(|(flow_type, version)| *flow_type == lane.flow_type && *version == lane.version)
    });
    let mut stalled = Vec::new();
    {
        let sql = "SELECT key, id FROM flows WHERE state = 7 AND lane = ?1 AND stalled_by <> ?2";
        let mut statement = tx.conn.prepare_cached(sql)?;
        for lane in lanes {
            let mut rows = statement.query(params![lane, build])?;
            while let Some(row) = rows.next()? {
                // One whose id cannot be read stays as it is.
                if let Ok(id) = row::flow_id(row, 1) {
                    stalled.push((row.get::<_, i64>(0)?, id));
                }
            }
        }
    }
    let sql = "UPDATE flows SET state = 1, due_us = ?2, reason = NULL, stalled_by = NULL WHERE key = ?1";
    let mut statement = tx.conn.prepare_cached(sql)?;
    let offered = stalled.len() as u64;
    for (key, id) in stalled {
        statement.execute([key, now])?;
        tx.hints.queue = true;
        tx.hints.flows.push(id);
    }
    Ok(offered)
}
