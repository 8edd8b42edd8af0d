//! Flows that are kept for the workers that they are bound to, and when those were heard of.
//!
//! A flow that is due and is not for whoever asks is filed under the instant at which it is for anyone, so that nobody
//! comes upon it before; `kept` says since when it is due. What is filed otherwise by now is kept no more.

use std::collections::{BTreeSet, HashSet};

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

/// A worker that flows are or were bound to.
struct Place {
    heard_at: Timestamp,
    /// What it asks for, on a line each; `None` while that is not known.
    asks_for: Option<String>,
    /// Since when it asks for no more.
    since: Timestamp,
}

impl Place {
    /// When it was heard of as one that asks for such flows.
    fn heard_at(&self, info: &FlowInfo) -> Timestamp {
        let name = line(&info.queue, &info.flow_type, info.version);
        let asks_for_it = self.asks_for.as_ref().is_none_or(|lines| lines.lines().any(|line| line == name));
        if asks_for_it { self.heard_at } else { self.since.min(self.heard_at) }
    }
}

/// A queue, a type and a version on a line of their own.
fn line(queue: &str, flow_type: &str, version: u32) -> String {
    let name = format!("{version} {} {queue}{flow_type}", queue.len());
    name.replace('\\', r"\\").replace('\n', r"\n").replace('\r', r"\r")
}

/// What a target asks for, in an order of its own; `None` for one that is one flow.
fn lines(target: &ClaimTarget) -> Option<String> {
    let ClaimTarget::Queues { queues, types } = target else { return None };
    let pairs = queues.iter().flat_map(|queue| types.iter().map(move |entry| (queue, entry)));
    let lines: BTreeSet<String> = pairs.map(|(queue, (flow_type, version))| line(queue, flow_type, *version)).collect();
    Some(lines.into_iter().collect::<Vec<_>>().join("\n"))
}

/// Takes note that the worker that asks was heard of, if it `is_place` or was heard of before, and of what it asks for if it
/// says that it is there. Answers whether it was.
pub(super) fn hear(tx: &mut Tx<'_, '_>, request: &ClaimRequest, is_place: bool) -> Outcome<bool> {
    if !is_place && !is_of_use(tx)? {
        return Ok(false);
    }
    let now = tx.now();
    let before = place(tx, &request.worker)?;
    if before.is_none() && !is_place {
        return Ok(false);
    }
    let is_later = before.as_ref().is_none_or(|before| now >= before.heard_at.saturating_add(Affinity::HEARD_STEP));
    let known = before.as_ref().and_then(|before| before.asks_for.as_deref());
    let asks_for = request.is_place.then(|| lines(&request.target)).flatten();
    let asks_for = asks_for.as_deref().or(known);
    if is_later || asks_for != known {
        *tx.places = Some(true);
        if before.is_none() {
            forget_who_is_gone(tx, now)?;
        }
        let is_less = match (known, asks_for) {
            (Some(known), Some(asks_for)) => {
                let asks_for: HashSet<&str> = asks_for.lines().collect();
                !known.lines().all(|line| asks_for.contains(line))
            }
            (known, asks_for) => known != asks_for,
        };
        let since = before.as_ref().filter(|_| !is_less).map_or(now, |before| before.since);
        let heard_at = before.as_ref().filter(|_| !is_later).map_or(now, |before| before.heard_at);
        let sql = "INSERT OR REPLACE INTO places (worker, heard_us, asks_for, since_us) VALUES (?1, ?2, ?3, ?4)";
        let values = params![&*request.worker, heard_at.as_micros(), asks_for, since.as_micros()];
        tx.conn.prepare_cached(sql)?.execute(values)?;
    }
    Ok(true)
}

/// Forgets the workers that were not heard of for long.
fn forget_who_is_gone(tx: &Tx<'_, '_>, now: Timestamp) -> Outcome<()> {
    let sql = "DELETE FROM places WHERE heard_us <= ?1 - ?2";
    let after = i64::try_from(Affinity::FORGOTTEN_AFTER.as_micros()).unwrap_or(i64::MAX);
    tx.conn.prepare_cached(sql)?.execute([now.as_micros(), after])?;
    Ok(())
}

fn place(tx: &Tx<'_, '_>, worker: &str) -> Outcome<Option<Place>> {
    let sql = "SELECT heard_us, asks_for, since_us FROM places WHERE worker = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        let instant = |index| row.get(index).map(Timestamp::from_micros);
        Ok(Place { heard_at: instant(0)?, asks_for: row.get(1)?, since: instant(2)? })
    };
    Ok(tx.conn.prepare_cached(sql)?.query_row([worker], read).optional()?)
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
    let place = place(tx, bound_to)?;
    // A worker that is not known counts from now on. If the flow was kept for it, it has not asked since that was due.
    let unheard_at = due_us.map_or(now, Timestamp::from_micros);
    let heard_at = place.as_ref().map_or(unheard_at, |place| place.heard_at(info));
    let Some(until) = Affinity::kept_until(info, due_at, heard_at, now) else { return Ok(false) };
    if place.is_none() && due_us.is_none() && matches!(binding, Affinity::Require { .. }) {
        let sql = "INSERT INTO places (worker, heard_us, since_us) VALUES (?1, ?2, ?2)";
        tx.conn.prepare_cached(sql)?.execute(params![&**bound_to, now.as_micros()])?;
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
pub(super) fn leased(tx: &mut Tx<'_, '_>, key: i64, info: &FlowInfo, request: &ClaimRequest) -> Outcome<()> {
    if matches!(Affinity::binding(&info.labels), Affinity::Require { .. }) {
        hear(tx, request, true)?;
    }
    forget(tx, key)
}

fn file(tx: &mut Tx<'_, '_>, key: i64, due_us: i64) -> Outcome<()> {
    tx.conn.prepare_cached("UPDATE flows SET due_us = ?2 WHERE key = ?1")?.execute([key, due_us])?;
    tx.hints.queue = true;
    Ok(())
}
