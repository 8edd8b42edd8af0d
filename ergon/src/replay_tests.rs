//! Random programs, run live with a random order of completions, then replayed from every flushed prefix of their
//! history.
//!
//! `ERGON_PROGRAMS` sets how many programs are run, `ERGON_SEED` runs one seed only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{self, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use ergon_storage::{CallKind, Channel, FlowId, Labels, ManualClock, Message, Phase, Record, Timestamp};
use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use crate::{
    __private::{StepSpec, error_caps},
    context::{Env, FlowContext, Identity, States},
    error::Error,
    flow::FlowEnd,
    journal::Journal,
    machine::{Effects, Machine, Progress},
    meter::Meters,
    middleware::Layers,
    retry::RetryPolicy,
};

// ---- programs --------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Op {
    /// A step that waits for `gates` openings, fails `fails` times first, and runs `inner` before it returns.
    Step {
        name: usize,
        arg: u32,
        gates: u8,
        fails: u8,
        inner: Vec<Op>,
    },
    Sleep {
        millis: u64,
    },
    Signal {
        name: usize,
        limit: Option<u64>,
    },
    Sequence(Vec<Op>),
    Join(Vec<Op>),
    TryJoin(Vec<Op>),
    /// The first of them; the others are dropped.
    Select(Vec<Op>),
    Unordered(Vec<Op>),
    Buffered {
        ops: Vec<Op>,
        at_once: usize,
    },
    /// Polled in another random order each time.
    Shuffled {
        ops: Vec<Op>,
        select: bool,
    },
    /// The call is made now, and awaited after the rest.
    Held {
        name: usize,
        arg: u32,
        rest: Vec<Op>,
    },
    MadeAndDropped {
        name: usize,
        arg: u32,
    },
    MadeAndNeverPolled {
        name: usize,
        arg: u32,
        rest: Vec<Op>,
    },
}

struct Generator {
    rng: SmallRng,
    calls: usize,
    unique: u32,
}

impl Generator {
    const CALLS_MAX: usize = 40;

    fn program(seed: u64) -> Op {
        let mut generator = Self { rng: SmallRng::seed_from_u64(seed), calls: 0, unique: 1_000 };
        let length = generator.rng.random_range(1..=5);
        Op::Sequence((0..length).map(|_| generator.op(3, false, false)).collect())
    }

    /// Names and arguments repeat on purpose, except below a combinator that shuffles its branches: calls that
    /// cannot be told apart there are truly ambiguous.
    fn arg(&mut self, unique: bool) -> u32 {
        if unique {
            self.unique += 1;
            self.unique
        } else {
            self.rng.random_range(0..3)
        }
    }

    fn ops(&mut self, range: std::ops::RangeInclusive<usize>, depth: u32, unique: bool, nested: bool) -> Vec<Op> {
        let length = self.rng.random_range(range);
        (0..length).map(|_| self.op(depth, unique, nested)).collect()
    }

    fn op(&mut self, depth: u32, unique: bool, nested: bool) -> Op {
        self.calls += 1;
        let name = self.rng.random_range(0..NAMES.len());
        let choice = if depth == 0 || self.calls > Self::CALLS_MAX { 0..30 } else { 0..100 };
        match self.rng.random_range(choice) {
            0..20 => {
                let inner = if depth > 0 && self.rng.random_bool(0.15) {
                    self.ops(1..=3, depth - 1, unique, true)
                } else {
                    Vec::new()
                };
                Op::Step {
                    name,
                    arg: self.arg(unique),
                    gates: self.rng.random_range(0..3),
                    fails: if self.rng.random_bool(0.2) { self.rng.random_range(1..5) } else { 0 },
                    inner,
                }
            }
            20..25 if unique => Op::Sleep { millis: u64::from(self.arg(true)) },
            20..25 => Op::Sleep { millis: self.rng.random_range(0..3) * 400 },
            25..30 => {
                let limit = self.rng.random_bool(0.5).then(|| u64::from(self.arg(true)) + 500);
                // Waits for the same signal cannot be told apart, except by their limits.
                let limit = if unique { limit.or(Some(u64::from(self.arg(true)))) } else { limit };
                Op::Signal { name: self.rng.random_range(0..2), limit }
            }
            30..40 => Op::Sequence(self.ops(1..=4, depth - 1, unique, nested)),
            40..50 => Op::Join(self.ops(2..=4, depth - 1, unique, nested)),
            50..58 => Op::TryJoin(self.ops(2..=4, depth - 1, unique, nested)),
            58..70 => Op::Select(self.ops(2..=3, depth - 1, unique, nested)),
            70..76 => Op::Unordered(self.ops(2..=6, depth - 1, unique, nested)),
            76..82 => {
                let ops = self.ops(2..=6, depth - 1, unique, nested);
                Op::Buffered { ops, at_once: self.rng.random_range(1..4) }
            }
            // A body may do anything between its calls, so their order in it is its own affair.
            82..90 if !nested => {
                // A branch that is ready without waiting would hide whether the others were polled at all.
                let ops = self.ops(2..=4, depth - 1, true, nested).into_iter().map(|op| {
                    let arg = self.arg(true);
                    Op::Sequence(vec![Op::Step { name, arg, gates: 1, fails: 0, inner: Vec::new() }, op])
                });
                let ops = ops.collect();
                Op::Shuffled { ops, select: self.rng.random_bool(0.5) }
            }
            82..94 => Op::Held { name, arg: self.arg(unique), rest: self.ops(0..=2, depth - 1, unique, nested) },
            94..97 => Op::MadeAndDropped { name, arg: self.arg(unique) },
            _ => {
                let arg = self.arg(unique);
                Op::MadeAndNeverPolled { name, arg, rest: self.ops(0..=2, depth - 1, unique, nested) }
            }
        }
    }
}

const POLICY: RetryPolicy = RetryPolicy::new().max_attempts(3).backoff(Duration::from_millis(300));
const LIMIT: Duration = Duration::from_millis(600);
const NAMES: [StepSpec; 4] = [
    StepSpec::new("a").retry(POLICY),
    StepSpec::new("b").retry(POLICY),
    StepSpec::new("c").retry(POLICY),
    StepSpec::new("limited").retry(POLICY).timeout(LIMIT),
];
static SPECS: [StepSpec; 4] = NAMES;

// ---- the world around one life of a flow -----------------------------------------------------------------

/// What the flow's code saw, in order: the number of the operation and its value.
type Seen = Vec<(usize, u64)>;

#[derive(Default)]
struct World {
    /// Differs in every life, so that a body that runs again returns something else.
    life: u64,
    seen: Mutex<Seen>,
    /// Bodies that ran, by path and attempt.
    ran: Mutex<Vec<(String, u32)>>,
    gates: Mutex<BTreeMap<u64, Option<Waker>>>,
    next_gate: AtomicU64,
    shuffle: Mutex<Option<SmallRng>>,
}

struct Gate {
    world: Arc<World>,
    number: Option<u64>,
}

impl Future for Gate {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        let world = Arc::clone(&self.world);
        let mut gates = world.gates.lock().unwrap();
        match self.number {
            None => {
                let number = world.next_gate.fetch_add(1, Ordering::Relaxed);
                self.number = Some(number);
                gates.insert(number, Some(cx.waker().clone()));
                Poll::Pending
            }
            Some(number) => match gates.get_mut(&number) {
                Some(waker) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            },
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.world.gates.lock().unwrap().remove(&number);
        }
    }
}

fn mix(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(17, |sum, value| sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(value).rotate_left(7))
}

fn step(
    world: &Arc<World>,
    name: usize,
    arg: u32,
    gates: u8,
    fails: u8,
    inner: Vec<Op>,
) -> crate::Step<'static, u64, Error> {
    let world = Arc::clone(world);
    crate::__private::step(&SPECS[name], crate::__private::ArgsHash::new().and(&arg), error_caps!(Error), move || {
        let (world, inner) = (Arc::clone(&world), inner.clone());
        Box::pin(async move {
            let context = crate::context::Context::current("test");
            let step = context.step.clone().unwrap();
            world.ran.lock().unwrap().push((step.path.to_string(), step.attempt));
            for _ in 0..gates {
                Gate { world: Arc::clone(&world), number: None }.await;
            }
            let mut values = vec![world.life, u64::from(arg)];
            for op in &inner {
                values.push(run(op.clone(), Arc::clone(&world), true).await);
            }
            if step.attempt <= u32::from(fails) {
                return Err(Error::new(format!("failure {} in life {}", step.attempt, world.life)));
            }
            Ok(mix(values))
        })
    })
}

fn value(result: Result<u64, Error>) -> u64 {
    match result {
        Ok(value) => value,
        Err(error) => mix(error.to_string().bytes().map(u64::from)),
    }
}

/// Interprets an operation. Everything is boxed, for it recurses.
fn run(op: Op, world: Arc<World>, nested: bool) -> BoxFuture<'static, u64> {
    Box::pin(async move {
        let all = |ops: Vec<Op>| ops.into_iter().map(|op| run(op, Arc::clone(&world), nested)).collect::<Vec<_>>();
        let (code, value) = match op {
            Op::Step { name, arg, gates, fails, inner } => {
                (1, value(step(&world, name, arg, gates, fails, inner).await))
            }
            Op::Sleep { millis } => {
                crate::sleep(Duration::from_millis(millis)).await;
                (2, 0)
            }
            Op::Signal { name, limit } => {
                let signal = crate::signal::<u64>(["x", "y"][name]);
                let value = match limit {
                    Some(limit) => signal.timeout(Duration::from_millis(limit)).await.unwrap().unwrap_or(1),
                    None => signal.await.unwrap(),
                };
                (3, value)
            }
            Op::Sequence(ops) => {
                let mut values = Vec::new();
                for op in ops {
                    values.push(run(op, Arc::clone(&world), nested).await);
                }
                (4, mix(values))
            }
            Op::Join(ops) => (5, mix(futures::future::join_all(all(ops)).await)),
            Op::TryJoin(ops) => {
                // Odd values count as errors.
                let all = all(ops).into_iter().map(|op| async move {
                    let value = op.await;
                    if value % 4 == 1 { Err(value) } else { Ok(value) }
                });
                match futures::future::try_join_all(all).await {
                    Ok(values) => (6, mix(values)),
                    Err(value) => (7, value),
                }
            }
            Op::Select(ops) => {
                let (value, index, rest) = futures::future::select_all(all(ops)).await;
                drop(rest);
                (8, mix([value, index as u64]))
            }
            Op::Unordered(ops) => {
                let unordered: FuturesUnordered<_> = all(ops).into_iter().collect();
                (9, mix(unordered.collect::<Vec<_>>().await))
            }
            Op::Buffered { ops, at_once } => {
                let buffered = stream::iter(all(ops)).buffer_unordered(at_once);
                (10, mix(buffered.collect::<Vec<_>>().await))
            }
            Op::Shuffled { ops, select } => {
                let shuffled = Shuffled {
                    world: Arc::clone(&world),
                    ops: all(ops).into_iter().map(Some).collect(),
                    done: BTreeMap::new(),
                    select,
                };
                (11, shuffled.await)
            }
            Op::Held { name, arg, rest } => {
                let held = step(&world, name, arg, 1, 0, Vec::new());
                let rest = run(Op::Sequence(rest), Arc::clone(&world), nested).await;
                (12, mix([rest, value(held.await)]))
            }
            Op::MadeAndDropped { name, arg } => {
                drop(step(&world, name, arg, 1, 0, Vec::new()));
                (13, 0)
            }
            Op::MadeAndNeverPolled { name, arg, rest } => {
                let _unpolled = step(&world, name, arg, 1, 0, Vec::new());
                (14, run(Op::Sequence(rest), Arc::clone(&world), nested).await)
            }
        };
        if !nested {
            world.seen.lock().unwrap().push((code, value));
        }
        mix([code as u64, value])
    })
}

/// Polls its branches in a random order, like an unbiased `select!` or a fair `join!`.
struct Shuffled {
    world: Arc<World>,
    ops: Vec<Option<BoxFuture<'static, u64>>>,
    done: BTreeMap<usize, u64>,
    select: bool,
}

impl Future for Shuffled {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<u64> {
        let mut order: Vec<usize> = (0..self.ops.len()).collect();
        order.shuffle(self.world.shuffle.lock().unwrap().as_mut().unwrap());
        for index in order {
            let Some(op) = &mut self.ops[index] else { continue };
            if let Poll::Ready(value) = op.as_mut().poll(cx) {
                self.ops[index] = None;
                self.done.insert(index, value);
                if self.select {
                    self.ops.clear();
                    return Poll::Ready(mix([index as u64, value]));
                }
            }
        }
        if self.done.len() == self.ops.len() { Poll::Ready(mix(self.done.values().copied())) } else { Poll::Pending }
    }
}

// ---- one life --------------------------------------------------------------------------------------------

/// What is durable after a flush.
#[derive(Debug, Clone, Default)]
struct Durable {
    records: Vec<Record>,
    consumed: BTreeSet<u32>,
    /// How much the flow's code had seen at that time.
    seen: usize,
}

struct Life {
    flushes: Vec<Durable>,
    seen: Seen,
    result: Bytes,
    ran: Vec<(String, u32)>,
    sent: Vec<Message>,
}

fn live(seed: u64, life: u64, program: &Op, from: Durable, sent: Vec<Message>, clock: &ManualClock) -> Life {
    let mut rng = SmallRng::seed_from_u64(mix([seed, life]));
    let world = Arc::new(World {
        life,
        shuffle: Mutex::new(Some(SmallRng::seed_from_u64(mix([seed, life, 1])))),
        ..World::default()
    });
    let env = Env {
        clock: Arc::new(clock.clone()),
        states: States::default(),
        payload_bytes_max: 1 << 20,
        observer: None,
        log: None,
        meters: Meters::default(),
        layers: Layers::default(),
        presence: crate::session::Presence::default(),
    };
    let mut journal = Box::new(Journal::new(from.records.clone(), Timestamp::EPOCH));
    let mut durable = Durable { seen: 0, ..from };
    let consumed_before = durable.consumed.clone();
    journal.receive(sent.iter().filter(|message| !durable.consumed.contains(&message.seq)).cloned());
    let mut sent = sent;
    let identity = Identity {
        id: FlowId::new("flow").unwrap(),
        flow_type: "Flow".into(),
        version: 1,
        run: 1,
        created_at: Timestamp::EPOCH,
        queue: "q".into(),
        labels: Labels::default(),
    };
    let flow = FlowContext::new(identity, Arc::new(env), journal);
    let flow = Arc::new(flow);
    let code = run(program.clone(), Arc::clone(&world), false);
    let future = Box::pin(async move {
        let value = code.await;
        FlowEnd::Completed { result: serde_json::to_vec(&value).unwrap().into() }
    });
    let mut machine = Machine::new(Arc::clone(&flow), future);
    let mut flushes = Vec::new();
    let flush = |durable: &mut Durable| {
        let batch = flow.journal().take_batch();
        for record in batch.records {
            assert_eq!(
                record.seq as usize,
                durable.records.len() + 1,
                "seed {seed}: records are numbered without gaps"
            );
            durable.records.push(record);
        }
        for seq in batch.consumed {
            // One that an earlier life has consumed is not in the mailbox: to name it again does nothing.
            let is_new = durable.consumed.insert(seq) || consumed_before.contains(&seq);
            assert!(is_new, "seed {seed}: message {seq} was consumed twice");
        }
        durable.seen = world.seen.lock().unwrap().len();
        flow.journal().flushed();
    };
    let result = loop {
        let overdue = flow.journal().overdue(|| now(clock));
        flow.journal().looked(overdue);
        match machine.advance(Effects::Allowed, now(clock)) {
            Progress::Ended(FlowEnd::Completed { result }) => {
                flush(&mut durable);
                break result;
            }
            Progress::Flush => {
                flush(&mut durable);
                flushes.push(durable.clone());
            }
            Progress::Yield => {}
            Progress::Wait => {
                let wake = flow.journal().wake();
                let mut gates = world.gates.lock().unwrap();
                let open: Vec<u64> = gates.keys().copied().collect();
                let pick = rng.random_range(0..10);
                if !open.is_empty() && (pick < 7 || (wake.at.is_none() && wake.channels.is_empty())) {
                    let gate = open[rng.random_range(0..open.len())];
                    let waker = gates.remove(&gate).unwrap();
                    drop(gates);
                    waker.unwrap().wake();
                } else if !wake.channels.is_empty() && (pick % 2 == 0 || wake.at.is_none()) {
                    let channel = wake.channels[rng.random_range(0..wake.channels.len())].clone();
                    let seq = u32::try_from(sent.len()).unwrap() + 1;
                    let message = Message::new(seq, channel, now(clock), Bytes::from(format!("{}", 100 + seq)));
                    sent.push(message.clone());
                    flow.journal().receive([message]);
                } else if let Some(at) = wake.at {
                    clock.set(at.max(now(clock)));
                } else {
                    panic!("seed {seed}: the flow waits for nothing: {:?}", flow.journal());
                }
            }
            other => panic!("seed {seed}, life {life}: {other:?}\n{program:?}\n{:#?}", durable.records),
        }
    };
    drop(machine);
    let durable_end = durable;
    flushes.push(durable_end);
    let code_saw = world.seen.lock().unwrap().clone();
    let ran = world.ran.lock().unwrap().clone();
    Life { flushes, seen: code_saw, result, ran, sent }
}

fn now(clock: &ManualClock) -> Timestamp {
    ergon_storage::Clock::now(clock)
}

/// The laws that hold of any history.
fn check_history(seed: u64, records: &[Record], sent: &[Message]) {
    let mut outcomes = HashMap::new();
    let mut due = HashMap::new();
    let mut limits = HashMap::new();
    for record in records {
        let path = record.path.to_string();
        if &*record.name == "limited" {
            check_limit(seed, &mut limits, record);
        }
        assert!(!outcomes.contains_key(&path), "seed {seed}: call {path} has a record after its outcome: {records:#?}");
        if record.phase == Phase::Pending && record.kind != CallKind::Step {
            due.insert(path.clone(), record.due_at.unwrap());
        }
        if record.phase.is_outcome() {
            outcomes.insert(path.clone(), record.phase);
            if record.kind == CallKind::Timer {
                assert!(record.at >= due[&path], "seed {seed}: timer {path} was early");
            }
            if record.kind == CallKind::Signal && record.phase == Phase::Completed {
                let channel = Channel::signal(&record.name);
                let known = sent.iter().any(|message| message.channel == channel && message.payload == record.payload);
                assert!(known, "seed {seed}: signal {path} has a value that nobody sent");
            }
        }
    }
}

/// An attempt ends at the instant that was fixed for it, however often its body starts again, and not before.
fn check_limit(seed: u64, limits: &mut HashMap<String, (u32, Timestamp, Timestamp)>, record: &Record) {
    let path = record.path.to_string();
    let limit_at = record.started_at.saturating_add(LIMIT);
    if record.phase == Phase::Pending {
        assert_eq!(record.due_at, Some(limit_at), "seed {seed}: the limit of step {path}");
        let known = limits.insert(path.clone(), (record.attempt, record.started_at, limit_at));
        assert!(known.is_none(), "seed {seed}: step {path} got a limit twice");
        return;
    }
    if let Some((attempt, started_at, _)) = limits.remove(&path) {
        assert_eq!(
            (record.attempt, record.started_at),
            (attempt, started_at),
            "seed {seed}: the attempt of step {path}"
        );
    }
    if String::from_utf8_lossy(&record.payload).contains("time limit") {
        assert!(record.at >= limit_at, "seed {seed}: step {path} had less time than its limit");
    }
}

fn check(seed: u64, program: &Op, prefixes_max: usize) {
    let clock = ManualClock::new();
    let first = live(seed, 1, program, Durable::default(), Vec::new(), &clock);
    let complete = first.flushes.last().unwrap();
    check_history(seed, &complete.records, &first.sent);
    // From every prefix that a crash can leave …
    let stride = first.flushes.len().div_ceil(prefixes_max);
    for (index, durable) in first.flushes.iter().enumerate().step_by(stride) {
        let second = live(seed, 2 + index as u64, program, durable.clone(), first.sent.clone(), &clock);
        let common = durable.seen;
        assert_eq!(
            first.seen[..common],
            second.seen[..common],
            "seed {seed}, prefix {index}: what was seen differs\n{program:?}"
        );
        let history = second.flushes.last().unwrap();
        assert_eq!(history.records[..durable.records.len()], durable.records, "seed {seed}: the past never changes");
        check_history(seed, &history.records, &second.sent);
        let ended: BTreeSet<String> = durable
            .records
            .iter()
            .filter(|record| record.phase.is_outcome())
            .map(|record| record.path.to_string())
            .collect();
        for (path, attempt) in &second.ran {
            assert!(
                !ended.contains(path),
                "seed {seed}, prefix {index}: step {path} ran again (attempt {attempt})\n{program:?}"
            );
        }
        // … and again from all that the second life left, which needs nothing to be done any more.
        let third = live(seed, 1_000 + index as u64, program, history.clone(), second.sent.clone(), &clock);
        assert_eq!(
            second.seen, third.seen,
            "seed {seed}, prefix {index}: a full replay saw something else\n{program:?}"
        );
        assert_eq!(second.result, third.result, "seed {seed}, prefix {index}");
    }
}

#[test]
fn random_programs_replay_from_every_prefix() {
    if let Ok(seed) = std::env::var("ERGON_SEED") {
        let seed = seed.parse().expect("ERGON_SEED is a number");
        return check(seed, &Generator::program(seed), usize::MAX);
    }
    let programs = std::env::var("ERGON_PROGRAMS").map_or(10_000, |n| n.parse().expect("ERGON_PROGRAMS is a number"));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..programs).step_by(usize::try_from(threads).unwrap()) {
                    let passed =
                        std::panic::catch_unwind(|| check(seed, &Generator::program(seed), usize::MAX)).is_ok();
                    assert!(passed, "failed with ERGON_SEED={seed}");
                }
            });
        }
    });
}

#[test]
fn many_equal_calls_at_once_replay_from_every_prefix() {
    for (seed, width) in [2, 3, 10, 100, 500].into_iter().enumerate() {
        let ops = || vec![Op::Step { name: 0, arg: 0, gates: 1, fails: 0, inner: Vec::new() }; width];
        let programs = [
            Op::Join(ops()),
            Op::Select(ops()),
            Op::Unordered(ops()),
            Op::Buffered { ops: ops(), at_once: width / 2 },
            Op::Sequence(vec![Op::Select(ops()), Op::TryJoin(ops())]),
        ];
        for program in programs {
            check(seed as u64, &Op::Sequence(vec![program, Op::Sleep { millis: 1 }]), 12);
        }
    }
}
