//! What a seed decides: the flows, the processes, and what goes wrong.

use rand::{Rng, SeedableRng, rngs::SmallRng};

use std::time::Duration;

use crate::program::{Circumstances, Generator, Op, Program};
use ergon::{Affinity, Takeover};

/// A run, but for what is drawn while it goes on, which its [`salt`](Self::salt) decides.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// 0, unless the plan was made smaller: the same failure may need other luck then.
    pub(crate) salt: u64,
    pub(crate) flows: Vec<FlowPlan>,
    pub(crate) fleet: Fleet,
    pub(crate) faults: Faults,
    /// When all flows of the group are cancelled.
    pub(crate) cancel_group_at_ms: Option<u64>,
}

/// A flow that a client schedules.
#[derive(Debug, Clone)]
pub(crate) struct FlowPlan {
    pub(crate) number: usize,
    pub(crate) program: Program,
    pub(crate) schedule_at_ms: u64,
    /// How much later it may start.
    pub(crate) delay_ms: u64,
    pub(crate) cancel_at_ms: Option<u64>,
    /// When messages are sent to it.
    pub(crate) messages_at_ms: Vec<u64>,
    /// It is one of the group.
    pub(crate) in_group: bool,
    pub(crate) affinity: Affinity,
    /// Somebody follows what it tells.
    pub(crate) is_followed: bool,
    pub(crate) repairs: Vec<Repair>,
}

/// What is done about a flow by hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repair {
    pub(crate) at_ms: u64,
    pub(crate) means: Means,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Means {
    Retry,
    Reset(Place),
    /// With the messages that it has, or without.
    Fork(Place, bool),
}

/// Where a history is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Start,
    End,
    /// So far from its beginning, out of a thousand.
    Call(usize),
}

/// The processes that run flows, and their settings.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) processes: u32,
    pub(crate) slots: usize,
    pub(crate) lease_ms: u64,
    pub(crate) moment_ms: u64,
    pub(crate) parked_max: usize,
    pub(crate) grace_ms: u64,
    /// How many records a claim carries at most.
    pub(crate) history_max: usize,
    /// The log may answer commits at once.
    pub(crate) prompt: bool,
    /// The longest that a message in the network usually takes.
    pub(crate) latency_ms: u64,
}

/// What goes wrong. Chances are out of a thousand; what happens every so often does so at random around it, and
/// never when it is 0.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// When they end.
    pub(crate) until_ms: u64,
    /// A call is refused before it reaches the log.
    pub(crate) refuse: u32,
    /// A call is applied, and its answer lost.
    pub(crate) lose: u32,
    /// A call takes seconds, so that later ones overtake it.
    pub(crate) delay: u32,
    /// The process dies with a write on its lips.
    pub(crate) die_before: u32,
    /// The process dies before it hears of a write.
    pub(crate) die_after: u32,
    pub(crate) kill_every_ms: u64,
    /// A process stops for a while, and then goes on as if nothing had been.
    pub(crate) freeze_every_ms: u64,
    pub(crate) shutdown_every_ms: u64,
    /// The log is away for a while.
    pub(crate) outage_every_ms: u64,
    /// Everything dies at once, and the log loses its last writes.
    pub(crate) power_cut_every_ms: u64,
    /// How many writes a power cut loses at most.
    pub(crate) tail_max: u32,
    pub(crate) hints_lost: u32,
    pub(crate) hints_doubled: u32,
    pub(crate) hints_late: u32,
    /// How far the clock of a process may be off, in either direction.
    pub(crate) skew_ms: u64,
    /// Bodies of steps take seconds longer.
    pub(crate) slow_bodies: u32,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rng = &mut rng;
        let fleet = Fleet {
            processes: rng.random_range(1..=3),
            slots: [1, 2, 8][rng.random_range(0..3)],
            lease_ms: rng.random_range(1..=4) * 1_500,
            moment_ms: [0, 50, 1_000][rng.random_range(0..3)],
            parked_max: rng.random_range(0..3),
            grace_ms: rng.random_range(0..3) * 400,
            history_max: [1, 3, 1_000, 1_000][rng.random_range(0..4)],
            prompt: rng.random_bool(0.3),
            latency_ms: [0, 3, 40][rng.random_range(0..3)],
        };
        let faults = Faults::new(rng);
        let count = rng.random_range(1..=3);
        let mut generator = Generator { rng, flows: count, budget: 24, numbers: 1 };
        let flows = (0..count).map(|number| FlowPlan::new(number, &mut generator, faults.until_ms)).collect();
        let cancel_group_at_ms = rng.random_bool(0.15).then(|| rng.random_range(0..faults.until_ms));
        Self { seed, salt: 0, flows, fleet, faults, cancel_group_at_ms }
    }

    pub(crate) fn circumstances(&self) -> Circumstances {
        let Faults { freeze_every_ms, slow_bodies, .. } = self.faults;
        let deaths = self.faults.deaths();
        let repairs = self.flows.iter().any(|flow| !flow.repairs.is_empty());
        // A process that waits for the log does not come to its bodies in time.
        Circumstances { slow: deaths || freeze_every_ms > 0 || slow_bodies > 0, deaths, repairs }
    }

    /// Plans in which a little less happens, those that leave out the most first.
    pub(crate) fn smaller(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            if format!("{plan:?}") != format!("{self:?}") {
                plans.push(plan);
            }
        };
        for index in 0..self.flows.len() {
            add(&|plan| _ = plan.flows.remove(index));
        }
        add(&|plan| plan.faults = Faults { until_ms: plan.faults.until_ms, ..Faults::default() });
        for clear in Faults::EACH {
            add(&|plan| clear(&mut plan.faults));
        }
        add(&|plan| plan.cancel_group_at_ms = None);
        add(&|plan| plan.fleet.processes = 1);
        add(&|plan| plan.fleet.processes = plan.fleet.processes.min(2));
        add(&|plan| plan.fleet.latency_ms = 0);
        add(&|plan| plan.fleet.history_max = 1_000);
        add(&|plan| plan.fleet.parked_max = 0);
        add(&|plan| plan.fleet.moment_ms = 0);
        add(&|plan| plan.fleet.prompt = false);
        add(&|plan| plan.fleet.slots = 8);
        for index in 0..self.flows.len() {
            add(&|plan| plan.flows[index].cancel_at_ms = None);
            add(&|plan| plan.flows[index].messages_at_ms.clear());
            add(&|plan| plan.flows[index].delay_ms = 0);
            add(&|plan| plan.flows[index].affinity = Affinity::Anyone);
            add(&|plan| plan.flows[index].is_followed = false);
            for repair in 0..self.flows[index].repairs.len() {
                add(&|plan| _ = plan.flows[index].repairs.remove(repair));
            }
            add(&|plan| plan.flows[index].schedule_at_ms = 0);
            add(&|plan| plan.flows[index].program.runs = 1);
            add(&|plan| plan.flows[index].program.end = crate::program::End::Returns);
            for program in smaller_lists(&self.flows[index].program.ops) {
                add(&|plan| plan.flows[index].program.ops.clone_from(&program));
            }
        }
        plans
    }

    /// How much happens, roughly.
    pub(crate) fn size(&self) -> usize {
        fn of(ops: &[Op]) -> usize {
            ops.iter().map(|op| 1 + op.inner().map_or(0, |ops| of(ops))).sum()
        }
        self.flows.iter().map(|flow| 1 + of(&flow.program.ops)).sum()
    }
}

/// The same list without one thing of it, or with one in place of what holds it.
fn smaller_lists(ops: &[Op]) -> Vec<Vec<Op>> {
    let mut lists = Vec::new();
    for index in 0..ops.len() {
        let mut less = ops.to_vec();
        let op = less.remove(index);
        lists.push(less.clone());
        if let Some(inner) = op.inner() {
            if !matches!(op, Op::Limited(_) | Op::Nested(_)) {
                let mut flat = less;
                flat.splice(index..index, inner.iter().cloned());
                lists.push(flat);
            }
            for inner in smaller_lists(inner) {
                let mut list = ops.to_vec();
                if !inner.is_empty()
                    && let Some(place) = list[index].inner_mut()
                {
                    *place = inner;
                    lists.push(list);
                }
            }
        }
    }
    lists
}

impl FlowPlan {
    fn new(number: usize, generator: &mut Generator<'_>, until_ms: u64) -> Self {
        let program = generator.program();
        let rng = &mut *generator.rng;
        let messages = rng.random_range(0..6);
        let chance = if program.end == crate::program::End::Returns { 0.15 } else { 0.5 };
        let count = if rng.random_bool(chance) { rng.random_range(1..=3) } else { 0 };
        let can_be_forked = program.can_be_forked();
        let repairs = (0..count)
            .map(|_| Repair::new(rng, until_ms))
            .filter(|repair| can_be_forked || !matches!(repair.means, Means::Fork(..)));
        let repairs = repairs.collect();
        Self {
            number,
            program,
            schedule_at_ms: rng.random_range(0..4) * 500,
            delay_ms: if rng.random_bool(0.2) { rng.random_range(0..4_000) } else { 0 },
            cancel_at_ms: rng.random_bool(0.25).then(|| rng.random_range(0..until_ms)),
            messages_at_ms: (0..messages).map(|_| rng.random_range(0..until_ms)).collect(),
            in_group: rng.random_bool(0.3),
            affinity: affinity(rng),
            is_followed: rng.random_bool(0.5),
            repairs,
        }
    }
}

impl Repair {
    fn new(rng: &mut SmallRng, until_ms: u64) -> Self {
        let place = match rng.random_range(0..6) {
            0 => Place::Start,
            1 => Place::End,
            _ => Place::Call(rng.random_range(0..1_000)),
        };
        let means = match rng.random_range(0..3) {
            0 => Means::Retry,
            1 => Means::Reset(place),
            _ => Means::Fork(place, rng.random()),
        };
        Self { at_ms: rng.random_range(0..until_ms), means }
    }
}

fn affinity(rng: &mut SmallRng) -> Affinity {
    match rng.random_range(0..20) {
        0..3 => Affinity::Prefer { patience: Duration::from_millis(rng.random_range(0..4) * 1_000) },
        3 => Affinity::Require { takeover: Takeover::After(Affinity::TAKEOVER_MIN) },
        _ => Affinity::Anyone,
    }
}

impl Faults {
    const EACH: [fn(&mut Self); 17] = [
        |faults| faults.power_cut_every_ms = 0,
        |faults| faults.kill_every_ms = 0,
        |faults| faults.freeze_every_ms = 0,
        |faults| faults.shutdown_every_ms = 0,
        |faults| faults.outage_every_ms = 0,
        |faults| faults.refuse = 0,
        |faults| faults.lose = 0,
        |faults| faults.delay = 0,
        |faults| faults.die_before = 0,
        |faults| faults.die_after = 0,
        |faults| faults.tail_max = 0,
        |faults| faults.hints_lost = 0,
        |faults| faults.hints_doubled = 0,
        |faults| faults.hints_late = 0,
        |faults| faults.skew_ms = 0,
        |faults| faults.slow_bodies = 0,
        |faults| faults.until_ms /= 2,
    ];

    /// Some of all, so that what one of them hides another run shows.
    fn new(rng: &mut SmallRng) -> Self {
        let mut faults = Self {
            until_ms: rng.random_range(4..=24) * 1_000,
            refuse: rng.random_range(5..150),
            lose: rng.random_range(5..150),
            delay: rng.random_range(5..80),
            die_before: rng.random_range(2..60),
            die_after: rng.random_range(2..60),
            kill_every_ms: rng.random_range(1..8) * 1_000,
            freeze_every_ms: rng.random_range(1..6) * 1_000,
            shutdown_every_ms: rng.random_range(1..8) * 1_000,
            outage_every_ms: rng.random_range(3..10) * 1_000,
            power_cut_every_ms: 0,
            tail_max: 0,
            hints_lost: rng.random_range(50..1_000),
            hints_doubled: rng.random_range(50..500),
            hints_late: rng.random_range(50..500),
            skew_ms: rng.random_range(1..20),
            slow_bodies: rng.random_range(10..200),
        };
        for clear in &Self::EACH[..Self::EACH.len() - 1] {
            if rng.random_bool(0.6) {
                clear(&mut faults);
            }
        }
        if rng.random_bool(0.12) {
            faults.power_cut_every_ms = rng.random_range(4..12) * 1_000;
            faults.tail_max = rng.random_range(0..12);
        }
        faults
    }

    /// True when processes may die, or lose a lease.
    fn deaths(&self) -> bool {
        let chances = [self.refuse, self.lose, self.delay, self.die_before, self.die_after];
        let instants = [
            self.kill_every_ms,
            self.freeze_every_ms,
            self.shutdown_every_ms,
            self.outage_every_ms,
            self.power_cut_every_ms,
        ];
        chances.iter().any(|chance| *chance > 0) || instants.iter().any(|every| *every > 0)
    }
}
