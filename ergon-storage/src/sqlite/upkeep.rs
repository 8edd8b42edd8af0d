//! Forgetting flows.

use rusqlite::{OptionalExtension, params};

use super::{
    error::Outcome,
    places,
    read::add_in,
    row::{self, INPUT, RESULT, slot},
    writer::Tx,
};
use crate::{Error, ErrorKind, FlowId, FlowState, PrunePolicy};

/// True for a flow whose parent hears of its end and has not ended itself.
const AWAITED: &str = "EXISTS (SELECT 1 FROM flows p WHERE f.detached = 0 AND p.id = f.parent_id \
    AND p.key < f.key AND p.run_key < f.key AND p.state NOT IN (4, 5, 6))";

pub(super) fn prune(tx: &mut Tx<'_, '_>, policy: &PrunePolicy) -> Outcome<u64> {
    // An age in whole microseconds, rounded up.
    let age = i64::try_from(policy.older_than.as_nanos().div_ceil(1_000)).ok();
    let Some(until) = age.and_then(|age| tx.now().as_micros().checked_sub(age)) else { return Ok(0) };
    let mut states = String::new();
    if !policy.states.is_empty() {
        add_in(&mut states, "f.state", policy.states.iter().map(|state| i64::from(state.code())));
    }
    let lanes = tx.lanes.keys_where(|lane| policy.flow_type.as_ref().is_none_or(|name| *name == lane.flow_type));
    let Some(newest) = newest(tx, &lanes, &states, policy.keep)? else { return Ok(0) };
    let sql = format!(
        "SELECT f.finished_us, f.key, f.id FROM flows f WHERE f.lane = ?1 AND f.finished_us <= ?2 \
         AND (f.finished_us, f.key) <= (?3, ?4){states} AND NOT {AWAITED} ORDER BY f.finished_us, f.key LIMIT ?5"
    );
    let mut forgotten = Vec::new();
    for lane in lanes {
        let mut statement = tx.conn.prepare_cached(&sql)?;
        let mut rows = statement.query(params![lane, until, newest.0, newest.1, policy.limit])?;
        while let Some(row) = rows.next()? {
            forgotten.push(((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?), row::flow_id(row, 2).ok()));
        }
    }
    forgotten.sort_unstable_by_key(|(place, _)| *place);
    forgotten.truncate(policy.limit as usize);
    for ((_, key), id) in &forgotten {
        forget(tx, *key)?;
        tx.hints.flows.extend(id.clone());
    }
    Ok(forgotten.len() as u64)
}

/// When the newest flow ended that does not stay by its number, and its key; `None` when all of them stay.
fn newest(tx: &Tx<'_, '_>, lanes: &[i64], states: &str, keep: u32) -> Outcome<Option<(i64, i64)>> {
    if keep == 0 {
        return Ok(Some((i64::MAX, i64::MAX)));
    }
    let sql = format!(
        "SELECT f.finished_us, f.key FROM flows f WHERE f.lane = ?1 AND f.finished_us IS NOT NULL{states} \
         ORDER BY f.finished_us DESC, f.key DESC LIMIT ?2"
    );
    let mut places: Vec<(i64, i64)> = Vec::new();
    for lane in lanes {
        let mut statement = tx.conn.prepare_cached(&sql)?;
        let mut rows = statement.query(params![lane, i64::from(keep) + 1])?;
        while let Some(row) = rows.next()? {
            places.push((row.get(0)?, row.get(1)?));
        }
    }
    places.sort_unstable_by(|a, b| b.cmp(a));
    Ok(places.get(keep as usize).copied())
}

pub(super) fn delete(tx: &mut Tx<'_, '_>, id: &FlowId) -> Outcome<bool> {
    let sql = format!("SELECT key, state, {AWAITED} FROM flows f WHERE id = ?1");
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let found: Option<(i64, u8, bool)> = tx.conn.prepare_cached(&sql)?.query_row([id.as_str()], read).optional()?;
    let Some((key, state, awaited)) = found else { return Ok(false) };
    let conflict = |message: String| Err(Error::new(ErrorKind::Conflict, message).with_flow(id).into());
    match FlowState::from_code(state) {
        Some(state) if !state.is_final() => {
            return conflict(format!("the flow is {state}, only one that has ended can be deleted"));
        }
        _ if awaited => return conflict("the flow's parent has not ended".into()),
        _ => {}
    }
    forget(tx, key)?;
    tx.hints.flows.push(id.clone());
    Ok(true)
}

/// Removes a flow with everything that belongs to it, and keeps its key from being used again.
pub(super) fn forget(tx: &Tx<'_, '_>, key: i64) -> Outcome<()> {
    let all = [slot(key, INPUT), slot(key, RESULT)];
    tx.conn.prepare_cached("DELETE FROM flows WHERE key = ?1")?.execute([key])?;
    tx.conn.prepare_cached("DELETE FROM records WHERE k BETWEEN ?1 AND ?2")?.execute(all)?;
    tx.conn.prepare_cached("DELETE FROM messages WHERE k BETWEEN ?1 AND ?2")?.execute(all)?;
    tx.conn.prepare_cached("DELETE FROM message_keys WHERE flow = ?1")?.execute([key])?;
    tx.conn.prepare_cached("DELETE FROM items WHERE flow = ?1")?.execute([key])?;
    tx.conn.prepare_cached("DELETE FROM effects WHERE flow = ?1")?.execute([key])?;
    tx.conn.prepare_cached("DELETE FROM flow_labels WHERE flow = ?1")?.execute([key])?;
    places::forget(tx, key)?;
    tx.conn.prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'key_floor' AND value < ?1")?.execute([key])?;
    Ok(())
}
