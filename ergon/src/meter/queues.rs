//! Gauges of what the log holds, sampled.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use ergon_storage::{Count, ExecutionLog, FlowState, Timestamp};
use metrics::{Gauge, gauge};

use super::names;

/// The most combinations of queue and type that have gauges of their own. Whoever has a queue for each customer would
/// otherwise flood what collects them.
const SERIES_MAX: usize = 200;
/// The queue and type of the others.
const OTHER: &str = "other";
/// Between two samples there is at least so many times the time that the first one took.
const REST: u32 = 20;

/// Samples the log time and again, until it is dropped.
pub(crate) async fn sample(log: Arc<dyn ExecutionLog>, every: Duration) {
    let mut gauges = Gauges::default();
    loop {
        let began_at = tokio::time::Instant::now();
        match log.counts(&ergon_storage::Filter::all()).await {
            Ok(counts) => gauges.set(counts, log.clock().now()),
            Err(error) => tracing::debug!(%error, "the queues could not be sampled"),
        }
        tokio::time::sleep(every.max(began_at.elapsed() * REST)).await;
    }
}

/// A queue and a type.
type Lane = (Arc<str>, Arc<str>);

#[derive(Default)]
struct Gauges {
    lanes: HashMap<Lane, LaneGauges>,
}

struct LaneGauges {
    /// In the order of [`FlowState::ALL`].
    flows: [Gauge; FlowState::ALL.len()],
    oldest: Gauge,
}

#[derive(Default)]
struct LaneCounts {
    flows: [u64; FlowState::ALL.len()],
    oldest_due_at: Option<Timestamp>,
}

impl Gauges {
    #[allow(clippy::cast_precision_loss)]
    fn set(&mut self, counts: Vec<Count>, now: Timestamp) {
        let mut lanes: BTreeMap<Lane, LaneCounts> = BTreeMap::new();
        let mut known = self.lanes.len();
        for count in counts {
            let mut lane = (count.queue, count.flow_type);
            if !self.lanes.contains_key(&lane) && !lanes.contains_key(&lane) {
                if known < SERIES_MAX {
                    known += 1;
                } else {
                    lane = (OTHER.into(), OTHER.into());
                }
            }
            let sum = lanes.entry(lane).or_default();
            if let Some(index) = FlowState::ALL.iter().position(|state| *state == count.state) {
                sum.flows[index] += count.flows;
            }
            sum.oldest_due_at = sum.oldest_due_at.into_iter().chain(count.oldest_due_at).min();
        }
        // What is gone is none.
        for lane in self.lanes.keys() {
            if !lanes.contains_key(lane) {
                lanes.insert(lane.clone(), LaneCounts::default());
            }
        }
        for (lane, counts) in lanes {
            let gauges = self.lanes.entry(lane).or_insert_with_key(LaneGauges::new);
            for (gauge, flows) in gauges.flows.iter().zip(counts.flows) {
                gauge.set(flows as f64);
            }
            gauges.oldest.set(counts.oldest_due_at.map_or(0.0, |due_at| now.since(due_at).as_secs_f64()));
        }
    }
}

impl LaneGauges {
    fn new((queue, flow_type): &Lane) -> Self {
        let labels = || (Arc::clone(queue), Arc::clone(flow_type));
        Self {
            flows: FlowState::ALL.map(|state| {
                let (queue, flow_type) = labels();
                gauge!(names::FLOWS, "queue" => queue, "flow_type" => flow_type, "state" => state.to_string())
            }),
            oldest: gauge!(names::OLDEST_DUE, "queue" => labels().0, "flow_type" => labels().1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_beyond_the_limit_are_one() {
        let count = |number: usize| Count {
            queue: format!("customer-{number}").into(),
            flow_type: "Order".into(),
            version: 1,
            state: FlowState::Scheduled,
            flows: 2,
            oldest_due_at: None,
        };
        let mut gauges = Gauges::default();
        gauges.set((0..SERIES_MAX + 10).map(count).collect(), Timestamp::EPOCH);
        assert_eq!(gauges.lanes.len(), SERIES_MAX + 1);
        gauges.set((100..SERIES_MAX + 100).map(count).collect(), Timestamp::EPOCH);
        assert_eq!(gauges.lanes.len(), SERIES_MAX + 1, "those that come later are others too");
    }
}
