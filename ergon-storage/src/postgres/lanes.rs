//! The interned combinations of queue, type, version and priority.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use tokio_postgres::Row;

use super::{
    pool::{Pool, Repeat, Role},
    row::{get, unreadable},
    statements::Statement,
    text::{escape, unescape},
};
use crate::{NewFlow, Result};

/// What a flow is filed under while it waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    pub(super) queue: Arc<str>,
    pub(super) flow_type: Arc<str>,
    pub(super) version: u32,
    pub(super) priority: i16,
}

impl Lane {
    fn of(flow: &NewFlow) -> Self {
        Self {
            queue: Arc::clone(&flow.queue),
            flow_type: Arc::clone(&flow.flow_type),
            version: flow.version,
            priority: flow.priority,
        }
    }
}

/// This process's copy of the lanes. Lanes are never changed or removed, so a copy is at worst incomplete, and of two
/// the larger is the later one.
#[derive(Debug, Default)]
pub(super) struct Lanes(RwLock<Arc<Known>>);

/// The lanes as they were at some moment.
#[derive(Debug, Default)]
pub(super) struct Known {
    by_number: HashMap<i32, Lane>,
    numbers: HashMap<Lane, i32>,
    priorities: HashMap<Kind, Vec<(i16, i32)>>,
}

/// Queue, type and version: what a worker asks for.
type Kind = (Arc<str>, Arc<str>, u32);

impl Known {
    /// The lane of this number.
    pub(super) fn get(&self, number: i32) -> Result<Lane> {
        self.by_number.get(&number).cloned().ok_or_else(|| unreadable(format!("there is no lane {number}")))
    }
}

impl Lanes {
    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lanes of these queues and types with their priorities, each once, the highest priority first; and among
    /// how many lanes they were found.
    pub(super) fn matching(&self, queues: &[Arc<str>], types: &[(Arc<str>, u32)]) -> (i64, Vec<i16>, Vec<i32>) {
        let known = self.known();
        let mut found: Vec<(i16, i32)> = Vec::new();
        for queue in queues {
            for (flow_type, version) in types {
                let kind = (Arc::clone(queue), Arc::clone(flow_type), *version);
                found.extend(known.priorities.get(&kind).into_iter().flatten());
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        let (priorities, lanes) = found.into_iter().unzip();
        (i64::try_from(known.by_number.len()).unwrap_or(i64::MAX), priorities, lanes)
    }

    /// The lanes with those in this column, which others may have added. Null is no lane.
    pub(super) async fn know(&self, pool: &Pool, rows: &[Row], column: usize) -> Result<Arc<Known>> {
        let known = self.known();
        let all_known = rows.iter().all(|row| match row.try_get::<_, Option<i32>>(column) {
            Ok(Some(number)) => known.by_number.contains_key(&number),
            _ => true,
        });
        if all_known { Ok(known) } else { self.load(pool).await }
    }

    /// The numbers of the lanes of new flows, which are added where they are the first in theirs.
    pub(super) async fn of_new<'f>(
        &self,
        pool: &Pool,
        flows: impl Iterator<Item = &'f NewFlow> + Clone,
    ) -> Result<Vec<i32>> {
        for _ in 0..2 {
            let missing = match self.find(flows.clone()) {
                Ok(numbers) => return Ok(numbers),
                Err(missing) => missing,
            };
            let queues: Vec<_> = missing.iter().map(|lane| escape(&lane.queue)).collect();
            let types: Vec<_> = missing.iter().map(|lane| escape(&lane.flow_type)).collect();
            let versions: Vec<_> = missing.iter().map(|lane| i64::from(lane.version)).collect();
            let priorities: Vec<_> = missing.iter().map(|lane| lane.priority).collect();
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&queues, &types, &versions, &priorities];
            pool.query(Role::Others, Statement::AddLanes, &values, Repeat::Safe).await?;
            self.load(pool).await?;
        }
        Err(unreadable("a lane that was added is not there"))
    }

    fn find<'f>(&self, flows: impl Iterator<Item = &'f NewFlow>) -> Result<Vec<i32>, Vec<Lane>> {
        let known = self.known();
        let mut missing = Vec::new();
        let mut numbers = Vec::new();
        for lane in flows.map(Lane::of) {
            match known.numbers.get(&lane) {
                Some(number) => numbers.push(*number),
                None if !missing.contains(&lane) => missing.push(lane),
                None => {}
            }
        }
        if missing.is_empty() { Ok(numbers) } else { Err(missing) }
    }

    /// Reads them all.
    pub(super) async fn load(&self, pool: &Pool) -> Result<Arc<Known>> {
        let rows = pool.query(Role::Others, Statement::Lanes, &[], Repeat::Safe).await?;
        let mut all = Known::default();
        for row in &rows {
            let lane = Lane {
                queue: unescape(get(row, 1)?).into(),
                flow_type: unescape(get(row, 2)?).into(),
                version: u32::try_from(get::<i64>(row, 3)?).map_err(|_| unreadable("a version is out of range"))?,
                priority: get(row, 4)?,
            };
            let kind = (Arc::clone(&lane.queue), Arc::clone(&lane.flow_type), lane.version);
            all.priorities.entry(kind).or_default().push((lane.priority, get(row, 0)?));
            all.numbers.insert(lane.clone(), get(row, 0)?);
            all.by_number.insert(get(row, 0)?, lane);
        }
        Ok(self.keep(all))
    }

    /// Keeps what was read, unless another reader has been there with something later.
    fn keep(&self, read: Known) -> Arc<Known> {
        let read = Arc::new(read);
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if read.by_number.len() > kept.by_number.len() {
            *kept = Arc::clone(&read);
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read first may arrive last.
    #[test]
    fn the_later_copy_is_kept() {
        let copy = |count: i32| {
            let lane = |number| Lane { queue: "q".into(), flow_type: "t".into(), version: number, priority: 0 };
            let by_number = (0..count).map(|number| (number, lane(number.unsigned_abs()))).collect();
            Known { by_number, ..Known::default() }
        };
        let lanes = Lanes::default();
        for (count, kept) in [(2, 2), (1, 2), (3, 3), (2, 3)] {
            lanes.keep(copy(count));
            assert_eq!(lanes.known().by_number.len(), kept);
        }
    }
}
