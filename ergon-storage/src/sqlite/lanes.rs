//! The interned combinations of queue, type, version and priority.

use std::{collections::HashMap, sync::Arc};

use rusqlite::Connection;

use super::error::{Fault, Outcome};
use crate::NewFlow;

/// What a flow is filed under while it waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    pub(super) queue: Arc<str>,
    pub(super) flow_type: Arc<str>,
    pub(super) version: u32,
    pub(super) priority: i16,
}

impl Lane {
    pub(super) fn of(flow: &NewFlow) -> Self {
        Self {
            queue: Arc::clone(&flow.queue),
            flow_type: Arc::clone(&flow.flow_type),
            version: flow.version,
            priority: flow.priority,
        }
    }
}

/// Queue, type and version: what a worker asks for.
type Kind = (Arc<str>, Arc<str>, u32);

/// A connection's copy of the lanes. Lanes are never changed or removed, so a copy is at worst incomplete.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    last: i64,
    by_key: HashMap<i64, Lane>,
    keys: HashMap<Lane, i64>,
    priorities: HashMap<Kind, Vec<(i16, i64)>>,
}

impl Lanes {
    /// Reads the lanes that others have added.
    pub(super) fn load(&mut self, conn: &Connection) -> Outcome<()> {
        let sql = "SELECT lane, queue, flow_type, version, priority FROM lanes WHERE lane > ?1 ORDER BY lane";
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query([self.last])?;
        while let Some(row) = rows.next()? {
            let lane = Lane { queue: row.get(1)?, flow_type: row.get(2)?, version: row.get(3)?, priority: row.get(4)? };
            self.add(row.get(0)?, lane);
        }
        Ok(())
    }

    /// Remembers a lane.
    pub(super) fn add(&mut self, key: i64, lane: Lane) {
        let kind = (Arc::clone(&lane.queue), Arc::clone(&lane.flow_type), lane.version);
        self.priorities.entry(kind).or_default().push((lane.priority, key));
        self.keys.insert(lane.clone(), key);
        self.by_key.insert(key, lane);
        self.last = self.last.max(key);
    }

    pub(super) fn key(&self, lane: &Lane) -> Option<i64> {
        self.keys.get(lane).copied()
    }

    /// The lane of a row, which may have been added by another connection.
    pub(super) fn get(&mut self, conn: &Connection, key: i64) -> Outcome<&Lane> {
        if !self.by_key.contains_key(&key) {
            self.load(conn)?;
        }
        self.by_key.get(&key).ok_or_else(|| Fault::Unreadable(format!("there is no lane {key}")))
    }

    /// The lanes of these queues and types with their priorities, each once, the highest priority first.
    pub(super) fn matching(&self, queues: &[Arc<str>], types: &[(Arc<str>, u32)]) -> Vec<(i16, i64)> {
        let mut found: Vec<(i16, i64)> = Vec::new();
        for queue in queues {
            for (flow_type, version) in types {
                let kind = (Arc::clone(queue), Arc::clone(flow_type), *version);
                found.extend(self.priorities.get(&kind).into_iter().flatten());
            }
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found
    }

    /// The keys of all lanes that pass.
    pub(super) fn keys_where(&self, mut passes: impl FnMut(&Lane) -> bool) -> Vec<i64> {
        self.by_key.iter().filter(|(_, lane)| passes(lane)).map(|(key, _)| *key).collect()
    }
}
