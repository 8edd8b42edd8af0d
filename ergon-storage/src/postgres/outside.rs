//! What others do to flows.

use std::sync::Arc;

use tokio_postgres::{Row, types::ToSql};

use super::{
    Inner,
    pool::{Repeat, Role},
    row::{flow_id, get, state_of, unreadable},
    statements::Statement,
    text::{escape, unescape},
};
use crate::{Cancelled, Error, FlowId, Result, Retried};

/// Whether a flow that is cancelled may clean up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    InOrder,
    AtOnce,
}

/// The only row of an answer.
pub(super) fn only(rows: &[Row]) -> Result<&Row> {
    rows.first().ok_or_else(|| unreadable("an answer without a row"))
}

/// The flows that have changed.
pub(super) fn changed(row: &Row, index: usize) -> Result<Vec<FlowId>> {
    let ids: Vec<&str> = get(row, index)?;
    Ok(ids.into_iter().filter_map(|id| FlowId::new(unescape(id)).ok()).collect())
}

pub(super) async fn cancel(log: &Inner, flow: &FlowId, reason: &str, ending: Ending) -> Result<Cancelled> {
    log.connector.options.limits.check_reason(flow, reason)?;
    let (now, id, text) = (log.manual_now(), escape(flow.as_str()), escape(reason));
    let at_once = ending == Ending::AtOnce;
    let values: [&(dyn ToSql + Sync); 5] = [&now, &id, &text, &reason.as_bytes(), &at_once];
    let rows = log.pool.query(Role::Others, Statement::Cancel, &values, Repeat::Unsafe).await?;
    let row = only(&rows)?;
    match get::<i32>(row, 0)? {
        -1 => Err(Error::not_found(flow)),
        0 => {
            let changed = changed(row, 1)?;
            let woken: Option<bool> = get(row, 2)?;
            log.news.changed(woken.unwrap_or_default(), &changed);
            Ok(Cancelled::Now)
        }
        ended => Ok(Cancelled::Already(state_of(i64::from(ended))?)),
    }
}

pub(super) async fn retry(log: &Inner, flow: &FlowId) -> Result<Retried> {
    let (now, id) = (log.manual_now(), escape(flow.as_str()));
    let rows = log.pool.query(Role::Others, Statement::Retry, &[&now, &id], Repeat::Unsafe).await?;
    let row = only(&rows)?;
    match get::<i32>(row, 0)? {
        -1 => Err(Error::not_found(flow)),
        0 => {
            log.news.changed(true, &changed(row, 1)?);
            Ok(Retried::Scheduled)
        }
        other => Ok(Retried::Not(state_of(i64::from(other))?)),
    }
}

pub(super) async fn reoffer(log: &Inner, types: &[(Arc<str>, u32)], build: &str) -> Result<u64> {
    let names: Vec<_> = types.iter().map(|(name, _)| escape(name)).collect();
    let versions: Vec<_> = types.iter().map(|(_, version)| i64::from(*version)).collect();
    let (now, build) = (log.manual_now(), escape(build));
    let values: [&(dyn ToSql + Sync); 4] = [&now, &names, &versions, &build];
    let rows = log.pool.query(Role::Others, Statement::Reoffer, &values, Repeat::Unsafe).await?;
    let offered: Vec<FlowId> = rows.iter().filter_map(|row| flow_id(row, 0).ok()).collect();
    log.news.changed(!rows.is_empty(), &offered);
    Ok(rows.len() as u64)
}
