//! What others do to a flow.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::{
    error::Outcome,
    row::{self, RESULT, slot},
    run::{self, Head},
    statements::KEY_BY_ID,
    writer::Tx,
};
use crate::{Cancelled, Error, FlowId, FlowState, Phase, Retried};

fn key(tx: &Tx<'_, '_>, flow: &FlowId) -> Outcome<i64> {
    let key = tx.conn.prepare_cached(KEY_BY_ID)?.query_row([flow.as_str()], |row| row.get(0)).optional()?;
    Ok(key.ok_or_else(|| Error::not_found(flow))?)
}

pub(super) fn cancel(tx: &mut Tx<'_, '_>, flow: &FlowId, reason: &str) -> Outcome<Cancelled> {
    let now = tx.now();
    let mut pending = vec![key(tx, flow)?];
    let mut answer = None;
    // Each flow ends before its children, so that they find no parent to tell.
    while let Some(key) = pending.pop() {
        let Some(head) = Head::by_key(tx, key)? else { continue };
        if head.state().is_final() {
            answer.get_or_insert(Cancelled::Already(head.state()));
            continue;
        }
        answer.get_or_insert(Cancelled::Now);
        run::cancel(tx, &head, reason, now)?;
        let sql = "SELECT key FROM flows WHERE parent_id = ?1 AND detached = 0 AND state NOT IN (4, 5, 6)";
        let mut statement = tx.conn.prepare_cached(sql)?;
        let children = statement.query_map([head.id().as_str()], |row| row.get(0))?;
        pending.extend(children.collect::<rusqlite::Result<Vec<i64>>>()?);
    }
    Ok(answer.ok_or_else(|| Error::not_found(flow))?)
}

pub(super) fn retry(tx: &mut Tx<'_, '_>, flow: &FlowId) -> Outcome<Retried> {
    let now = tx.now();
    let key = key(tx, flow)?;
    let (state, mut records): (u8, u32) = tx
        .conn
        .prepare_cached("SELECT state, records FROM flows WHERE key = ?1")?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    match FlowState::from_code(state) {
        Some(FlowState::Failed) => {
            records = forget_failed_call(tx, key, records)?;
            tx.conn.prepare_cached("DELETE FROM records WHERE k = ?1")?.execute([slot(key, RESULT)])?;
        }
        // A state that this program does not know is left for it to find out about at the next claim.
        Some(FlowState::Stalled) | None => {}
        Some(other) => return Ok(Retried::Not(other)),
    }
    tx.conn
        .prepare_cached(
            "UPDATE flows SET state = 1, due_us = ?2, records = ?3, deliveries = 0, finished_us = NULL, \
             reason = NULL, stalled_by = NULL WHERE key = ?1",
        )?
        .execute(params![key, now.as_micros(), records])?;
    tx.hints.queue = true;
    tx.hints.flows.push(flow.clone());
    Ok(Retried::Scheduled)
}

/// Removes the failed outcome at the end of the history, if there is one, with the attempts that led to it, and
/// returns how many records are left.
fn forget_failed_call(tx: &Tx<'_, '_>, key: i64, records: u32) -> Outcome<u32> {
    let last: Option<(u8, Box<str>)> = tx
        .conn
        .prepare_cached("SELECT phase, path FROM records WHERE k = ?1")?
        .query_row([slot(key, records)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?
        .filter(|_| records > 0);
    let Some((_, path)) = last.filter(|(phase, _)| *phase == Phase::Failed.code()) else { return Ok(records) };
    tx.conn.prepare_cached("DELETE FROM records WHERE k = ?1")?.execute([slot(key, records)])?;
    let range = params![slot(key, 1), slot(key, records), Phase::Attempt.code(), path];
    let attempts = tx
        .conn
        .prepare_cached("DELETE FROM records WHERE k BETWEEN ?1 AND ?2 AND phase = ?3 AND path = ?4")?
        .execute(range)?;
    if attempts > 0 {
        let mut left = tx.conn.prepare_cached("SELECT k FROM records WHERE k BETWEEN ?1 AND ?2 ORDER BY k")?;
        let left = left.query_map([slot(key, 1), slot(key, records)], |row| row.get(0))?;
        let left = left.collect::<rusqlite::Result<Vec<i64>>>()?;
        let mut renumber = tx.conn.prepare_cached("UPDATE records SET k = ?2 WHERE k = ?1")?;
        for (old, seq) in left.into_iter().zip(1..) {
            // Downwards, in the order of the numbers: the place is free.
            if old != slot(key, seq) {
                renumber.execute([old, slot(key, seq)])?;
            }
        }
    }
    Ok(records - 1 - u32::try_from(attempts).unwrap_or(0))
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
