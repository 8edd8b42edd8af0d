//! Flows that are kept for the workers that they are bound to, and when those were heard of.
//!
//! A flow that is due and is not for whoever asks is filed under the instant at which it is for anyone, so that nobody
//! comes upon it before; `kept` says since when it is due. What is filed otherwise by now is kept no more.

use rusqlite::{OptionalExtension, params};

use super::{error::Outcome, writer::Tx};
use crate::{Affinity, ClaimRequest, ClaimTarget, FlowInfo, Timestamp};

/// The flows that are kept for a worker, since the longest time first; also what the tests look at the plan of.
pub(super) const KEPT: &str = "SELECT flow, lane, due_us, until_us FROM kept WHERE worker = ?1 ORDER BY due_us, flow";

/// True when somebody may be bound to a worker: where it is false nothing else is looked at.
fn is_of_use(tx: &mut Tx<'_, '_>) -> Outcome<bool> {
    if let Some(known) = *tx.places {
        return Ok(known);
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM kept) OR EXISTS (SELECT 1 FROM places)";
    let found = tx.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    *tx.places = Some(found);
    Ok(found)
}

/// Takes note that a worker was heard of, if it `is_place` or was heard of before. Answers whether it was.
pub(super) fn hear(tx: &mut Tx<'_, '_>, worker: &str, is_place: bool) -> Outcome<bool> {
    if !is_place && !is_of_use(tx)? {
        return Ok(false);
    }
    let now = tx.now();
    let before = heard_at(tx, worker)?;
    if before.map_or(is_place, |at| now >= at.saturating_add(Affinity::HEARD_STEP)) {
        *tx.places = Some(true);
        let sql = "INSERT OR REPLACE INTO places (worker, heard_us) VALUES (?1, ?2)";
        tx.conn.prepare_cached(sql)?.execute(params![worker, now.as_micros()])?;
    }
    Ok(is_place || before.is_some())
}

fn heard_at(tx: &Tx<'_, '_>, worker: &str) -> Outcome<Option<Timestamp>> {
    let sql = "SELECT heard_us FROM places WHERE worker = ?1";
    let heard = tx.conn.prepare_cached(sql)?.query_row([worker], |row| row.get(0)).optional()?;
    Ok(heard.map(Timestamp::from_micros))
}

/// Keeps a flow that is due for the worker that it is bound to, if that is another one than `worker`; answers whether it
/// does.
pub(super) fn keep(tx: &mut Tx<'_, '_>, key: i64, info: &FlowInfo, worker: &str, now: Timestamp) -> Outcome<bool> {
    let (Some(bound_to), Some(filed_at)) = (&info.worker, info.due_at) else { return Ok(false) };
    let binding = Affinity::binding(&info.labels);
    if binding == Affinity::Anyone || **bound_to == *worker {
        return Ok(false);
    }
    let sql = "SELECT due_us FROM kept WHERE flow = ?1 AND until_us = ?2";
    let due_us: Option<i64> =
        tx.conn.prepare_cached(sql)?.query_row([key, filed_at.as_micros()], |row| row.get(0)).optional()?;
    let due_at = due_us.map_or(filed_at, Timestamp::from_micros);
    let heard_at = heard_at(tx, bound_to)?;
    let until = binding.kept_until(due_at, heard_at.unwrap_or(now), info.deadline_at, now);
    let Some(until) = until else { return Ok(false) };
    if heard_at.is_none() && matches!(binding, Affinity::Require { .. }) {
        hear(tx, bound_to, true)?;
    }
    *tx.places = Some(true);
    let sql = "INSERT OR REPLACE INTO kept (flow, worker, lane, due_us, until_us) \
        SELECT key, ?2, lane, ?3, ?4 FROM flows WHERE key = ?1";
    let values = params![key, &**bound_to, due_at.as_micros(), until.as_micros()];
    tx.conn.prepare_cached(sql)?.execute(values)?;
    file(tx, key, until.as_micros())?;
    Ok(true)
}

/// Makes flows claimable that are kept for a worker, as many as it asks for.
pub(super) fn bring_back(tx: &mut Tx<'_, '_>, request: &ClaimRequest) -> Outcome<()> {
    if request.limit == 0 || !is_of_use(tx)? {
        return Ok(());
    }
    let lanes: Vec<i64> = match &request.target {
        ClaimTarget::Queues { queues, types } => {
            tx.lanes.matching(queues, types).into_iter().map(|(_, lane)| lane).collect()
        }
        ClaimTarget::Flow(_) => Vec::new(),
    };
    let single: Option<i64> = match &request.target {
        ClaimTarget::Flow(id) => tx.st.due_by_id.query_row([id.as_str()], |row| row.get(1)).optional()?,
        ClaimTarget::Queues { .. } => None,
    };
    let mut back = Vec::new();
    let mut stale = Vec::new();
    {
        let mut statement = tx.conn.prepare_cached(KEPT)?;
        let mut rows = statement.query([&*request.worker])?;
        while let Some(row) = rows.next()? {
            let (key, lane, due_us, until_us): (i64, i64, i64, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            let sql = "SELECT due_us = ?2 AND worker = ?3 FROM flows WHERE key = ?1";
            let values = params![key, until_us, &*request.worker];
            let is_kept: Option<Option<bool>> =
                tx.conn.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()?;
            if is_kept.flatten() != Some(true) {
                stale.push(key);
            } else if single == Some(key) || lanes.contains(&lane) {
                back.push((key, due_us));
                if back.len() == request.limit {
                    break;
                }
            }
        }
    }
    for key in stale {
        forget(tx, key)?;
    }
    for (key, due_us) in back {
        forget(tx, key)?;
        file(tx, key, due_us)?;
    }
    Ok(())
}

/// Whoever has leased it, or nobody any more.
pub(super) fn forget(tx: &Tx<'_, '_>, key: i64) -> Outcome<()> {
    tx.conn.prepare_cached("DELETE FROM kept WHERE flow = ?1")?.execute([key])?;
    Ok(())
}

/// A flow with an affinity is leased to a worker.
pub(super) fn leased(tx: &mut Tx<'_, '_>, key: i64, info: &FlowInfo, worker: &str) -> Outcome<()> {
    if matches!(Affinity::binding(&info.labels), Affinity::Require { .. }) {
        hear(tx, worker, true)?;
    }
    forget(tx, key)
}

fn file(tx: &mut Tx<'_, '_>, key: i64, due_us: i64) -> Outcome<()> {
    tx.conn.prepare_cached("UPDATE flows SET due_us = ?2 WHERE key = ?1")?.execute([key, due_us])?;
    tx.hints.queue = true;
    Ok(())
}
