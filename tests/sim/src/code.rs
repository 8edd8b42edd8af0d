//! A run of a flow's code: what it saw, and in which process.

use std::{
    cell::RefCell,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ergon::{FlowId, SessionLost, Timestamp, storage::CallPath};

use crate::{process::Process, program::Value, world::World};

/// What a flow's code saw come of one of its calls: the kind, and a number that stands for the value.
pub(crate) type Item = (&'static str, u64);

/// A flow's time in a slot of a process.
pub(crate) struct Turn {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) flow: FlowId,
    pub(crate) created_at: Timestamp,
    pub(crate) run: u32,
    pub(crate) epoch: u64,
}

thread_local! {
    static TURN: RefCell<Option<Arc<Turn>>> = const { RefCell::new(None) };
    static STEP: RefCell<Option<(CallPath, u32)>> = const { RefCell::new(None) };
    static REPLAYED: RefCell<Option<Arc<Code>>> = const { RefCell::new(None) };
}

/// Polls within a turn.
pub(crate) fn within<T>(turn: &Arc<Turn>, poll: impl FnOnce() -> T) -> T {
    let outer = TURN.replace(Some(Arc::clone(turn)));
    let result = poll();
    TURN.set(outer);
    result
}

pub(crate) fn turn() -> Option<Arc<Turn>> {
    TURN.with_borrow(Clone::clone)
}

/// The body of this step begins next.
pub(crate) fn begins(path: &CallPath, attempt: u32) {
    STEP.set(Some((path.clone(), attempt)));
}

/// The step whose body has just begun, and the attempt: for the body to ask before it waits for anything.
pub(crate) fn step() -> (CallPath, u32) {
    STEP.with_borrow(Clone::clone).expect("a body has begun")
}

/// The code that a replay outside of any process began last.
pub(crate) fn take_replayed() -> Option<Arc<Code>> {
    REPLAYED.take()
}

/// The code of a flow from its beginning, which goes on when the flow was suspended and stayed in memory.
#[derive(Default)]
pub(crate) struct Code {
    of_a_step: bool,
    seen: Mutex<Vec<Item>>,
}

impl Code {
    /// Begins the code of the flow whose turn it is.
    pub(crate) fn begin() -> Arc<Self> {
        let code = Arc::new(Self::default());
        match turn() {
            Some(turn) => turn.process.begins(&turn, &code),
            None => REPLAYED.set(Some(Arc::clone(&code))),
        }
        code
    }

    /// The body of a step may see other things each time it begins.
    pub(crate) fn of_a_step() -> Arc<Self> {
        Arc::new(Self { of_a_step: true, ..Self::default() })
    }

    /// Notes what has come of a call.
    pub(crate) fn note(&self, call: &'static str, value: Value) -> Value {
        if !self.of_a_step {
            let call = if matches!(value, Value::Heard(_)) { "heard" } else { call };
            let item = (call, number(&value));
            let index = {
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(item);
                seen.len() - 1
            };
            if let Some(turn) = turn() {
                turn.world.noted(&turn, index, item);
            }
        }
        value
    }

    /// The flow is told that its session is lost.
    pub(crate) fn loses(lost: &SessionLost) {
        if let Some(turn) = turn()
            && lost.worker == lost.by
        {
            turn.world.fail(format!("{} has lost its session to its own worker: {lost}", turn.flow));
        }
    }

    /// What it saw so far.
    pub(crate) fn seen(&self) -> Vec<Item> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn seen_len(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A number that stands for a value; of a message that was heard, its content.
fn number(value: &Value) -> u64 {
    match value {
        Value::Done(number) | Value::Heard(number) => *number,
        value => {
            let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
            format!("{value:?}").hash(&mut hasher);
            hasher.finish()
        }
    }
}

/// FNV-1a: the same for each run.
pub(crate) struct Fnv(pub(crate) u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// What the body of a step does: takes its time, or more.
pub(crate) async fn busy(time: Duration) {
    let time = turn().map_or(time, |turn| turn.world.time_of_a_body(time));
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// Panics, without a word.
pub(crate) fn planned_panic() -> ! {
    std::panic::resume_unwind(Box::new("as planned"))
}
