//! Random scripts, played on a log and on the one in memory.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Harness,
    scene::{Handle, Scene, id},
};
use crate::{
    Affinity, Beat, CallKind, CallPath, Channel, ClaimRequest, ClaimTarget, Claimed, Cleanup, Clock, Commit, Feed,
    Filter, FlowId, FlowState, InMemoryExecutionLog, Keep, Labels, Lease, ManualClock, Message, NewFlow, NewItem,
    NewMessage, Next, Parent, Phase, PrunePolicy, Record, Reset, Result, Snapshot, Start, Timestamp, Wake,
};

/// A hundred short scripts: every answer and every read is that of the log in memory.
pub async fn short_scripts_agree_with_the_model(harness: &impl Harness) {
    for seed in 0..100 {
        random_script(harness, seed, 60).await;
    }
}

/// Some long scripts, in which flows live through much.
pub async fn long_scripts_agree_with_the_model(harness: &impl Harness) {
    for seed in 1_000..1_005 {
        random_script(harness, seed, 1_500).await;
    }
}

/// Plays `steps` random operations on a fresh store and on an [`InMemoryExecutionLog`] with an equal clock, and
/// compares every answer, and from time to time and in the end every read.
///
/// # Panics
///
/// When the two differ, with the seed and all operations so far.
pub async fn random_script(harness: &impl Harness, seed: u64, steps: usize) {
    let scene = Scene::new(harness).await;
    let clock = ManualClock::starting_at(scene.now());
    let model = Handle(Arc::new(InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone()))));
    let mut script = Script {
        random: Random(seed),
        model,
        log: scene.handle().clone(),
        leases: Vec::new(),
        played: Played { seed, operations: Vec::new() },
    };
    for step in 1..=steps {
        if script.random.one_in(5) {
            let by = script.pause(clock.now()).await;
            script.played.operations.push(format!("advance by {by:?}"));
            clock.advance(by);
            scene.advance(by).await;
        } else {
            script.step().await;
        }
        if step % 100 == 0 || step == steps {
            script.compare_reads().await;
        }
    }
}

/// What was done so far; told when a panic passes by.
struct Played {
    seed: u64,
    operations: Vec<String>,
}

impl Drop for Played {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("random script with seed {}:", self.seed);
            for (number, operation) in self.operations.iter().enumerate() {
                eprintln!("{number:5}  {operation}");
            }
        }
    }
}

struct Script {
    random: Random,
    model: Handle,
    log: Handle,
    leases: Vec<Leases>,
    played: Played,
}

/// One claim as both logs have granted it.
#[derive(Clone)]
struct Leases {
    model: Lease,
    log: Lease,
    /// The number of the last commit under it that was applied.
    number: u32,
}

const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "ü"];
const QUEUES: [&str; 2] = ["default", "other"];
const TYPES: [(&str, u32); 3] = [("Order", 1), ("Order", 2), ("Refund", 1)];
const LABELS: [(&str, &str); 3] = [("stage", "1"), ("stage", "2"), ("region", "eu")];
const AFFINITIES: [&str; 5] =
    ["prefer 3000000", "prefer 20000000", "require 15000000", "require 40000000", "require never"];
const BUILDS: [&str; 2] = ["build-1", "build-2"];

impl Script {
    /// How long the time stands still: often until the next flow is due.
    async fn pause(&mut self, now: Timestamp) -> Duration {
        let page = self.model.list(&Filter::all(), None, usize::MAX).await.unwrap();
        // What waits for the end of time waits for something else: there no instant would be after another.
        let dues = page.flows.iter().filter_map(|info| info.due_at).filter(|at| *at > now && *at < Timestamp::MAX);
        let dues: Vec<_> = dues.collect();
        match self.random.below(4) {
            0 => Duration::from_micros(self.random.number(3)),
            1 => Duration::from_millis(self.random.number(40_000)),
            _ if dues.is_empty() => Duration::from_secs(1),
            _ => {
                let until = self.random.pick(&dues).since(now);
                if self.random.one_in(4) { until.saturating_sub(Duration::from_micros(1)) } else { until }
            }
        }
    }

    async fn step(&mut self) {
        match self.random.below(44) {
            0..5 => self.enqueue().await,
            5..14 => self.claim().await,
            14..26 => self.commit().await,
            26..31 => self.send().await,
            31 => self.heartbeat().await,
            32 => self.release().await,
            33 => self.cancel().await,
            43 => self.abandon().await,
            34..36 => self.retry().await,
            36 => self.reoffer().await,
            37 => self.prune().await,
            38 => self.delete().await,
            40 => self.import().await,
            41..43 => self.reset().await,
            _ => self.read().await,
        }
    }

    /// Writes down an operation and compares its answers.
    fn same<T: fmt::Debug, O: fmt::Debug>(&mut self, operation: O, model: Result<T>, log: Result<T>) {
        let [model, log] = [model, log].map(|answer| match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(error) => format!("refused as {:?}, about {:?}", error.kind(), error.flow()),
        });
        self.played.operations.push(format!("{operation:?}\n         -> {model}"));
        assert_eq!(log, model, "the answer is that of the model, on the right, in {:?}", self.played.operations.last());
    }

    fn flow_id(&mut self) -> FlowId {
        id(self.random.pick::<&str>(&NAMES))
    }

    fn new_flow(&mut self) -> NewFlow {
        let (flow_type, version) = *self.random.pick(&TYPES);
        let input = format!("{}", self.random.below(2));
        let start = match self.random.below(6) {
            0 => Start::After(Duration::from_secs(self.random.number(20))),
            1 => Start::At(self.model.now().saturating_add(Duration::from_millis(self.random.number(20_000)))),
            2 => Start::At(Timestamp::from_micros(self.model.now().as_micros() - 1_000_000)),
            _ => Start::Now,
        };
        let timeout = self.random.one_in(5).then(|| Duration::from_secs(self.random.number(60)));
        let id = self.flow_id();
        let labels = self.labels();
        NewFlow::new(id, flow_type, version, input)
            .with_queue(*self.random.pick(&QUEUES))
            .with_priority(*self.random.pick(&[0, 0, 0, 1, -1]))
            .with_labels(labels)
            .with_start(start)
            .with_timeout(timeout)
    }

    fn labels(&mut self) -> Labels {
        let labels = self.random.some(&LABELS);
        let mut labels: Labels = if self.random.one_in(2) { Labels::new() } else { labels.into_iter().collect() };
        for name in [Affinity::LABEL, Affinity::SESSION_LABEL] {
            if self.random.one_in(5) {
                labels.set(name, *self.random.pick(&AFFINITIES));
            }
        }
        labels
    }

    fn parent(&mut self, id: FlowId) -> Parent {
        let path = CallPath::top(u32::try_from(self.random.below(3)).unwrap());
        let path = if self.random.one_in(4) { path.child(1) } else { path };
        Parent { id, path, detached: self.random.one_in(4) }
    }

    async fn enqueue(&mut self) {
        let mut flows = Vec::new();
        for _ in 0..=self.random.below(3) {
            let mut flow = self.new_flow();
            if self.random.one_in(4) {
                let parent = self.flow_id();
                flow.parent = Some(self.parent(parent));
            }
            if self.random.one_in(60) {
                flow.version = 0;
            }
            flows.push(flow);
        }
        let answers = (self.model.enqueue(flows.clone()).await, self.log.enqueue(flows.clone()).await);
        self.same(("enqueue", flows), answers.0, answers.1);
    }

    async fn claim(&mut self) {
        let target = if self.random.one_in(5) {
            ClaimTarget::Flow(self.flow_id())
        } else {
            let queues = self.random.some(&QUEUES).into_iter().map(Arc::from).collect();
            let types = self.random.some(&TYPES).into_iter().map(|(name, version)| (Arc::from(name), version));
            ClaimTarget::Queues { queues, types: types.collect() }
        };
        let request = ClaimRequest {
            worker: format!("worker-{}", self.random.below(2)).into(),
            is_place: self.random.one_in(6),
            target,
            limit: self.random.below(5),
            lease: Duration::from_secs(self.random.number(30)),
            deliveries_max: *self.random.pick(&[1, 2, 3, 10, 10, 10]),
            history_max: *self.random.pick(&[0, 1, 2, 1_000]),
            messages_max: *self.random.pick(&[0, 1, 100]),
        };
        let model = self.model.claim(request.clone()).await.unwrap();
        let log = self.log.claim(request.clone()).await.unwrap();
        for (model, log) in model.flows.iter().zip(&log.flows) {
            self.leases.push(Leases { model: model.lease.clone(), log: log.lease.clone(), number: 0 });
        }
        // The numbers that a log gives to its flows are its own.
        let without_keys = |mut claimed: Claimed| {
            claimed.flows.iter_mut().for_each(|flow| flow.lease.key = 0);
            Ok(claimed)
        };
        self.same(("claim", request), without_keys(model), without_keys(log));
    }

    /// One of the leases, mostly a recent one.
    fn lease(&mut self) -> Option<usize> {
        let all = self.leases.len();
        let among = if self.random.one_in(6) { all } else { all.min(6) };
        (among > 0).then(|| all - 1 - self.random.below(among))
    }

    fn heard(&mut self) -> u32 {
        u32::try_from(self.random.below(5)).unwrap()
    }

    async fn commit(&mut self) {
        let Some(index) = self.lease() else { return };
        let leases = self.leases[index].clone();
        let flow = leases.model.flow.clone();
        let mut commit = Commit::new(leases.model, leases.number + 1);
        if self.random.one_in(12) {
            commit.number = u32::try_from(self.random.below(4)).unwrap();
        }
        let info = self.model.flow(&flow).await.unwrap().map(|flow| flow.info);
        let mut before = info.map_or(0, |info| info.records);
        if self.random.one_in(25) {
            before += 1;
        }
        for seq in (before + 1..).take(self.random.below(4)) {
            let record = self.record(seq);
            commit.records.push(record);
        }
        let history = self.model.history(&flow, 0, 100).await.unwrap_or_default();
        for record in history.iter().filter(|record| record.phase == Phase::Pending) {
            if self.random.one_in(6) {
                let (at, payload) = (self.model.now(), vec![0xbe; self.random.below(3)].into());
                commit.beats.push(Beat { seq: record.seq, at, payload });
            }
        }
        if self.random.one_in(60) {
            // Of a record that is not there.
            let (seq, at) = (before + 1, self.model.now());
            commit.beats.push(Beat { seq, at, payload: "astray".into() });
        }
        for message in self.model.messages(&flow, &[], 0, 20).await.unwrap_or_default() {
            if self.random.one_in(3) {
                commit.consumed.push(message.seq);
            }
        }
        if self.random.one_in(10) {
            commit.consumed.push(u32::try_from(self.random.below(20)).unwrap());
        }
        if self.random.one_in(3) {
            for _ in 0..=self.random.below(2) {
                let parent = if self.random.one_in(40) { self.flow_id() } else { flow.clone() };
                let parent = self.parent(parent);
                commit.children.push(self.new_flow().with_parent(parent));
            }
        }
        if self.random.one_in(8) {
            commit.labels = Some(self.labels());
        }
        if self.random.one_in(3) {
            for _ in 0..=self.random.below(3) {
                let keep = *self.random.pick(&[Keep::All, Keep::Last]);
                let feed = if keep == Keep::All { Feed::stream("x") } else { Feed::status() };
                let call = self.random.one_in(2).then(|| CallPath::top(1));
                let (at, payload) = (self.model.now(), vec![5; self.random.below(3)].into());
                commit.items.push(NewItem { feed, keep, at, call, attempt: 1, payload });
            }
        }
        commit.emitted = self.random.one_in(5).then(|| self.random.below(4).try_into().unwrap());
        if self.random.one_in(6) {
            commit.cleanup = Cleanup::Needed;
        }
        commit.next = self.next();
        let number = commit.number;
        let to_log = Commit { lease: leases.log, ..commit.clone() };
        let answers = (self.model.commit(commit.clone()).await, self.log.commit(to_log.clone()).await);
        let applied = answers.0.is_ok();
        if applied {
            self.leases[index].number = number;
        }
        commit.lease.key = 0;
        self.same(("commit", &commit), answers.0, answers.1);
        if applied && self.random.one_in(5) {
            // The answer was lost.
            let repeat = Commit { lease: self.leases[index].model.clone(), ..commit };
            let answers = (self.model.commit(repeat).await, self.log.commit(to_log).await);
            self.same("the same commit again", answers.0, answers.1);
        }
    }

    fn record(&mut self, seq: u32) -> Record {
        let now = self.model.now();
        let path = CallPath::top(u32::try_from(self.random.below(4)).unwrap());
        Record {
            seq,
            at: now,
            path: if self.random.one_in(5) { path.child(1) } else { path },
            kind: *self.random.pick(&[
                CallKind::Step,
                CallKind::Timer,
                CallKind::Signal,
                CallKind::Child,
                CallKind::Patch,
            ]),
            phase: *self.random.pick(&[
                Phase::Pending,
                Phase::Attempt,
                Phase::Attempt,
                Phase::Completed,
                Phase::Failed,
            ]),
            name: (*self.random.pick(&["charge", "ü", ""])).into(),
            args_hash: self.random.next(),
            attempt: u32::try_from(self.random.below(3)).unwrap(),
            started_at: now,
            due_at: self.random.one_in(2).then_some(now),
            reference: self.random.one_in(3).then(|| "child".into()),
            payload: vec![0xff; self.random.below(4)].into(),
        }
    }

    fn next(&mut self) -> Next {
        match self.random.below(13) {
            12 => Next::Cancel { reason: "enough".into() },
            0 => Next::Complete { result: vec![1; self.random.below(3)].into() },
            1 | 2 => self.fail(),
            8 => Next::Continue { input: vec![4; self.random.below(3)].into() },
            3 => Next::Stall { reason: "diverged".into(), build: (*self.random.pick(&BUILDS)).into() },
            4..8 => {
                let at = self.random.one_in(2).then(|| {
                    let offset = i64::try_from(self.random.number(20_000_000)).unwrap() - 1_000_000;
                    Timestamp::from_micros(self.model.now().as_micros() + offset)
                });
                let channels = self.random.some(&channels());
                let heard =
                    if self.random.one_in(3) { channels.iter().map(|_| self.heard()).collect() } else { Vec::new() };
                Next::Suspend { wake: Wake { at, channels }, heard }
            }
            _ => Next::Run,
        }
    }

    fn fail(&mut self) -> Next {
        let again = (0..4).map(CallPath::top).chain([CallPath::top(1).child(1)]);
        let again = again.filter(|_| self.random.one_in(3)).collect();
        Next::Fail { error: vec![2; self.random.below(3)].into(), reason: "broken".into(), again }
    }

    async fn send(&mut self) {
        let to = self.flow_id();
        let channel = self.random.pick(&channels()).clone();
        let mut message = NewMessage::new(to, channel, vec![3; self.random.below(3)]);
        if self.random.one_in(3) {
            message = message.with_key(format!("key-{}", self.random.below(3)));
        }
        let answers = (self.model.send(message.clone()).await, self.log.send(message.clone()).await);
        self.same(("send", message), answers.0, answers.1);
    }

    async fn heartbeat(&mut self) {
        let indexes: Vec<_> = (0..3).filter_map(|_| self.lease()).collect();
        let [model, log]: [Vec<_>; 2] = [
            indexes.iter().map(|index| self.leases[*index].model.clone()).collect(),
            indexes.iter().map(|index| self.leases[*index].log.clone()).collect(),
        ];
        let length = Duration::from_secs(self.random.number(40));
        let answers = (self.model.heartbeat(&model, length).await, self.log.heartbeat(&log, length).await);
        self.same(("heartbeat", model, length), answers.0, answers.1);
    }

    async fn release(&mut self) {
        let Some(index) = self.lease() else { return };
        let leases = self.leases[index].clone();
        let answers = (self.model.release(&leases.model).await, self.log.release(&leases.log).await);
        self.same(("release", leases.model), answers.0, answers.1);
    }

    async fn cancel(&mut self) {
        let id = self.flow_id();
        let answers = (self.model.cancel(&id, "enough").await, self.log.cancel(&id, "enough").await);
        self.same(("cancel", id), answers.0, answers.1);
    }

    async fn abandon(&mut self) {
        let id = self.flow_id();
        let answers = (self.model.abandon(&id, "given up").await, self.log.abandon(&id, "given up").await);
        self.same(("abandon", id), answers.0, answers.1);
    }

    async fn retry(&mut self) {
        let mut id = self.flow_id();
        let failed = Filter::all().with_state(FlowState::Failed).with_state(FlowState::Stalled);
        let failed = self.model.list(&failed, None, usize::MAX).await.unwrap().flows;
        if !failed.is_empty() && !self.random.one_in(4) {
            id = self.random.pick(&failed).id.clone();
        }
        let answers = (self.model.retry(&id).await, self.log.retry(&id).await);
        self.same(("retry", id), answers.0, answers.1);
    }

    async fn reoffer(&mut self) {
        let types = self.random.some(&TYPES).into_iter().map(|(name, version)| (Arc::from(name), version));
        let types: Vec<_> = types.collect();
        let build = *self.random.pick(&BUILDS);
        let answers = (self.model.reoffer(&types, build).await, self.log.reoffer(&types, build).await);
        self.same(("reoffer", types, build), answers.0, answers.1);
    }

    async fn prune(&mut self) {
        let mut policy = PrunePolicy::older_than(Duration::from_secs(self.random.number(60)));
        policy = policy.with_limit(u32::try_from(self.random.below(4)).unwrap());
        if self.random.one_in(3) {
            policy = policy.with_state(*self.random.pick(&FlowState::ALL));
        }
        if self.random.one_in(3) {
            policy = policy.with_flow_type(self.random.pick(&TYPES).0);
        }
        if self.random.one_in(3) {
            policy = policy.with_keep(u32::try_from(self.random.below(4)).unwrap());
        }
        let answers = (self.model.prune(&policy).await, self.log.prune(&policy).await);
        self.same(("prune", policy), answers.0, answers.1);
    }

    async fn delete(&mut self) {
        let id = self.flow_id();
        let answers = (self.model.delete(&id).await, self.log.delete(&id).await);
        self.same(("delete", id), answers.0, answers.1);
    }

    /// Another flow with all that one of them has been through, and perhaps more.
    async fn import(&mut self) {
        let id = self.flow_id();
        let of = (Snapshot::read(&*self.model.0, &id).await, Snapshot::read(&*self.log.0, &id).await);
        let known = of.0.as_ref().ok().cloned().flatten();
        self.same(("snapshot", id), of.0, of.1);
        let Some(mut snapshot) = known else { return };
        let info = &mut snapshot.flow.info;
        info.id = self.flow_id();
        match self.random.below(8) {
            0 => info.epoch = self.random.number(1 << 20),
            1 => snapshot.extras.received += 3,
            2 => info.queue = (*self.random.pick(&QUEUES)).into(),
            3 => info.records += 1,
            4 => snapshot.extras.keys = vec!["key-0".into(), "key-2".into()],
            _ => {}
        }
        let answers = (self.model.import(snapshot.clone()).await, self.log.import(snapshot.clone()).await);
        self.same(("import", snapshot), answers.0, answers.1);
    }

    async fn reset(&mut self) {
        let id = self.flow_id();
        let Some(flow) = self.model.flow(&id).await.unwrap() else { return };
        let mut reset = Reset::new(&flow.info);
        reset.keep = u32::try_from(self.random.number(u64::from(reset.records) + 1)).unwrap();
        if self.random.one_in(8) {
            reset.epoch += 1;
        }
        reset.again = (0..4).map(CallPath::top).filter(|_| self.random.one_in(4)).collect();
        reset.children = NAMES.iter().filter(|_| self.random.one_in(3)).map(|name| super::scene::id(name)).collect();
        let received = self.model.extras(&id).await.unwrap().map_or(0, |extras| extras.received);
        for seq in 1..=received.min(6) {
            if self.random.one_in(2) {
                let channel = self.random.pick(&channels()[..2]).clone();
                reset.messages.push(Message::new(seq, channel, self.model.now(), vec![6].into()));
            }
        }
        let answers = (self.model.reset(reset.clone()).await, self.log.reset(reset.clone()).await);
        self.same(("reset", reset), answers.0, answers.1);
    }

    async fn read(&mut self) {
        let id = self.flow_id();
        let after = u32::try_from(self.random.below(5)).unwrap();
        let limit = self.random.below(6);
        match self.random.below(5) {
            4 => {
                let feed = self.random.pick(&[Feed::stream("x"), Feed::status()]).clone();
                let model = self.model.items(&id, &feed, after, limit).await;
                let log = self.log.items(&id, &feed, after, limit).await;
                self.same(("items", id, feed, after, limit), model, log);
            }
            0 => {
                let answers = (self.model.flow(&id).await, self.log.flow(&id).await);
                self.same(("flow", id), answers.0, answers.1);
            }
            1 => {
                let answers = (self.model.history(&id, after, limit).await, self.log.history(&id, after, limit).await);
                self.same(("history", id, after, limit), answers.0, answers.1);
            }
            2 => {
                let channels = self.random.some(&channels());
                let model = self.model.messages(&id, &channels, after, limit).await;
                let log = self.log.messages(&id, &channels, after, limit).await;
                self.same(("messages", id, channels, after, limit), model, log);
            }
            _ => {
                let mut filter = Filter::all();
                filter.states = self.random.some(&FlowState::ALL);
                filter.flow_type = self.random.one_in(2).then(|| self.random.pick(&TYPES).0.into());
                filter.queue = self.random.one_in(2).then(|| (*self.random.pick(&QUEUES)).into());
                filter.parent = self.random.one_in(3).then_some(id);
                if self.random.one_in(3) {
                    let labels = self.random.some(&LABELS).into_iter();
                    filter.labels = labels.map(|(name, value)| (name.into(), value.into())).collect();
                }
                filter.reason =
                    self.random.one_in(4).then(|| (*self.random.pick(&["", "e", "claimed", "enough"])).into());
                let mut instant = || {
                    let before = i64::try_from(self.random.number(300_000_000)).unwrap();
                    self.random.one_in(6).then(|| Timestamp::from_micros(self.model.now().as_micros() - before))
                };
                (filter.created_from, filter.created_before) = (instant(), instant());
                (filter.finished_from, filter.finished_before) = (instant(), instant());
                (filter.due_from, filter.due_before) = (instant(), instant());
                let counts = (self.model.counts(&filter).await, self.log.counts(&filter).await);
                self.same(("counts", &filter), counts.0, counts.1);
                let model = pages(&self.model, &filter, limit + 1).await;
                let log = pages(&self.log, &filter, limit + 1).await;
                self.same(("list", filter, limit + 1), model, log);
            }
        }
    }

    async fn compare_reads(&mut self) {
        let (model, log) = (self.model.snapshot().await, self.log.snapshot().await);
        log.assert_is(&model, "every read is that of the model, on the right");
    }
}

/// The ids on each page of a list.
async fn pages(log: &Handle, filter: &Filter, limit: usize) -> Result<Vec<Vec<FlowId>>> {
    let mut pages = Vec::new();
    let mut cursor = None;
    loop {
        let page = log.list(filter, cursor, limit).await?;
        pages.push(page.flows.into_iter().map(|info| info.id).collect());
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(pages),
        }
    }
}

fn channels() -> [Channel; 3] {
    [Channel::signal("x"), Channel::signal("y"), Channel::children()]
}

/// `SplitMix64`: a seed gives the same script everywhere and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    fn number(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number(bound as u64)).expect("it is below a usize")
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Each of them with an even chance.
    fn some<T: Clone>(&mut self, all: &[T]) -> Vec<T> {
        all.iter().filter(|_| self.one_in(2)).cloned().collect()
    }
}
