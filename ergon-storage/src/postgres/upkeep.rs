//! Forgetting flows.

use tokio_postgres::types::ToSql;

use super::{
    Inner,
    outside::only,
    pool::{Repeat, Role},
    row::{flow_id, get, state_of},
    statements::Statement,
    text::escape,
};
use crate::{Error, ErrorKind, FlowId, PrunePolicy, Result};

/// How many flows are forgotten in one transaction, which keeps them and their parents locked.
const PRUNE_MAX: i64 = 1_000;

pub(super) async fn prune(log: &Inner, policy: &PrunePolicy) -> Result<u64> {
    // An age in whole microseconds, rounded up; nothing is as old as more than there are.
    let Ok(age) = i64::try_from(policy.older_than.as_nanos().div_ceil(1_000)) else { return Ok(0) };
    let states: Vec<i16> = policy.states.iter().map(|state| i16::from(state.code())).collect();
    let (now, flow_type) = (log.manual_now(), policy.flow_type.as_deref().map(escape));
    let (keep, limit) = (i64::from(policy.keep), i64::from(policy.limit));
    let mut pruned = 0;
    while pruned < limit {
        let count = (limit - pruned).min(PRUNE_MAX);
        let values: [&(dyn ToSql + Sync); 6] = [&now, &age, &states, &flow_type, &keep, &count];
        let rows = log.pool.query(Role::Reads, Statement::Prune, &values, Repeat::Unsafe).await?;
        let forgotten: Vec<FlowId> = rows.iter().filter_map(|row| flow_id(row, 0).ok()).collect();
        log.news.changed(false, &forgotten);
        let found = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        pruned += found;
        if found < count {
            break;
        }
    }
    Ok(pruned.cast_unsigned())
}

pub(super) async fn delete(log: &Inner, id: &FlowId) -> Result<bool> {
    let rows = log.pool.query(Role::Reads, Statement::Delete, &[&escape(id.as_str())], Repeat::Unsafe).await?;
    let conflict = |message: String| Err(Error::new(ErrorKind::Conflict, message).with_flow(id));
    match get::<i32>(only(&rows)?, 0)? {
        0 => {
            log.news.flow(id);
            Ok(true)
        }
        -1 => Ok(false),
        -2 => conflict("the flow's parent has not ended".into()),
        live => {
            let state = state_of(i64::from(live))?;
            conflict(format!("the flow is {state}, only one that has ended can be deleted"))
        }
    }
}
