//! Flows whose process dies at every single write, and goes on in another one.
//!
//! In memory, time is virtual and each sweep is deterministic, down to which bodies run: a body runs again only if
//! its outcome was not durable. On a file the same flows run a thousand times as fast as the clock.

// As expect-test writes them.
#![allow(clippy::needless_raw_string_hashes)]

use std::{collections::BTreeSet, fmt::Write, time::Duration};

use ergon::{
    heartbeat, last_heartbeat,
    prelude::*,
    storage::{CallKind, Clock, ExecutionLog, Filter, Phase},
};
use ergon_tests::{Fault, FaultyLog, Place, TestClock, Trace, note};
use expect_test::expect;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::runtime::{Builder, Runtime};

const LEASE: Duration = Duration::from_secs(600);

/// One of many flows.
#[flow_type]
#[derive(Debug, Clone, Copy)]
enum Case {
    Sequence,
    Join,
    TryJoin,
    TimerWins,
    StepWins,
    Nested,
    Retries,
    Timers,
    Signal,
    Children,
    ChildrenJoined,
    InnerWaits,
    Unordered,
    Heartbeats,
}

#[flow_type]
impl Case {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        match self {
            Self::Sequence => self.sequence().await,
            Self::Join => self.join().await,
            Self::TryJoin => self.try_join().await,
            Self::TimerWins => self.timer_wins().await,
            Self::StepWins => self.step_wins().await,
            Self::Nested => self.nested().await,
            Self::Retries => self.retries().await,
            Self::Timers => self.timers().await,
            Self::Signal => self.signal().await,
            Self::Children => self.children().await,
            Self::ChildrenJoined => self.children_joined().await,
            Self::InnerWaits => self.inner_waits().await,
            Self::Unordered => self.unordered().await,
            Self::Heartbeats => self.heartbeats().await,
        }
    }

    async fn sequence(&self) -> Result<String, String> {
        let a = self.work("a").await?;
        let b = self.work("b").await?;
        let c = self.work("c").await?;
        Ok(a + &b + &c)
    }

    async fn join(&self) -> Result<String, String> {
        let (a, b, c) = tokio::join!(self.slow("a", 2), self.work("b"), self.slow("c", 1));
        Ok(a? + &b? + &c? + &self.work("d").await?)
    }

    async fn try_join(&self) -> Result<String, String> {
        let joined = tokio::try_join!(self.work("a"), self.refuses("b"), self.slow("c", 5));
        let why = joined.unwrap_err();
        Ok(why + &self.work("d").await?)
    }

    async fn timer_wins(&self) -> Result<String, String> {
        let won = tokio::select! {
            slow = self.slow("slow", 2_000) => slow?,
            () = sleep(Duration::from_secs(10)) => "timer ".to_owned(),
        };
        Ok(won + &self.work("after").await?)
    }

    async fn step_wins(&self) -> Result<String, String> {
        let won = tokio::select! {
            () = sleep(Duration::from_secs(86_400)) => "timer ".to_owned(),
            quick = self.work("quick") => quick?,
        };
        Ok(won + &self.work("after").await?)
    }

    async fn nested(&self) -> Result<String, String> {
        let outer = self.outer("outer").await?;
        Ok(outer + &self.work("after").await?)
    }

    async fn retries(&self) -> Result<String, String> {
        let flaky = self.flaky("flaky").await?;
        Ok(flaky + &self.work("after").await?)
    }

    async fn timers(&self) -> Result<String, String> {
        let a = self.work("a").await?;
        sleep(Duration::from_secs(20)).await;
        let b = self.work("b").await?;
        schedule_timer_named("second", Duration::from_secs(5)).await;
        Ok(a + &b)
    }

    async fn signal(&self) -> Result<String, String> {
        let early: String = signal("early").await.map_err(|error| error.to_string())?;
        let a = self.work("a").await?;
        let late: String = signal("late").await.map_err(|error| error.to_string())?;
        let never: Option<String> =
            signal("never").timeout(Duration::from_secs(5)).await.map_err(|error| error.to_string())?;
        Ok(early + &a + &late + &self.work("b").await? + &format!("{never:?}"))
    }

    async fn children(&self) -> Result<String, String> {
        let a = self.work("a").await?;
        let child = child(Case::Sequence).await?;
        Ok(a + &child + &self.work("z").await?)
    }

    async fn children_joined(&self) -> Result<String, String> {
        let (first, second) = (child(Case::Timers).start(), child(Case::Sequence).start());
        let (first, own, second) = tokio::try_join!(first, self.work("own"), second)?;
        Ok(first + &own + &second)
    }

    async fn inner_waits(&self) -> Result<String, String> {
        let outer = self.waits("outer").await?;
        Ok(outer + &self.work("after").await?)
    }

    async fn unordered(&self) -> Result<String, String> {
        let mut steps: FuturesUnordered<_> = (0..20).map(|n| self.numbered(n)).collect();
        let mut sum = 0;
        while let Some(number) = steps.next().await {
            sum += number?;
        }
        Ok(sum.to_string())
    }

    async fn heartbeats(&self) -> Result<String, String> {
        let (pages, own) = tokio::try_join!(self.pages(), self.slow("own", 5))?;
        Ok(pages + &own + &self.work("after").await?)
    }

    #[step]
    async fn work(&self, label: &str) -> Result<String, String> {
        ran(label);
        Ok(format!("{label} "))
    }

    #[step]
    async fn slow(&self, label: &str, seconds: u64) -> Result<String, String> {
        ran(label);
        let clock = state::<TestClock>();
        clock.sleep_until(clock.now().saturating_add(Duration::from_secs(seconds))).await;
        Ok(format!("{label} "))
    }

    #[step(retry = none)]
    async fn refuses(&self, label: &str) -> Result<String, String> {
        ran(label);
        Err(format!("{label} "))
    }

    #[step(retry(max_attempts = 3, backoff = "10s", jitter = 0.0))]
    async fn flaky(&self, label: &str) -> Result<String, String> {
        ran(&format!("{label}{}", attempt()));
        if attempt() < 3 { Err("not yet".into()) } else { Ok(format!("{label} ")) }
    }

    #[step]
    async fn outer(&self, label: &str) -> Result<String, String> {
        ran(label);
        let first = self.work("inner").await?;
        let (left, right) = tokio::try_join!(self.work("left"), self.work("right"))?;
        Ok(first + &left + &right)
    }

    #[step]
    async fn waits(&self, label: &str) -> Result<String, String> {
        ran(label);
        sleep(Duration::from_secs(5)).await;
        let inner = self.work("inner").await?;
        sleep(Duration::from_secs(5)).await;
        let early: String = signal("early").await.map_err(|error| error.to_string())?;
        ran("end");
        Ok(inner + &early)
    }

    /// Fails once, two seconds after its last heartbeat was written.
    #[step(heartbeat_timeout = "10m", retry(max_attempts = 2, backoff = "1s", jitter = 0.0))]
    async fn pages(&self) -> Result<String, String> {
        let clock = state::<TestClock>();
        let begun: u64 = last_heartbeat().map_err(|error| error.to_string())?.unwrap_or(0);
        ran(&format!("pages{begun}"));
        for page in begun + 1..=6 {
            clock.sleep_until(clock.now().saturating_add(Duration::from_secs(2))).await;
            heartbeat(&page).map_err(|error| error.to_string())?;
            if page == 4 {
                return Err("not yet".into());
            }
        }
        Ok("pages ".into())
    }

    #[step]
    async fn numbered(&self, number: u64) -> Result<u64, String> {
        let clock = state::<TestClock>();
        clock.sleep_until(clock.now().saturating_add(Duration::from_secs(number % 3))).await;
        ran(&number.to_string());
        Ok(number)
    }
}

/// Notes that a body runs; those of children by their flow too.
#[track_caller]
fn ran(label: &str) {
    let flow = ergon::flow_id();
    note(if flow.as_str() == "flow" { label.to_owned() } else { format!("{flow}:{label}") });
}

/// One life of a process with a worker.
struct Life {
    speed: u32,
    /// Suspended flows that stay in memory.
    parked: usize,
    clock: TestClock,
    trace: Trace,
}

impl Life {
    fn runtime(&self) -> Runtime {
        let mut builder = Builder::new_current_thread();
        if self.speed == 1 {
            builder.start_paused(true);
        }
        builder.enable_all().build().unwrap()
    }

    /// Virtual time flies when a flow hangs.
    fn patience(&self) -> Duration {
        if self.speed == 1 { 10_000 * LEASE } else { ergon_tests::PATIENCE }
    }

    /// Runs the flow until it has ended or the process has died, and returns its result.
    fn run(&self, log: &FaultyLog, case: Case, later: Duration) -> Option<String> {
        let runtime = self.runtime();
        let stopped_at = self.clock.now();
        let result = runtime.block_on(async {
            self.clock.enter(stopped_at, later);
            let outside = log.another();
            let scheduler = Scheduler::new(outside.clone());
            let flow = scheduler.schedule(case).id("flow").await.unwrap();
            let worker = Worker::new(log.clone())
                .register::<Case>()
                .with_state(self.trace.clone())
                .with_state(self.clock.clone())
                .parked_max(self.parked)
                .lease(LEASE);
            let _worker = worker.start().await.unwrap();
            let sender = {
                let (flow, clock) = (flow.clone(), self.clock.clone());
                tokio::spawn(async move {
                    // Accepted once, whatever the process lives through.
                    let _ = flow.signal_once("early", "early ", "early").await;
                    clock.sleep_until(clock.now().saturating_add(Duration::from_secs(30))).await;
                    let _ = flow.signal_once("late", "late ", "late").await;
                })
            };
            let result = ergon_tests::within(self.patience(), "the flow's end", async {
                tokio::select! {
                    biased;
                    result = flow.result() => Some(result.unwrap()),
                    () = log.crashed() => None,
                }
            });
            let result = result.await;
            sender.abort();
            // The clock must stop before the runtime does.
            let stopped_at = self.clock.now();
            self.clock.enter(stopped_at, Duration::ZERO);
            result
        });
        // Everything is dropped in the middle of what it does.
        drop(runtime);
        result
    }
}

/// The labels of the steps whose outcome is durable.
fn durable(log: &FaultyLog) -> BTreeSet<String> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut labels = BTreeSet::new();
        let log = log.another();
        for info in log.list(&Filter::all(), None, 100).await.unwrap().flows {
            let history = log.history(&info.id, 0, 1_000).await.unwrap();
            for record in history.into_iter().filter(|record| record.kind == CallKind::Step) {
                let text = String::from_utf8(record.payload.to_vec()).unwrap();
                let label = text.trim_matches('"').trim().to_owned();
                match record.phase {
                    Phase::Completed if &*record.name == "outer" || &*record.name == "waits" => {
                        labels.insert("outer".into());
                    }
                    Phase::Completed if &*record.name == "pages" => {
                        labels.extend((0..=6).map(|page| format!("pages{page}")));
                    }
                    // From there on the next body goes on.
                    Phase::Pending if &*record.name == "pages" => {
                        let page: u64 = text.parse().unwrap();
                        labels.extend((0..page).map(|page| format!("pages{page}")));
                    }
                    Phase::Attempt if &*record.name == "pages" => {}
                    Phase::Completed if &*record.name == "flaky" => {
                        labels.insert("flaky3".into());
                    }
                    Phase::Completed | Phase::Failed => {
                        labels.insert(if info.id.as_str() == "flow" { label } else { format!("{}:{label}", info.id) });
                    }
                    Phase::Attempt => {
                        labels.insert(format!("flaky{}", record.attempt));
                    }
                    Phase::Pending => {}
                }
            }
        }
        labels
    })
}

fn open(place: &Place, clock: &TestClock) -> FaultyLog {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(place.log_at(clock.clone()))
}

fn life(place: &Place, parked: usize) -> Life {
    let speed = if place.is_file() { 1_000 } else { 1 };
    Life { speed, parked, clock: TestClock::new(speed), trace: Trace::new() }
}

/// Runs a case with a fault at every write of a clean run. Returns what ran, before the crash and after it.
fn sweep(place: fn() -> Place, case: Case, parked: usize) -> String {
    let first = place();
    let clean = life(&first, parked);
    let log = open(&first, &clean.clock);
    let wanted = clean.run(&log, case, Duration::ZERO).expect("a clean run ends");
    let writes = log.writes();
    let ran = clean.trace.take();
    let mut table = format!("{}\n{}\n", wanted.trim_end(), ran.join(" "));
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer, Fault::Refuse] {
        for write in 1..=writes {
            let place = place();
            let life = life(&place, parked);
            let log = open(&place, &life.clock);
            log.order(write, fault);
            let result = life.run(&log, case, Duration::ZERO);
            let before = life.trace.take();
            let known = durable(&log);
            let lived_on = result.is_some();
            let result =
                result.unwrap_or_else(|| life.run(&log.another(), case, LEASE).expect("the second life ends the flow"));
            let after = life.trace.take();
            let what = format!("{case:?}, {fault:?} at write {write}: {before:?}, then {after:?}");
            assert_eq!(result, wanted, "{what}");
            let again: Vec<_> = after.iter().filter(|label| known.contains(*label)).collect();
            assert!(again.is_empty(), "{what}: {again:?} ran again");
            if matches!(fault, Fault::LoseAnswer | Fault::Refuse) {
                assert!(lived_on, "{what}");
                // A flow that leaves memory while time flies starts its bodies with waits again, fault or not.
                if parked > 0 && life.speed == 1 {
                    assert_eq!(sorted(&before), sorted(&ran), "{what}: not what runs without a fault");
                }
            } else {
                let runs = format!("{} | {}", before.join(" "), after.join(" "));
                writeln!(table, "{fault:?} {write}: {}", runs.trim_end()).unwrap();
            }
        }
    }
    table
}

/// Two crashes: at any write of the first life, and at any of the second.
fn sweep_twice(case: Case) {
    let place = Place::memory();
    let clean = life(&place, 1_000);
    let log = open(&place, &clean.clock);
    let wanted = clean.run(&log, case, Duration::ZERO).expect("a clean run ends");
    for first in 1..=log.writes() {
        for second in 1..=log.writes() {
            let life = life(&place, 1_000);
            let log = open(&place, &life.clock);
            log.order(first, Fault::CrashBefore);
            assert_eq!(life.run(&log, case, Duration::ZERO), None);
            let mut known = durable(&log);
            life.trace.take().clear();
            let next = log.another();
            next.order(second, Fault::CrashAfter);
            let mut result = life.run(&next, case, LEASE);
            let mut ran = life.trace.take();
            assert!(ran.iter().all(|label| !known.contains(label)), "{case:?}, {first}, {second}: {ran:?}, {known:?}");
            if result.is_none() {
                known = durable(&log);
                result = life.run(&log.another(), case, LEASE);
                ran = life.trace.take();
                assert!(ran.iter().all(|label| !known.contains(label)), "{case:?}, {first}, {second}: {ran:?}");
            }
            assert_eq!(result.as_ref(), Some(&wanted), "{case:?}, {first}, {second}");
        }
    }
}

fn sorted(labels: &[String]) -> Vec<&String> {
    let mut sorted: Vec<_> = labels.iter().collect();
    sorted.sort();
    sorted
}

macro_rules! sweeps {
    ($($name:ident: $case:ident $table:expr,)*) => {
        mod memory {
            use super::*;
            $(#[test]
            fn $name() {
                $table.assert_eq(&sweep(Place::memory, Case::$case, 1_000));
            })*
        }

        mod memory_without_parking {
            use super::*;
            $(#[test]
            fn $name() {
                sweep(Place::memory, Case::$case, 0);
            })*
        }

        mod memory_twice {
            use super::*;
            $(#[test]
            fn $name() {
                sweep_twice(Case::$case);
            })*
        }

        mod sqlite {
            use super::*;
            $(#[test]
            fn $name() {
                sweep(Place::sqlite, Case::$case, 1_000);
            })*
        }
    };
}

sweeps! {
    sequence: Sequence expect![[r#"
        a b c
        a b c
        CrashBefore 1:  | a b c
        CrashBefore 2: a | a b c
        CrashBefore 3: a b | b c
        CrashBefore 4: a b c | c
        CrashAfter 1:  | a b c
        CrashAfter 2: a | b c
        CrashAfter 3: a b | c
        CrashAfter 4: a b c |
    "#]],
    join: Join expect![[r#"
        a b c d
        b c a d
        CrashBefore 1:  | b c a d
        CrashBefore 2: b c a | b c a d
        CrashBefore 3: b c a | c a d
        CrashBefore 4: b c a | a d
        CrashBefore 5: b c a d | d
        CrashAfter 1:  | b c a d
        CrashAfter 2: b c a | c a d
        CrashAfter 3: b c a | a d
        CrashAfter 4: b c a | d
        CrashAfter 5: b c a d |
    "#]],
    try_join: TryJoin expect![[r#"
        b d
        b c a d
        CrashBefore 1:  | b c a d
        CrashBefore 2: b c a | b c a d
        CrashBefore 3: b c a d | d
        CrashAfter 1:  | b c a d
        CrashAfter 2: b c a | d
        CrashAfter 3: b c a d |
    "#]],
    timer_wins: TimerWins expect![[r#"
        timer after
        slow after
        CrashBefore 1:  | slow after
        CrashBefore 2:  | slow after
        CrashBefore 3: slow | after
        CrashBefore 4: slow after | after
        CrashAfter 1:  | slow after
        CrashAfter 2:  | after
        CrashAfter 3: slow | after
        CrashAfter 4: slow after |
    "#]],
    step_wins: StepWins expect![[r#"
        quick after
        quick after
        CrashBefore 1:  | quick after
        CrashBefore 2:  | quick after
        CrashBefore 3: quick | quick after
        CrashBefore 4: quick after | after
        CrashAfter 1:  | quick after
        CrashAfter 2:  | quick after
        CrashAfter 3: quick | after
        CrashAfter 4: quick after |
    "#]],
    nested: Nested expect![[r#"
        inner left right after
        outer inner right left after
        CrashBefore 1:  | outer inner right left after
        CrashBefore 2: outer inner | outer inner right left after
        CrashBefore 3: outer inner right left | outer right left after
        CrashBefore 4: outer inner right left | outer after
        CrashBefore 5: outer inner right left after | after
        CrashAfter 1:  | outer inner right left after
        CrashAfter 2: outer inner | outer right left after
        CrashAfter 3: outer inner right left | outer after
        CrashAfter 4: outer inner right left | after
        CrashAfter 5: outer inner right left after |
    "#]],
    retries: Retries expect![[r#"
        flaky after
        flaky1 flaky2 flaky3 after
        CrashBefore 1:  | flaky1 flaky2 flaky3 after
        CrashBefore 2: flaky1 | flaky1 flaky2 flaky3 after
        CrashBefore 3: flaky1 | flaky2 flaky3 after
        CrashBefore 4: flaky1 flaky2 | flaky2 flaky3 after
        CrashBefore 5: flaky1 flaky2 | flaky3 after
        CrashBefore 6: flaky1 flaky2 flaky3 | flaky3 after
        CrashBefore 7: flaky1 flaky2 flaky3 after | after
        CrashAfter 1:  | flaky1 flaky2 flaky3 after
        CrashAfter 2: flaky1 | flaky2 flaky3 after
        CrashAfter 3: flaky1 | flaky2 flaky3 after
        CrashAfter 4: flaky1 flaky2 | flaky3 after
        CrashAfter 5: flaky1 flaky2 | flaky3 after
        CrashAfter 6: flaky1 flaky2 flaky3 | after
        CrashAfter 7: flaky1 flaky2 flaky3 after |
    "#]],
    timers: Timers expect![[r#"
        a b
        a b
        CrashBefore 1:  | a b
        CrashBefore 2: a | a b
        CrashBefore 3: a | b
        CrashBefore 4: a | b
        CrashBefore 5: a b | b
        CrashBefore 6: a b |
        CrashBefore 7: a b |
        CrashAfter 1:  | a b
        CrashAfter 2: a | b
        CrashAfter 3: a | b
        CrashAfter 4: a | b
        CrashAfter 5: a b |
        CrashAfter 6: a b |
        CrashAfter 7: a b |
    "#]],
    signals: Signal expect![[r#"
        early a late b None
        a b
        CrashBefore 1:  | a b
        CrashBefore 2:  | a b
        CrashBefore 3:  | a b
        CrashBefore 4: a | a b
        CrashBefore 5: a | b
        CrashBefore 6: a | b
        CrashBefore 7: a | b
        CrashBefore 8: a | b
        CrashBefore 9: a b | b
        CrashAfter 1:  | a b
        CrashAfter 2:  | a b
        CrashAfter 3:  | a b
        CrashAfter 4: a | b
        CrashAfter 5: a | b
        CrashAfter 6: a | b
        CrashAfter 7: a | b
        CrashAfter 8: a | b
        CrashAfter 9: a b |
    "#]],
    child: Children expect![[r#"
        a a b c z
        a flow/2:a flow/2:b flow/2:c z
        CrashBefore 1:  | a flow/2:a flow/2:b flow/2:c z
        CrashBefore 2: a | a flow/2:a flow/2:b flow/2:c z
        CrashBefore 3: a | flow/2:a flow/2:b flow/2:c z
        CrashBefore 4: a flow/2:a | flow/2:a flow/2:b flow/2:c z
        CrashBefore 5: a flow/2:a flow/2:b | flow/2:b flow/2:c z
        CrashBefore 6: a flow/2:a flow/2:b flow/2:c | flow/2:c z
        CrashBefore 7: a flow/2:a flow/2:b flow/2:c | z
        CrashBefore 8: a flow/2:a flow/2:b flow/2:c | z
        CrashBefore 9: a flow/2:a flow/2:b flow/2:c z | z
        CrashAfter 1:  | a flow/2:a flow/2:b flow/2:c z
        CrashAfter 2: a | flow/2:a flow/2:b flow/2:c z
        CrashAfter 3: a | flow/2:a flow/2:b flow/2:c z
        CrashAfter 4: a flow/2:a | flow/2:b flow/2:c z
        CrashAfter 5: a flow/2:a flow/2:b | flow/2:c z
        CrashAfter 6: a flow/2:a flow/2:b flow/2:c | z
        CrashAfter 7: a flow/2:a flow/2:b flow/2:c | z
        CrashAfter 8: a flow/2:a flow/2:b flow/2:c | z
        CrashAfter 9: a flow/2:a flow/2:b flow/2:c z |
    "#]],
    children_joined: ChildrenJoined expect![[r#"
        a b own a b c
        own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashBefore 1:  | own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashBefore 2:  | own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashBefore 3: own | flow/1:a flow/2:a flow/2:b flow/2:c own flow/1:b
        CrashBefore 4: own | flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashBefore 5: own flow/1:a flow/2:a | flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashBefore 6: own flow/1:a flow/2:a | flow/1:b flow/2:a flow/2:b flow/2:c
        CrashBefore 7: own flow/1:a flow/2:a flow/2:b | flow/1:b flow/2:b flow/2:c
        CrashBefore 8: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b flow/2:c
        CrashBefore 9: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashBefore 10: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashBefore 11: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashBefore 12: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashBefore 13: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b | flow/1:b
        CrashBefore 14: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashBefore 15: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashBefore 16: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashBefore 17: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashAfter 1:  | own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashAfter 2:  | flow/1:a flow/2:a flow/2:b flow/2:c own flow/1:b
        CrashAfter 3: own | flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashAfter 4: own | flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b
        CrashAfter 5: own flow/1:a flow/2:a | flow/1:b flow/2:a flow/2:b flow/2:c
        CrashAfter 6: own flow/1:a flow/2:a | flow/1:b flow/2:b flow/2:c
        CrashAfter 7: own flow/1:a flow/2:a flow/2:b | flow/1:b flow/2:c
        CrashAfter 8: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashAfter 9: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashAfter 10: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashAfter 11: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashAfter 12: own flow/1:a flow/2:a flow/2:b flow/2:c | flow/1:b
        CrashAfter 13: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashAfter 14: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashAfter 15: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashAfter 16: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
        CrashAfter 17: own flow/1:a flow/2:a flow/2:b flow/2:c flow/1:b |
    "#]],
    inner_waits: InnerWaits expect![[r#"
        inner early after
        outer inner end after
        CrashBefore 1:  | outer inner end after
        CrashBefore 2: outer | outer inner end after
        CrashBefore 3: outer | outer inner end after
        CrashBefore 4: outer | outer inner end after
        CrashBefore 5: outer inner | outer inner end after
        CrashBefore 6: outer inner | outer end after
        CrashBefore 7: outer inner | outer end after
        CrashBefore 8: outer inner | outer end after
        CrashBefore 9: outer inner | outer end after
        CrashBefore 10: outer inner end | outer end after
        CrashBefore 11: outer inner end after | after
        CrashAfter 1:  | outer inner end after
        CrashAfter 2: outer | outer inner end after
        CrashAfter 3: outer | outer inner end after
        CrashAfter 4: outer | outer inner end after
        CrashAfter 5: outer inner | outer end after
        CrashAfter 6: outer inner | outer end after
        CrashAfter 7: outer inner | outer end after
        CrashAfter 8: outer inner | outer end after
        CrashAfter 9: outer inner | outer end after
        CrashAfter 10: outer inner end | after
        CrashAfter 11: outer inner end after |
    "#]],
    unordered: Unordered expect![[r#"
        190
        0 3 6 9 12 15 18 1 4 7 10 13 16 19 2 5 8 11 14 17
        CrashBefore 1:  | 0 3 6 9 12 15 18 1 4 7 10 13 16 19 2 5 8 11 14 17
        CrashBefore 2: 0 3 6 9 12 15 18 | 0 3 6 9 12 15 18 1 4 7 10 13 16 19 2 5 8 11 14 17
        CrashBefore 3: 0 3 6 9 12 15 18 1 4 7 10 13 16 19 | 1 4 7 10 13 16 19 2 5 8 11 14 17
        CrashBefore 4: 0 3 6 9 12 15 18 1 4 7 10 13 16 19 2 5 8 11 14 17 | 2 5 8 11 14 17
        CrashAfter 1:  | 0 3 6 9 12 15 18 1 4 7 10 13 16 19 2 5 8 11 14 17
        CrashAfter 2: 0 3 6 9 12 15 18 | 1 4 7 10 13 16 19 2 5 8 11 14 17
        CrashAfter 3: 0 3 6 9 12 15 18 1 4 7 10 13 16 19 | 2 5 8 11 14 17
        CrashAfter 4: 0 3 6 9 12 15 18 1 4 7 10 13 16 19 2 5 8 11 14 17 |
    "#]],
    heartbeats: Heartbeats expect![[r#"
        pages own after
        own pages0 pages4 after
        CrashBefore 1:  | own pages0 pages4 after
        CrashBefore 2: own pages0 | own pages0 pages4 after
        CrashBefore 3: own pages0 | own pages1 pages4 after
        CrashBefore 4: own pages0 | own pages2 pages4 after
        CrashBefore 5: own pages0 | pages2 pages4 after
        CrashBefore 6: own pages0 | pages3 pages4 after
        CrashBefore 7: own pages0 | pages4 after
        CrashBefore 8: own pages0 pages4 | pages4 after
        CrashBefore 9: own pages0 pages4 | pages5 after
        CrashBefore 10: own pages0 pages4 after | after
        CrashAfter 1:  | own pages0 pages4 after
        CrashAfter 2: own pages0 | own pages1 pages4 after
        CrashAfter 3: own pages0 | own pages2 pages4 after
        CrashAfter 4: own pages0 | pages2 pages4 after
        CrashAfter 5: own pages0 | pages3 pages4 after
        CrashAfter 6: own pages0 | pages4 after
        CrashAfter 7: own pages0 | pages4 after
        CrashAfter 8: own pages0 pages4 | pages5 after
        CrashAfter 9: own pages0 pages4 | after
        CrashAfter 10: own pages0 pages4 after |
    "#]],
}
