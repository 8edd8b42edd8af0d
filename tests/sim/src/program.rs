//! Random flows of everything that a flow can wait for, and what they may come to.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ergon::{emit, heartbeat, last_heartbeat, prelude::*, saga, set_status};
use futures::{
    StreamExt,
    future::{BoxFuture, join_all, select_all, try_join_all},
    stream::FuturesUnordered,
};
use rand::{Rng, rngs::SmallRng};
use serde::{Deserialize, Serialize};

use crate::{
    code::{self, Code},
    told::{Beat, Body, Feed},
};

/// What a flow does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Op {
    /// A step that takes so long, and whose first attempts fail.
    Work {
        number: u64,
        millis: u64,
        fails: u32,
        panics: bool,
    },
    /// A step that has two seconds, and whose first attempts need more.
    Slow {
        number: u64,
        slow: u32,
    },
    /// A step that runs at most once.
    Once {
        number: u64,
        millis: u64,
    },
    /// A step that tells so often how far it has come, and goes on from there; its first attempts fall silent, or fail.
    Beat {
        number: u64,
        beats: u64,
        hangs: u32,
        fails: u32,
    },
    /// In a step that has two seconds, and two attempts.
    Limited(Vec<Op>),
    /// In a step, at once.
    Nested(Vec<Op>),
    Sleep(u64),
    /// Waits for a message for so long.
    Signal(u64),
    /// Waits for a message until there is one.
    Recv,
    Child {
        ops: Vec<Op>,
        fails: bool,
    },
    /// A child that nobody waits for.
    Dropped(Vec<Op>),
    /// A child of an id that others may have taken.
    Detached,
    /// Sends a message to the flow of this number.
    Tell(usize),
    /// Looks at the clock and draws a number.
    Look,
    /// Adds a line to the flow's stream, or says that this is its status.
    Say {
        number: u64,
        is_status: bool,
    },
    /// Gives the flow a label, or takes one away.
    Label(u64),
    Join(Vec<Op>),
    /// Ends with the first that is not done.
    TryJoin(Vec<Op>),
    Race(Vec<Op>),
    Unordered(Vec<Op>),
    /// Each followed by a step that is undone if the flow is cancelled before the last of them.
    Saga {
        number: u64,
        ops: Vec<Op>,
    },
    /// Between two marks; what was begun is tidied up if the flow is cancelled before the second.
    Guard {
        number: u64,
        ops: Vec<Op>,
    },
    /// In a session, with a step that must be there before each of them.
    Session {
        number: u64,
        ops: Vec<Op>,
    },
}

/// How a flow ends when it has done everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Returns,
    Fails,
    Panics,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Value {
    Done(u64),
    Failed,
    TimedOut,
    /// A step that runs at most once, and may have.
    Unknown,
    Cancelled,
    Heard(u64),
    Silence,
    Slept,
    Looked,
    Started,
    Refused,
    Sent,
    Unsent,
    Told,
    /// A session that another worker has taken over.
    Lost,
    All(Vec<Value>),
    First(usize, Box<Value>),
    /// With the number of each.
    InOrder(Vec<(usize, Value)>),
}

impl Value {
    fn of_error(error: &ergon::Error) -> Self {
        match error.kind() {
            ergon::ErrorKind::Timeout => Self::TimedOut,
            ergon::ErrorKind::UnknownOutcome => Self::Unknown,
            ergon::ErrorKind::Cancelled => Self::Cancelled,
            ergon::ErrorKind::Conflict => Self::Refused,
            _ => Self::Failed,
        }
    }

    /// True for what a [`TryJoin`](Op::TryJoin) goes on after.
    fn is_done(&self) -> bool {
        !matches!(self, Self::Failed | Self::TimedOut | Self::Silence)
    }
}

/// The messages that flows wait for.
pub(crate) const WORDS: &str = "words";
/// The messages that bodies of steps wait for.
pub(crate) const INNER: &str = "inner";
/// The stream of a flow.
pub(crate) const LINES: &str = "lines";
/// What the names of the labels begin with that flows give themselves.
pub(crate) const OWN_LABEL: &str = "own-";
/// The id that flows quarrel about.
const SHARED_ID: &str = "shared";

/// The id of a flow that a client schedules.
pub(crate) fn id_of(number: usize) -> String {
    format!("flow-{number}")
}

/// The label that stands for a number, and its value unless it is taken away.
pub(crate) fn label_of(number: u64) -> (String, Option<String>) {
    (format!("{OWN_LABEL}{}", number % 2), (!number.is_multiple_of(5)).then(|| number.to_string()))
}

// ---- drawing -----------------------------------------------------------------------------------------------

pub(crate) struct Generator<'a> {
    pub(crate) rng: &'a mut SmallRng,
    /// How many flows there are to send to.
    pub(crate) flows: usize,
    /// How many operations there may be.
    pub(crate) budget: u32,
    pub(crate) numbers: u64,
}

impl Generator<'_> {
    pub(crate) fn program(&mut self) -> Program {
        let ops = self.ops(1..=4, 3, false);
        let end = match self.rng.random_range(0..10) {
            0 => End::Fails,
            1 => End::Panics,
            _ => End::Returns,
        };
        let runs = if self.rng.random_bool(0.15) { self.rng.random_range(2..=3) } else { 1 };
        let mut program = Program { ops, runs, end };
        // A flow is in one session at a time.
        if self.rng.random_bool(0.12) {
            let session = Op::Session { number: self.number(), ops: self.ops(1..=3, 1, false) };
            let place = self.rng.random_range(0..=program.ops.len());
            program.ops.insert(place, session);
        }
        program
    }

    fn ops(&mut self, range: std::ops::RangeInclusive<usize>, depth: u32, in_step: bool) -> Vec<Op> {
        let length = self.rng.random_range(range);
        (0..length).map(|_| self.op(depth, in_step)).collect()
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn op(&mut self, depth: u32, in_step: bool) -> Op {
        self.budget = self.budget.saturating_sub(1);
        let depth = if self.budget == 0 { 0 } else { depth };
        let choice = match (depth, in_step) {
            (0, true) => 0..36,
            (0, false) => 0..66,
            (_, true) => 14..36 + 22,
            (_, false) => 0..142,
        };
        let choice = self.rng.random_range(choice);
        // In a step: nested steps and combinators, and nothing that only flows may do.
        let choice = match choice {
            36.. if in_step => 66 + choice * 2 % 44,
            50.. if depth == 0 => choice + 70,
            choice => choice,
        };
        match choice {
            0..18 => {
                let fails = if self.rng.random_bool(0.25) { self.rng.random_range(1..=3) } else { 0 };
                let (millis, panics) = (self.rng.random_range(0..4) * 150, self.rng.random_bool(0.3));
                // Calls that cannot be told apart are part of it.
                let number = if self.rng.random_bool(0.3) { 1 } else { self.number() };
                Op::Work { number, millis, fails, panics }
            }
            18..26 => Op::Sleep(self.rng.random_range(0..5) * 700),
            26..36 => Op::Signal(self.rng.random_range(0..5) * 600),
            36..39 => Op::Slow { number: self.number(), slow: self.rng.random_range(0..=2) },
            39..42 => Op::Once { number: self.number(), millis: self.rng.random_range(0..3) * 300 },
            42..44 => Op::Recv,
            44..46 => Op::Look,
            46..48 => Op::Detached,
            48..50 => Op::Tell(self.rng.random_range(0..self.flows.max(1))),
            50..62 => Op::Child { ops: self.ops(1..=2, depth - 1, false), fails: self.rng.random_bool(0.2) },
            62..66 => Op::Dropped(self.ops(1..=2, depth - 1, false)),
            66..74 => Op::Limited(self.ops(1..=2, depth - 1, true)),
            74..80 => Op::Nested(self.ops(1..=3, depth - 1, true)),
            80..90 => Op::Join(self.ops(2..=4, depth - 1, in_step)),
            90..94 => Op::TryJoin(self.ops(2..=3, depth - 1, in_step)),
            94..104 => Op::Race(self.ops(2..=3, depth - 1, in_step)),
            104..110 => Op::Unordered(self.ops(2..=4, depth - 1, in_step)),
            110..120 => Op::Saga { number: self.number(), ops: self.ops(1..=3, depth - 1, false) },
            120..126 => {
                let (hangs, fails) = if self.rng.random_bool(0.5) { (0, 0) } else { self.rng.random() };
                Op::Beat {
                    number: self.number(),
                    beats: self.rng.random_range(0..4),
                    hangs: hangs % 4,
                    fails: fails % 4,
                }
            }
            126..132 => Op::Say { number: self.number(), is_status: self.rng.random_bool(0.3) },
            132..136 => Op::Label(self.number()),
            _ => Op::Guard { number: self.number(), ops: self.ops(1..=3, depth - 1, false) },
        }
    }
}

// ---- the model ---------------------------------------------------------------------------------------------

/// What the run may do to a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances {
    /// Bodies may take longer than they should, or not come to their turn in time.
    pub(crate) slow: bool,
    /// Processes die, or lose a lease.
    pub(crate) deaths: bool,
    /// Flows are repaired by hand: what they had started may stand in their way, or have been cancelled with them, what
    /// was under way may have happened, and they may go on in the middle of a session.
    pub(crate) repairs: bool,
}

impl Op {
    /// True when the operation may have come to this value.
    pub(crate) fn allows(&self, value: &Value, now: Circumstances) -> bool {
        let all = |ops: &[Op], values: &[Value]| {
            ops.len() == values.len() && ops.iter().zip(values).all(|(op, value)| op.allows(value, now))
        };
        match (self, value) {
            (Op::Work { number, fails, .. }, Value::Done(done)) => done == number && *fails < 3,
            (Op::Work { fails, .. }, Value::Failed) => *fails >= 3,
            // A process that was stopped finds the body ended and its time over.
            (Op::Slow { number, slow }, Value::Done(done)) => done == number && (*slow < 2 || now.slow),
            (Op::Slow { slow, .. }, Value::TimedOut) => *slow >= 2 || now.slow,
            (Op::Once { number, .. }, Value::Done(done)) => done == number,
            (Op::Once { .. }, Value::Unknown) | (Op::Session { .. }, Value::Lost) => now.deaths || now.repairs,
            (Op::Child { .. }, Value::Cancelled | Value::Refused) => now.repairs,
            (Op::Beat { number, hangs, fails, .. }, Value::Done(done)) => {
                done == number && *fails < 3 && (*hangs < 3 || now.slow)
            }
            (Op::Beat { hangs, fails, .. }, Value::Failed) => *fails >= 3 && (*hangs < 3 || now.slow),
            (Op::Beat { hangs, .. }, Value::TimedOut) => *hangs >= 3 || now.slow,
            (
                Op::Limited(ops)
                | Op::Nested(ops)
                | Op::Join(ops)
                | Op::Saga { ops, .. }
                | Op::Guard { ops, .. }
                | Op::Session { ops, .. }
                | Op::Child { ops, fails: false },
                Value::All(values),
            ) => all(ops, values),
            (Op::Limited(_), Value::TimedOut)
            | (Op::Sleep(_), Value::Slept)
            | (Op::Signal(_), Value::Heard(_) | Value::Silence)
            | (Op::Recv, Value::Heard(_))
            | (Op::Child { fails: true, .. }, Value::Failed)
            | (Op::Dropped(_), Value::Started)
            | (Op::Detached, Value::Started | Value::Refused)
            | (Op::Tell(_), Value::Sent | Value::Unsent)
            | (Op::Look, Value::Looked)
            | (Op::Say { .. } | Op::Label(_), Value::Told) => true,
            (Op::TryJoin(ops), Value::All(values)) => all(ops, values) && values.iter().all(Value::is_done),
            (Op::TryJoin(ops), Value::First(_, value)) => {
                !value.is_done() && ops.iter().any(|op| op.allows(value, now))
            }
            (Op::Race(ops), Value::First(index, value)) => ops.get(*index).is_some_and(|op| op.allows(value, now)),
            (Op::Unordered(ops), Value::InOrder(values)) => {
                let mut indexes: Vec<_> = values.iter().map(|(index, _)| *index).collect();
                indexes.sort_unstable();
                indexes.into_iter().eq(0..ops.len())
                    && values.iter().all(|(index, value)| ops[*index].allows(value, now))
            }
            _ => false,
        }
    }

    /// The operations in this one.
    pub(crate) fn inner(&self) -> Option<&Vec<Op>> {
        match self {
            Op::Limited(ops)
            | Op::Nested(ops)
            | Op::Child { ops, .. }
            | Op::Dropped(ops)
            | Op::Join(ops)
            | Op::TryJoin(ops)
            | Op::Race(ops)
            | Op::Saga { ops, .. }
            | Op::Guard { ops, .. }
            | Op::Session { ops, .. }
            | Op::Unordered(ops) => Some(ops),
            _ => None,
        }
    }

    pub(crate) fn inner_mut(&mut self) -> Option<&mut Vec<Op>> {
        match self {
            Op::Limited(ops)
            | Op::Nested(ops)
            | Op::Child { ops, .. }
            | Op::Dropped(ops)
            | Op::Join(ops)
            | Op::TryJoin(ops)
            | Op::Race(ops)
            | Op::Saga { ops, .. }
            | Op::Guard { ops, .. }
            | Op::Session { ops, .. }
            | Op::Unordered(ops) => Some(ops),
            _ => None,
        }
    }

    /// True when branches of it may be dropped.
    fn drops(&self) -> bool {
        matches!(self, Op::Race(_) | Op::TryJoin(_) | Op::Session { .. })
            || self.inner().is_some_and(|ops| ops.iter().any(Op::drops))
    }
}

/// What the step that is undone comes to, and the one that undoes it.
fn mark_of(saga: u64, index: usize) -> u64 {
    saga * 100 + index as u64
}

/// What the step comes to that tidies up.
fn tidied(guard: u64) -> u64 {
    mark_of(guard, 99)
}

/// What a flow undoes that is cancelled.
#[derive(Debug, Default)]
pub(crate) struct Undone {
    pub(crate) at_least: BTreeSet<u64>,
    pub(crate) at_most: BTreeSet<u64>,
}

impl Undone {
    fn gather(&mut self, ops: &[Op], marks: &BTreeSet<u64>) {
        for op in ops {
            match op {
                Op::Saga { number, ops } if !marks.contains(&mark_of(*number, ops.len() - 1)) => {
                    let done = (0..ops.len()).map(|index| mark_of(*number, index)).filter(|mark| marks.contains(mark));
                    self.at_least.extend(done);
                }
                // What is before the first mark counts only once that is durable.
                Op::Guard { number, .. } if !marks.contains(&mark_of(*number, 1)) => {
                    self.at_most.insert(tidied(*number));
                    if marks.contains(&mark_of(*number, 0)) {
                        self.at_least.insert(tidied(*number));
                    }
                }
                _ => {}
            }
            // What a child has done is undone by that one, and in a step there is none.
            if !matches!(op, Op::Child { .. } | Op::Dropped(_)) {
                self.gather(op.inner().map_or(&[], Vec::as_slice), marks);
            }
        }
    }
}

impl Program {
    /// What must be undone of a flow that is cancelled when these steps have come to these marks: all that sagas have done
    /// which are not over, and what was begun between two marks.
    pub(crate) fn to_be_undone(&self, marks: &BTreeSet<u64>) -> Undone {
        let mut undone = Undone::default();
        undone.gather(&self.ops, marks);
        undone.at_most.extend(&undone.at_least);
        undone
    }

    /// True when another flow may take over what it has done. What it sends hangs on its id, and calls made at one time are
    /// told apart by their arguments.
    pub(crate) fn can_be_forked(&self) -> bool {
        fn sends(ops: &[Op]) -> bool {
            ops.iter().any(|op| matches!(op, Op::Tell(_)) || op.inner().is_some_and(|ops| sends(ops)))
        }
        !sends(&self.ops)
    }

    /// True when the flow may tell something of itself.
    pub(crate) fn tells(&self) -> bool {
        fn any(ops: &[Op]) -> bool {
            ops.iter().any(|op| match op {
                Op::Say { .. } | Op::Beat { .. } => true,
                Op::Child { .. } | Op::Dropped(_) => false,
                op => op.inner().is_some_and(|ops| any(ops)),
            })
        }
        any(&self.ops)
    }

    /// True when the flow may have completed with this.
    pub(crate) fn allows(&self, value: &Value, now: Circumstances) -> bool {
        self.end == End::Returns && Op::Join(self.ops.clone()).allows(value, now)
    }

    /// True when no branch is ever dropped: then messages are heard in their order.
    pub(crate) fn drops_nothing(&self) -> bool {
        !self.ops.iter().any(Op::drops)
    }
}

// ---- doing it ----------------------------------------------------------------------------------------------

/// Does all of it in order.
#[flow_type]
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) ops: Vec<Op>,
    /// How often it begins, in all.
    pub(crate) runs: u32,
    pub(crate) end: End,
}

#[flow_type]
impl Program {
    #[flow]
    async fn run(&self) -> ergon::Result<Value> {
        let code = Code::begin();
        let mut values = Vec::new();
        for op in &self.ops {
            values.push(run(op.clone(), Arc::clone(&code), false).await);
        }
        if self.runs > 1 {
            return continue_as_new(Self { runs: self.runs - 1, ..self.clone() }).await;
        }
        match self.end {
            End::Returns => Ok(Value::All(values)),
            End::Fails => Err(ergon::Error::new("as planned")),
            End::Panics => code::planned_panic(),
        }
    }
}

#[step(retry(max_attempts = 3, backoff = "300ms"))]
async fn work(number: u64, millis: u64, fails: u32, panics: bool) -> ergon::Result<u64> {
    code::busy(Duration::from_millis(millis)).await;
    match attempt() <= fails {
        true if panics => code::planned_panic(),
        true => Err(ergon::Error::new("as planned")),
        false => Ok(number),
    }
}

#[step(retry(max_attempts = 2, backoff = "200ms"), timeout = "2s")]
async fn slow(number: u64, slow: u32) -> ergon::Result<u64> {
    code::busy(Duration::from_secs(if attempt() <= slow { 10 } else { 0 })).await;
    Ok(number)
}

#[step(at_most_once)]
async fn once(number: u64, millis: u64) -> ergon::Result<u64> {
    code::busy(Duration::from_millis(millis)).await;
    Ok(number)
}

/// Goes on from where it has come to, and tells of it.
#[step(retry(max_attempts = 3, backoff = "300ms"), heartbeat_timeout = "2s")]
async fn beat(number: u64, beats: u64, hangs: u32, fails: u32) -> ergon::Result<u64> {
    let body = Body::begin();
    let begun: Option<Beat> = last_heartbeat()?;
    body.is_handed(begun.as_ref());
    for done in begun.map_or(0, |beat| beat.done)..beats {
        code::busy(Duration::from_millis(number % 3 * 300)).await;
        heartbeat(&body.beat(done + 1))?;
        emit(LINES, &body.tell(Feed::Lines))?;
        set_status(&body.tell(Feed::Status))?;
    }
    code::busy(Duration::from_secs(if attempt() <= hangs { 10 } else { 0 })).await;
    if attempt() <= fails { Err(ergon::Error::new("as planned")) } else { Ok(number) }
}

/// A step that must be where its session is.
#[step]
async fn local(session: u64, index: usize) -> ergon::Result<u64> {
    Ok(mark_of(session, index))
}

/// What a saga has done.
#[step]
async fn mark(saga: u64, index: usize) -> ergon::Result<u64> {
    Ok(mark_of(saga, index))
}

/// Undoes it.
#[step(retry(max_attempts = 3, backoff = "300ms"))]
async fn undo(saga: u64, index: usize) -> ergon::Result<u64> {
    code::busy(Duration::from_millis(saga % 4 * 150)).await;
    let fails = u32::try_from(saga % 3).unwrap_or(0);
    if attempt() <= fails { Err(ergon::Error::new("as planned")) } else { Ok(mark_of(saga, index)) }
}

/// Puts in order what was begun.
#[step(retry(max_attempts = 3, backoff = "300ms"))]
async fn tidy(guard: u64) -> ergon::Result<u64> {
    let fails = u32::try_from(guard % 3).unwrap_or(0);
    if attempt() <= fails { Err(ergon::Error::new("as planned")) } else { Ok(tidied(guard)) }
}

#[step(retry(max_attempts = 2, backoff = "400ms"), timeout = "2s")]
async fn limited(ops: Vec<Op>) -> ergon::Result<Value> {
    let mut values = Vec::new();
    for op in ops {
        values.push(run(op, Code::of_a_step(), true).await);
    }
    Ok(Value::All(values))
}

#[step(retry = none)]
async fn nested(ops: Vec<Op>) -> ergon::Result<Value> {
    Ok(Value::All(join_all(ops.into_iter().map(|op| run(op, Code::of_a_step(), true))).await))
}

/// Does one thing. What comes of a call of the flow itself is noted as soon as it is known.
fn run(op: Op, code: Arc<Code>, in_step: bool) -> BoxFuture<'static, Value> {
    Box::pin(async move {
        match op {
            Op::Work { number, millis, fails, panics } => {
                code.note("work", number_or(work(number, millis, fails, panics).await))
            }
            Op::Slow { number, slow: attempts } => code.note("slow", number_or(slow(number, attempts).await)),
            Op::Once { number, millis } => code.note("once", number_or(once(number, millis).await)),
            Op::Beat { number, beats, hangs, fails } => {
                code.note("beat", number_or(beat(number, beats, hangs, fails).await))
            }
            Op::Limited(ops) => {
                let value = limited(ops).await;
                code.note("limited", value.unwrap_or_else(|error| Value::of_error(&error)))
            }
            Op::Nested(ops) => {
                let value = nested(ops).await;
                code.note("nested", value.unwrap_or_else(|error| Value::of_error(&error)))
            }
            Op::Sleep(millis) => {
                sleep(Duration::from_millis(millis)).await;
                code.note("sleep", Value::Slept)
            }
            Op::Signal(millis) => {
                let name = if in_step { INNER } else { WORDS };
                let heard = signal::<u64>(name).timeout(Duration::from_millis(millis)).await;
                code.note("signal", heard.ok().flatten().map_or(Value::Silence, Value::Heard))
            }
            Op::Recv => {
                let heard = Mailbox::<u64>::new(WORDS).recv().await;
                code.note("recv", heard.map_or(Value::Failed, Value::Heard))
            }
            Op::Child { ops, fails } => {
                let end = if fails { End::Fails } else { End::Returns };
                let value = child(Program { ops, runs: 1, end }).await;
                code.note("child", value.unwrap_or_else(|error| Value::of_error(&error)))
            }
            Op::Dropped(ops) => {
                drop(child(Program { ops, runs: 1, end: End::Returns }).start());
                Value::Started
            }
            Op::Detached => {
                let program = Program { ops: Vec::new(), runs: 1, end: End::Returns };
                let started = child(program).id(SHARED_ID).start_detached().await;
                code.note("detached", started.map_or_else(|error| Value::of_error(&error), |_| Value::Started))
            }
            Op::Tell(number) => {
                let to = FlowId::new(id_of(number)).expect("an id");
                let sent = send(to, &Mailbox::<u64>::new(WORDS), &(ergon::random() >> 12)).await;
                code.note("tell", if sent.is_ok() { Value::Sent } else { Value::Unsent })
            }
            Op::Look => {
                let micros = ergon::now().as_micros();
                code.note("now", Value::Done(micros.unsigned_abs()));
                code.note("random", Value::Done(ergon::random()));
                Value::Looked
            }
            Op::Say { number, is_status: true } => {
                code.note("status", Value::Done(number));
                set_status(&number).map_or(Value::Failed, |()| Value::Told)
            }
            Op::Say { number, is_status: false } => {
                code.note("line", Value::Done(number));
                emit(LINES, &number).map_or(Value::Failed, |()| Value::Told)
            }
            Op::Label(number) => {
                code.note("label", Value::Done(number));
                match label_of(number) {
                    (name, Some(value)) => ergon::set_label(name, value),
                    (name, None) => ergon::remove_label(name),
                }
                Value::Told
            }
            op => several(op, code, in_step).await,
        }
    })
}

/// Does one thing that has others in it.
async fn several(op: Op, code: Arc<Code>, in_step: bool) -> Value {
    let all = {
        let code = Arc::clone(&code);
        move |ops: Vec<Op>| ops.into_iter().map(|op| run(op, Arc::clone(&code), in_step)).collect::<Vec<_>>()
    };
    match op {
        Op::Join(ops) => Value::All(join_all(all(ops)).await),
        Op::Guard { number, ops } => {
            let guarded = async {
                let mut values = Vec::new();
                code.note("mark", number_or(mark(number, 0).await));
                for op in ops {
                    values.push(run(op, Arc::clone(&code), in_step).await);
                }
                code.note("mark", number_or(mark(number, 1).await));
                Value::All(values)
            };
            ergon::on_cancel(guarded, move |_| tidy(number)).await
        }
        Op::Session { number, ops } => {
            let block = async || {
                let mut values = Vec::new();
                for (index, op) in ops.into_iter().enumerate() {
                    code.note("local", number_or(local(number, index).await));
                    values.push(run(op, Arc::clone(&code), in_step).await);
                }
                code.note("local", number_or(local(number, 99).await));
                Value::All(values)
            };
            let takeover = ergon::Takeover::After(ergon::Affinity::TAKEOVER_MIN);
            match ergon::session_with(takeover, block).await {
                Ok(value) => value,
                Err(lost) => {
                    Code::loses(&lost);
                    code.note("lost", Value::Lost)
                }
            }
        }
        Op::Saga { number, ops } => {
            let done = saga(async |saga| {
                let mut values = Vec::new();
                for (index, op) in ops.into_iter().enumerate() {
                    values.push(run(op, Arc::clone(&code), in_step).await);
                    let marked = mark(number, index).await?;
                    code.note("mark", Value::Done(marked));
                    saga.undo(move || undo(number, index));
                }
                Ok::<_, ergon::Error>(values)
            });
            done.await.map_or_else(|error| Value::of_error(&error.error), Value::All)
        }
        Op::TryJoin(ops) => {
            let branches = all(ops).into_iter().map(|op| async move {
                let value = op.await;
                if value.is_done() { Ok(value) } else { Err(value) }
            });
            match try_join_all(branches).await {
                Ok(values) => Value::All(values),
                Err(value) => Value::First(0, Box::new(value)),
            }
        }
        Op::Race(ops) => {
            let (value, index, _) = select_all(all(ops)).await;
            Value::First(index, Box::new(value))
        }
        Op::Unordered(ops) => {
            let branches = all(ops).into_iter().enumerate().map(|(index, op)| async move { (index, op.await) });
            let unordered: FuturesUnordered<_> = branches.collect();
            Value::InOrder(unordered.collect().await)
        }
        _ => unreachable!("{op:?} is done by itself"),
    }
}

fn number_or(result: ergon::Result<u64>) -> Value {
    result.map_or_else(|error| Value::of_error(&error), Value::Done)
}
