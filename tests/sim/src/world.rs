//! What all parts of a run share: the time, the luck, the log, and what is known of it.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ergon::{
    FlowId, InMemoryExecutionLog, StepRun, Timestamp,
    storage::{Clock, Reset, Topic},
};
use futures::future::BoxFuture;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

use crate::{
    code::{Item, Turn},
    laws::{Hints, Laws},
    network::{Fate, Mishap, Reply, Write, unavailable},
    plan::Plan,
    process::{Process, lock},
    told::{Beat, Source, Told},
};

/// When a run begins.
const BEGINNING: i64 = 1_735_689_600_000_000;

pub(crate) struct World {
    pub(crate) plan: Plan,
    clock: LogClock,
    rng: Mutex<SmallRng>,
    log: Mutex<InMemoryExecutionLog>,
    laws: Mutex<Laws>,
    pub(crate) told: Told,
    processes: Mutex<Vec<Arc<Process>>>,
    /// What was written, and when, to be written again after a power cut.
    writes: Mutex<Vec<(Timestamp, Write)>>,
    trace: Option<Mutex<String>>,
    failure: Mutex<Option<String>>,
    healed: AtomicBool,
    down: AtomicBool,
    outages: AtomicU64,
    cuts: AtomicU64,
    /// An instant, and how many calls have reached the log in it.
    calls: Mutex<(Timestamp, u32)>,
}

/// More calls at one instant are an engine that does not wait for what it should.
const CALLS_MAX: u32 = 5_000;

/// The log's own time.
#[derive(Debug, Clone)]
struct LogClock {
    began_at: Instant,
    /// Where it stands while the past is written again.
    fixed: Arc<Mutex<Option<Timestamp>>>,
}

impl Clock for LogClock {
    fn now(&self) -> Timestamp {
        let fixed = *lock(&self.fixed);
        fixed.unwrap_or_else(|| Timestamp::from_micros(BEGINNING).saturating_add(self.began_at.elapsed()))
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move { tokio::time::sleep(at.since(clock.now())).await })
    }
}

impl World {
    /// A new one, in the runtime of the calling task, whose time is paused.
    pub(crate) fn new(plan: Plan, traced: bool) -> Arc<Self> {
        let clock = LogClock { began_at: Instant::now(), fixed: Arc::default() };
        let log = InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone()));
        // Other luck than that which made the plan.
        let rng =
            SmallRng::seed_from_u64(plan.seed.rotate_left(32) ^ plan.salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1);
        let told = Told::default();
        let laws = Laws::new(&log, &plan, told.clone());
        Arc::new(Self {
            plan,
            clock,
            rng: Mutex::new(rng),
            log: Mutex::new(log),
            laws: Mutex::new(laws),
            told,
            processes: Mutex::default(),
            writes: Mutex::default(),
            trace: traced.then(Mutex::default),
            failure: Mutex::default(),
            healed: AtomicBool::new(false),
            down: AtomicBool::new(false),
            outages: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            calls: Mutex::new((Timestamp::EPOCH, 0)),
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Waits until so much time has passed since the beginning.
    pub(crate) async fn until(&self, after: Duration) {
        tokio::time::sleep_until(self.clock.began_at + after).await;
    }

    pub(crate) fn log(&self) -> InMemoryExecutionLog {
        lock(&self.log).clone()
    }

    pub(crate) fn adds(&self, process: &Arc<Process>) {
        let mut processes = lock(&self.processes);
        processes.retain(|process| !process.is_dead());
        processes.push(Arc::clone(process));
    }

    // ---- what went wrong, and what happened ----------------------------------------------------------------

    /// Notes that a law was broken. The first one counts.
    pub(crate) fn fail(&self, what: String) {
        self.trace(|| format!("BROKEN: {what}"));
        lock(&self.failure).get_or_insert(what);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let millis = Duration::from_micros((self.now().as_micros() - BEGINNING).unsigned_abs());
            let _ = writeln!(lock(trace), "{:>10.3} {}", millis.as_secs_f64(), line());
        }
    }

    pub(crate) fn take_trace(&self) -> String {
        self.trace.as_ref().map(|trace| std::mem::take(&mut *lock(trace))).unwrap_or_default()
    }

    fn obey(&self, law: Result<(), String>) {
        if let Err(broken) = law {
            self.fail(broken);
        }
    }

    // ---- luck ----------------------------------------------------------------------------------------------

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut SmallRng) -> T) -> T {
        draw(&mut lock(&self.rng))
    }

    /// True so often, out of a thousand, and never once the faults have ended.
    fn mishap(&self, chance: u32) -> bool {
        !self.is_healed() && chance > 0 && self.draw(|rng| rng.random_range(0..1_000) < chance)
    }

    pub(crate) fn draw_skew(&self) -> i64 {
        let most = i64::try_from(self.plan.faults.skew_ms).unwrap_or_default() * 1_000;
        if most == 0 { 0 } else { self.draw(|rng| rng.random_range(-most..=most)) }
    }

    fn draw_latency(&self) -> u64 {
        let most = self.plan.fleet.latency_ms;
        let latency = if most == 0 { 0 } else { self.draw(|rng| rng.random_range(0..2) * rng.random_range(0..=most)) };
        // A clock is off by no more than a log that answers at once would let it be.
        latency.max(u64::from(self.plan.faults.skew_ms > 0))
    }

    pub(crate) fn draw_fate(&self, process: &Process, write: &Write) -> Fate {
        let faults = &self.plan.faults;
        let mut fate = Fate { before_ms: self.draw_latency(), after_ms: self.draw_latency(), mishap: None };
        if self.is_healed() {
            return fate;
        }
        if self.mishap(faults.delay) {
            let late = self.draw(|rng| rng.random_range(500..12_000));
            if self.draw(Rng::random) { fate.before_ms += late } else { fate.after_ms += late }
        }
        let is_work = matches!(write, Write::Claim(_) | Write::Commit(..) | Write::Release(_) | Write::Heartbeat(..));
        fate.mishap = if self.mishap(faults.refuse) {
            Some(Mishap::Refused)
        } else if self.mishap(faults.lose) {
            Some(Mishap::AnswerLost)
        } else if is_work && self.mishap(faults.die_before) {
            Some(Mishap::DiesBefore)
        } else if is_work && self.mishap(faults.die_after) {
            Some(Mishap::DiesAfter)
        } else {
            None
        };
        if let Some(mishap) = fate.mishap {
            self.trace(|| format!("{}: {mishap:?}", process.name));
        }
        fate
    }

    pub(crate) fn draw_fate_of_a_read(&self) -> Fate {
        let mishap = self.mishap(self.plan.faults.refuse).then_some(Mishap::Refused);
        Fate { before_ms: self.draw_latency(), after_ms: self.draw_latency(), mishap }
    }

    pub(crate) fn time_of_a_body(&self, time: Duration) -> Duration {
        if self.mishap(self.plan.faults.slow_bodies) {
            return time + Duration::from_millis(self.draw(|rng| rng.random_range(500..15_000)));
        }
        time
    }

    /// True when the log is to answer a commit at once.
    pub(crate) fn is_prompt(&self) -> bool {
        self.plan.fleet.prompt && self.plan.faults.skew_ms == 0 && self.outage().is_some() && self.draw(Rng::random)
    }

    // ---- trouble -------------------------------------------------------------------------------------------

    pub(crate) fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// The faults end.
    pub(crate) fn heal(&self) {
        self.trace(|| "the faults end".into());
        self.healed.store(true, Ordering::Relaxed);
        self.set_down(false);
    }

    /// The log goes away, or comes back. What is under way is lost.
    pub(crate) fn set_down(&self, down: bool) {
        if self.down.swap(down, Ordering::Relaxed) != down {
            self.trace(|| if down { "the log is away".into() } else { "the log is back".into() });
            self.outages.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many outages there were; `None` in one.
    pub(crate) fn outage(&self) -> Option<u64> {
        (!self.down.load(Ordering::Relaxed)).then(|| self.outages.load(Ordering::Relaxed))
    }

    /// How many power cuts there were.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    /// Everything dies at once, and the log loses its last writes.
    pub(crate) fn cut_power(&self, lost: usize) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
        self.outages.fetch_add(1, Ordering::Relaxed);
        for process in lock(&self.processes).drain(..) {
            process.die();
        }
        let mut writes = lock(&self.writes);
        let kept = writes.len().saturating_sub(lost);
        self.trace(|| format!("a power cut, {} of {} writes are lost", writes.len() - kept, writes.len()));
        writes.truncate(kept);
        let log = InMemoryExecutionLog::new().with_clock(Arc::new(self.clock.clone()));
        let mut laws = Laws::new(&log, &self.plan, self.told.clone());
        for (at, write) in writes.iter() {
            *lock(&self.clock.fixed) = Some(*at);
            let reply = write.clone().apply(&log);
            self.obey(laws.check(&log, *at, write, &reply).map(drop));
        }
        *lock(&self.clock.fixed) = None;
        *lock(&self.log) = log;
        *lock(&self.laws) = laws;
    }

    // ---- events --------------------------------------------------------------------------------------------

    /// A call reaches the log.
    pub(crate) fn arrives(self: &Arc<Self>, process: &Process, write: Write) -> ergon::storage::Result<Reply> {
        if self.outage().is_none() || self.failure().is_some() {
            return Err(unavailable());
        }
        let (log, now) = (self.log(), self.now());
        {
            let mut calls = lock(&self.calls);
            *calls = if calls.0 == now { (now, calls.1 + 1) } else { (now, 1) };
            if calls.1 > CALLS_MAX {
                self.fail(format!("{CALLS_MAX} calls at one instant, the last by {}: {write:?}", process.name));
            }
        }
        let reply = write.clone().apply(&log);
        self.trace(|| format!("{} {}", process.name, described(&write, &reply)));
        let hints = lock(&self.laws).check(&log, now, &write, &reply);
        if self.plan.faults.power_cut_every_ms > 0 {
            lock(&self.writes).push((now, write));
        }
        match hints {
            Ok(Hints { queue, flows }) => {
                if queue {
                    self.spread(&Topic::Queue);
                }
                for flow in flows {
                    self.spread(&Topic::Flow(flow));
                }
            }
            Err(broken) => self.fail(broken),
        }
        reply
    }

    /// A hint goes out to all processes, and reaches some of them.
    fn spread(self: &Arc<Self>, topic: &Topic) {
        let faults = &self.plan.faults;
        let processes = lock(&self.processes).clone();
        for process in processes {
            if self.mishap(faults.hints_lost) {
                continue;
            }
            if !self.mishap(faults.hints_late) {
                process.hint(topic);
            }
            if self.mishap(faults.hints_doubled.max(faults.hints_late)) {
                let (topic, late) = (topic.clone(), self.draw(|rng| rng.random_range(1..2_000)));
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(late)).await;
                    process.hint(&topic);
                });
            }
        }
    }

    /// The code of a flow saw what came of a call.
    pub(crate) fn noted(&self, turn: &Turn, index: usize, item: Item) {
        self.trace(|| format!("{} {} run {} sees {} {:x}", turn.process.name, turn.flow, turn.run, item.0, item.1));
        self.obey(lock(&self.laws).noted(turn, index, item));
    }

    pub(crate) fn body_begins(&self, turn: &Turn, step: &StepRun) {
        self.trace(|| {
            let StepRun { name, path, attempt, .. } = step;
            format!("{} {} run {} begins {name} {path}, attempt {attempt}", turn.process.name, turn.flow, turn.run)
        });
        self.obey(lock(&self.laws).body_begins(turn, step, self.now()));
    }

    /// The body of a step is told what the last heartbeat was.
    pub(crate) fn is_handed(&self, turn: &Turn, source: &Source, beat: Option<&Beat>) {
        self.trace(|| format!("{} {} goes on after {beat:?}", turn.process.name, turn.flow));
        self.obey(lock(&self.laws).is_handed(turn, source, beat));
    }

    pub(crate) fn laws<T>(&self, look: impl FnOnce(&mut Laws) -> T) -> T {
        look(&mut lock(&self.laws))
    }

    /// A client wants to cancel a flow.
    pub(crate) fn will_cancel(&self, flow: &FlowId) {
        lock(&self.laws).will_cancel(flow);
    }

    /// A client wants to cancel all flows of the group.
    pub(crate) fn will_cancel_group(&self) {
        lock(&self.laws).will_cancel_group();
    }
}

/// A call and its answer in one line.
fn described(write: &Write, reply: &ergon::storage::Result<Reply>) -> String {
    let asked = match write {
        Write::Enqueue(flows) => format!("enqueues {}", flows.iter().map(|flow| flow.id.as_str()).collect::<String>()),
        Write::Claim(request) => format!("claims {}", request.limit),
        Write::Heartbeat(leases, _) => {
            let leases: Vec<_> = leases.iter().map(|lease| format!("{} {}", lease.flow, lease.epoch)).collect();
            format!("renews {}", leases.join(", "))
        }
        Write::Release(lease) => format!("releases {} {}", lease.flow, lease.epoch),
        Write::Commit(commit, _) => {
            let records = commit
                .records
                .iter()
                .map(|record| format!("{}:{}:{}:{:?}", record.seq, record.path, record.name, record.phase));
            let records: Vec<_> = records.collect();
            let children: Vec<_> = commit.children.iter().map(|child| child.id.as_str()).collect();
            format!(
                "commits {} {} #{} [{}] consumes {:?} starts {children:?} {:?}",
                commit.lease.flow,
                commit.lease.epoch,
                commit.number,
                records.join(" "),
                commit.consumed,
                commit.next
            )
        }
        Write::Send(message) => format!("sends {} {} {:?}", message.to, message.channel, message.payload),
        Write::Cancel(flow, _) => format!("cancels {flow}"),
        Write::Retry(flow) => format!("retries {flow}"),
        Write::Reoffer(..) => "offers again".into(),
        Write::Import(snapshot) => {
            let records = snapshot.records.iter().map(|record| format!("{}:{}", record.path, record.name));
            format!("imports {} [{}]", snapshot.flow.info.id, records.collect::<Vec<_>>().join(" "))
        }
        Write::Reset(Reset { flow, epoch, keep, again, children, .. }) => {
            format!("resets {flow} {epoch} to {keep} without {again:?}, forgets {children:?}")
        }
    };
    let answered = match reply {
        Ok(Reply::Claimed(claimed)) => {
            let flows = claimed.flows.iter().map(|flow| format!("{} {}", flow.lease.flow, flow.lease.epoch));
            flows.collect::<Vec<_>>().join(", ")
        }
        Ok(reply) => format!("{reply:?}"),
        Err(error) => format!("{:?}", error.kind()),
    };
    format!("{asked} -> {answered}")
}
