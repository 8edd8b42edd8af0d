//! One random script through the SQLite log and the one in memory: equal answers, equal reads.
#![cfg(all(feature = "sqlite", feature = "memory"))]
// "SQLite" is a name, not code.
#![allow(clippy::doc_markdown)]

use std::{sync::Arc, time::Duration};

use ergon_storage::{
    CallKind, CallPath, Channel, ClaimRequest, ClaimTarget, Clock, Commit, ExecutionLog, Filter, FlowId,
    InMemoryExecutionLog, Lease, ManualClock, NewFlow, NewMessage, Next, Parent, Phase, PrunePolicy, Record,
    SqliteExecutionLog, SqliteOptions, Start, Wake,
};

/// A small generator, so that a seed gives the same script everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

const IDS: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "ü"];
const TYPES: [(&str, u32); 3] = [("Order", 1), ("Order", 2), ("Mail", 1)];

fn id(random: &mut Random) -> FlowId {
    FlowId::new(random.pick(&IDS)).unwrap()
}

fn channel(random: &mut Random) -> Channel {
    [Channel::signal("x"), Channel::signal("y"), Channel::children()][random.below(3)].clone()
}

fn new_flow(random: &mut Random, id: FlowId) -> NewFlow {
    let (flow_type, version) = *random.pick(&TYPES);
    let start = match random.below(4) {
        0 => Start::After(Duration::from_secs(random.below(20) as u64)),
        _ => Start::Now,
    };
    NewFlow::new(id, flow_type, version, vec![u8::try_from(random.below(3)).unwrap()])
        .with_queue(["default", "other"][random.below(2)])
        .with_priority(i16::try_from(random.below(3)).unwrap() - 1)
        .with_start(start)
        .with_timeout((random.below(5) == 0).then(|| Duration::from_secs(random.below(30) as u64)))
}

fn request(random: &mut Random) -> ClaimRequest {
    let target = match random.below(4) {
        0 => ClaimTarget::Flow(id(random)),
        1 => ClaimTarget::Queues {
            queues: ["other".into()].into(),
            types: [("Mail".into(), 1), ("Order".into(), 1)].into(),
        },
        _ => ClaimTarget::Queues {
            queues: ["other".into(), "default".into(), "default".into()].into(),
            types: TYPES.map(|(name, version)| (name.into(), version)).into(),
        },
    };
    let mut request = ClaimRequest::new(["w1", "w2"][random.below(2)], target);
    request.limit = random.below(5);
    request.deliveries_max = 2;
    request.lease = Duration::from_secs(1 + random.below(10) as u64);
    request.history_max = random.below(6);
    request.messages_max = random.below(3);
    request
}

fn commit(random: &mut Random, clock: &ManualClock, held: &Held) -> Commit {
    let number = held.number + 1 - u32::from(random.below(6) == 0) + u32::from(random.below(12) == 0);
    let mut commit = Commit::new(held.lease.clone(), number);
    let records = if random.below(12) == 0 { random.below(9) } else { held.records as usize };
    for seq in (u32::try_from(records).unwrap() + 1..).take(random.below(3)) {
        let nested = random.below(4) == 0;
        let path = CallPath::top(u32::try_from(random.below(2)).unwrap());
        commit.records.push(Record {
            seq,
            at: clock.now(),
            path: if nested { path.child(7) } else { path },
            kind: *random.pick(&[CallKind::Step, CallKind::Timer, CallKind::Signal, CallKind::Child]),
            phase: *random.pick(&[Phase::Pending, Phase::Attempt, Phase::Attempt, Phase::Completed, Phase::Failed]),
            name: "charge".into(),
            args_hash: u64::MAX - u64::from(seq),
            attempt: seq,
            started_at: clock.now(),
            due_at: nested.then(|| clock.now()),
            reference: nested.then(|| "ref".into()),
            payload: vec![0; random.below(3)].into(),
        });
    }
    if random.below(3) == 0 {
        commit.consumed = (0..random.below(3)).map(|_| u32::try_from(random.below(6)).unwrap()).collect();
    }
    for _ in 0..random.below(8).saturating_sub(5) {
        let path = CallPath::top(u32::try_from(random.below(3)).unwrap());
        let parent = Parent { id: held.lease.flow.clone(), path, detached: random.below(4) == 0 };
        let child = id(random);
        commit.children.push(new_flow(random, child).with_parent(parent));
    }
    commit.next = match random.below(12) {
        0..5 => Next::Run,
        5..8 => Next::suspend(Wake {
            at: (random.below(2) == 0).then(|| clock.now().saturating_add(Duration::from_secs(random.below(8) as u64))),
            channels: (0..random.below(3)).map(|_| channel(random)).collect(),
        }),
        8 => Next::Complete { result: vec![1; random.below(2)].into() },
        9 | 10 => Next::Fail { error: "bad".into(), reason: "it is bad".into(), again: vec![CallPath::top(1)] },
        _ => Next::Stall { reason: "diverged".into(), build: ["b1", "b2"][random.below(2)].into() },
    };
    commit
}

struct Held {
    lease: Lease,
    number: u32,
    records: u32,
}

/// Compares what the logs answer; the keys inside of leases are their own.
macro_rules! same {
    ($step:expr, $model:expr, $log:expr) => {{
        let show = |answer: &dyn std::fmt::Debug| {
            let text = format!("{answer:?}");
            text.split(", key: ").map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<String>()
        };
        let (model, log) = ($model, $log);
        assert_eq!(show(&log), show(&model), "{}", $step);
    }};
}

async fn script(seed: u64, file: bool) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let clock = ManualClock::new();
    let directory = tempfile::tempdir().unwrap();
    // So long that the log has no lock file: closing it leaves its leases, as the model does.
    let path = directory.path().join("l".repeat(240));
    let options = || if file { SqliteOptions::new(&path) } else { SqliteOptions::in_memory() };
    let mut log = options().clock(Arc::new(clock.clone())).open().await.unwrap();
    let model = InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone()));
    let mut held: Vec<(Held, Held)> = Vec::new();
    for step in 0..400 {
        let at = format!("seed {seed}, step {step}");
        clock.advance(Duration::from_millis(random.below(700) as u64));
        match random.below(20) {
            0..3 => {
                let flows: Vec<_> = (0..random.below(4)).map(|_| id(&mut random)).collect();
                let flows: Vec<_> = flows.into_iter().map(|id| new_flow(&mut random, id)).collect();
                same!(at, model.enqueue(flows.clone()).await, log.enqueue(flows).await);
            }
            3..7 => {
                let request = request(&mut random);
                let (in_model, in_log) =
                    (model.claim(request.clone()).await.unwrap(), log.claim(request.clone()).await.unwrap());
                same!(format!("{at}: {request:?}"), &in_model, &in_log);
                held.extend(in_model.flows.into_iter().zip(in_log.flows).map(|(a, b)| {
                    let records = a.info.records;
                    (Held { lease: a.lease, number: 0, records }, Held { lease: b.lease, number: 0, records })
                }));
            }
            7..13 if !held.is_empty() => {
                let index = if random.below(3) > 0 { held.len() - 1 } else { random.below(held.len()) };
                let (in_model, in_log) = &mut held[index];
                let commit = commit(&mut random, &clock, in_model);
                let mut other = commit.clone();
                other.lease = in_log.lease.clone();
                let (a, b) = (model.commit(commit.clone()).await, log.commit(other).await);
                let applied = b.is_ok();
                same!(format!("{at}: {commit:?}"), a, b);
                if applied && commit.number > in_model.number {
                    in_model.number = commit.number;
                    in_model.records = commit.records.last().map_or(in_model.records, |record| record.seq);
                }
            }
            13 => {
                let (a, b): (Vec<_>, Vec<_>) = held.iter().map(|(a, b)| (a.lease.clone(), b.lease.clone())).unzip();
                let lease = Duration::from_secs(5);
                same!(at, model.heartbeat(&a, lease).await, log.heartbeat(&b, lease).await);
            }
            14 if !held.is_empty() => {
                let (a, b) = &held[random.below(held.len())];
                same!(at, model.release(&a.lease).await, log.release(&b.lease).await);
            }
            15 | 16 => {
                let (to, channel, key) = (id(&mut random), channel(&mut random), random.below(9));
                let mut message = NewMessage::new(to, channel, vec![7]);
                if key < 4 {
                    message = message.with_key(format!("key-{key}"));
                }
                same!(at, model.send(message.clone()).await, log.send(message).await);
            }
            17 => {
                let id = id(&mut random);
                if random.below(2) == 0 {
                    same!(at, model.cancel(&id, "enough").await, log.cancel(&id, "enough").await);
                } else {
                    same!(at, model.retry(&id).await, log.retry(&id).await);
                }
            }
            18 => {
                let types = [("Order".into(), 1), ("Mail".into(), 1)];
                same!(at, model.reoffer(&types, "b1").await, log.reoffer(&types, "b1").await);
            }
            _ => match random.below(6) {
                0 => {
                    let mut policy = PrunePolicy::older_than(Duration::from_secs(random.below(60) as u64))
                        .with_keep(u32::try_from(random.below(3)).unwrap());
                    policy.limit = 2;
                    same!(at, model.prune(&policy).await, log.prune(&policy).await);
                }
                1 | 2 => {
                    let id = id(&mut random);
                    same!(at, model.delete(&id).await, log.delete(&id).await);
                }
                3 if file => {
                    drop(log);
                    log = options().clock(Arc::new(clock.clone())).open().await.unwrap();
                }
                _ => {}
            },
        }
        compare(&at, &mut random, &model, &log, step % 8 == 0).await;
    }
}

/// Compares what can be read; all of it only now and then.
async fn compare(at: &str, random: &mut Random, model: &InMemoryExecutionLog, log: &SqliteExecutionLog, all: bool) {
    for name in IDS {
        let id = FlowId::new(name).unwrap();
        same!(at, model.flow(&id).await, log.flow(&id).await);
        if all {
            let (after, limit) = (u32::try_from(random.below(3)).unwrap(), random.below(9));
            same!(at, model.history(&id, after, limit).await, log.history(&id, after, limit).await);
            let channels: Vec<_> = (0..random.below(3)).map(|_| channel(random)).collect();
            let (a, b) =
                (model.messages(&id, &channels, after, limit).await, log.messages(&id, &channels, after, limit).await);
            same!(at, a, b);
        }
    }
    if all {
        same!(at, model.counts(&Filter::all()).await, log.counts(&Filter::all()).await);
        let mut filter = Filter::all();
        if random.below(2) == 0 {
            filter = filter.with_queue("other");
        }
        if random.below(3) == 0 {
            filter = filter.with_flow_type("Order");
        }
        if random.below(3) == 0 {
            filter = filter.with_parent(id(random));
        }
        let (a, b) = (model.list(&filter, None, 100).await.unwrap(), log.list(&filter, None, 100).await.unwrap());
        same!(at, a.flows, b.flows);
        let first = log.list(&filter, None, 2).await.unwrap();
        let model_first = model.list(&filter, None, 2).await.unwrap();
        same!(at, &model_first.flows, &first.flows);
        assert_eq!(first.next.is_some(), model_first.next.is_some(), "{at}");
        if let (Some(a), Some(b)) = (model_first.next, first.next) {
            let (a, b) = (model.list(&filter, Some(a), 3).await.unwrap(), log.list(&filter, Some(b), 3).await.unwrap());
            same!(at, a.flows, b.flows);
        }
    }
}

#[tokio::test]
async fn a_log_in_a_file_is_like_the_model() {
    for seed in 1..=10 {
        script(seed, true).await;
    }
}

#[tokio::test]
async fn a_log_in_memory_is_like_the_model() {
    let seeds = std::env::var("ERGON_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    for seed in 100..100 + seeds {
        script(seed, false).await;
    }
}
