//! Forgetting flows that have ended, in the background.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use ergon_storage::{ExecutionLog, PrunePolicy};
use tokio::time::Instant;

use crate::flow::FlowDef;

/// How many flows are forgotten in one call at most, so that claims and commits get their turn.
const BATCH_MAX: u32 = 100;
/// After a call the log is left alone for so many times the time that the call took.
const REST: u32 = 20;

/// What a worker prunes.
pub(super) struct Retention {
    log: Arc<dyn ExecutionLog>,
    worker: Arc<str>,
    policies: Vec<PrunePolicy>,
    interval: Duration,
}

impl Retention {
    /// `None` when nothing is to be forgotten.
    pub(super) fn new(
        log: Arc<dyn ExecutionLog>,
        worker: Arc<str>,
        asked: &[PrunePolicy],
        interval: Duration,
        defs: &BTreeMap<(Arc<str>, u32), FlowDef>,
    ) -> Option<Self> {
        let policies = policies(asked, defs);
        (!policies.is_empty()).then_some(Self { log, worker, policies, interval })
    }

    /// Prunes time and again, until it is dropped.
    pub(super) async fn run(self) {
        let clock = self.log.clock();
        // Workers that start together do not prune together, and one that starts often prunes nevertheless.
        let mut wait = self.interval.mul_f64(self.chance(0));
        for round in 1.. {
            clock.sleep_until(clock.now().saturating_add(wait)).await;
            for policy in &self.policies {
                self.prune(policy).await;
            }
            wait = self.interval.mul_f64(0.5 + self.chance(round));
        }
    }

    /// Forgets all that a policy means.
    async fn prune(&self, policy: &PrunePolicy) {
        loop {
            let began_at = Instant::now();
            let pruned = self.log.prune(policy).await;
            tokio::time::sleep(began_at.elapsed() * REST).await;
            let (worker, flow_type) = (&self.worker, policy.flow_type.as_deref());
            match pruned {
                Ok(0) => return,
                Ok(flows) => {
                    tracing::debug!(%worker, flow_type, flows, "flows that have ended are forgotten");
                    if flows < u64::from(policy.limit) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%worker, flow_type, %error, "flows could not be pruned; it is tried again later");
                    return;
                }
            }
        }
    }

    /// A number from 0 to 1 for this worker and round.
    fn chance(&self, round: u64) -> f64 {
        let mut hasher = DefaultHasher::new();
        (&self.worker, round).hash(&mut hasher);
        f64::from(u32::try_from(hasher.finish() >> 32).unwrap_or_default()) / f64::from(u32::MAX)
    }
}

/// One or several policies for each type. What was asked for a type goes before what the type says itself, and that
/// before what was asked for all.
fn policies(asked: &[PrunePolicy], defs: &BTreeMap<(Arc<str>, u32), FlowDef>) -> Vec<PrunePolicy> {
    let mut policies: Vec<_> = asked.iter().filter(|policy| policy.flow_type.is_some()).cloned().collect();
    // The newest version of each type, for it comes last.
    let types: BTreeMap<&Arc<str>, &FlowDef> = defs.iter().map(|((name, _), def)| (name, def)).collect();
    for (name, def) in types {
        if policies.iter().any(|policy| policy.flow_type.as_ref() == Some(name)) {
            continue;
        }
        if let Some(age) = def.retention {
            policies.push(PrunePolicy::older_than(age).with_flow_type(Arc::clone(name)));
        } else {
            let for_all = asked.iter().filter(|policy| policy.flow_type.is_none());
            policies.extend(for_all.map(|policy| policy.clone().with_flow_type(Arc::clone(name))));
        }
    }
    for policy in &mut policies {
        policy.limit = policy.limit.clamp(1, BATCH_MAX);
    }
    policies
}

#[cfg(test)]
mod tests {
    use ergon_storage::InMemoryExecutionLog;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn def(name: &'static str, version: u32, retention: Option<Duration>) -> ((Arc<str>, u32), FlowDef) {
        ((name.into(), version), FlowDef::for_test(name, version, retention))
    }

    #[test]
    fn a_type_has_the_nearest_policy_that_was_asked_for() {
        let defs = BTreeMap::from([
            def("Import", 1, None),
            def("Order", 1, Some(DAY)),
            def("Order", 2, Some(2 * DAY)),
            def("Refund", 1, Some(3 * DAY)),
        ]);
        let brief = |asked: &[PrunePolicy]| -> Vec<(String, Duration, u32)> {
            let all = policies(asked, &defs);
            all.into_iter().map(|p| (p.flow_type.unwrap().to_string(), p.older_than, p.limit)).collect()
        };
        let one = |name: &str, age| (name.to_owned(), age, BATCH_MAX);
        assert_eq!(brief(&[]), [one("Order", 2 * DAY), one("Refund", 3 * DAY)]);
        let asked = [
            PrunePolicy::older_than(9 * DAY),
            PrunePolicy::older_than(8 * DAY).with_flow_type("Refund"),
            PrunePolicy::older_than(7 * DAY).with_flow_type("Elsewhere").with_limit(7),
        ];
        let elsewhere = ("Elsewhere".to_owned(), 7 * DAY, 7);
        let expected = [one("Refund", 8 * DAY), elsewhere, one("Import", 9 * DAY), one("Order", 2 * DAY)];
        assert_eq!(brief(&asked), expected);
    }

    #[test]
    fn workers_take_turns_of_their_own() {
        let chances = |worker: &str| {
            let asked = [PrunePolicy::all_but(1).with_flow_type("Order")];
            let log = Arc::new(InMemoryExecutionLog::new());
            let retention = Retention::new(log, worker.into(), &asked, DAY, &BTreeMap::new()).unwrap();
            [0, 1, 2].map(|round| retention.chance(round))
        };
        let (a, b) = (chances("a"), chances("b"));
        assert_eq!(a.map(f64::to_bits), chances("a").map(f64::to_bits));
        assert!(a.iter().chain(&b).all(|chance| (0.0..=1.0).contains(chance)));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() > 0.001) && (a[0] - a[1]).abs() > 0.001);
    }
}
