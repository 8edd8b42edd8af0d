//! What must not confuse a replay: combinators that poll at random, futures dropped or never polled, equal calls.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use ergon::{
    Flow,
    prelude::*,
    storage::{Clock, ExecutionLog, FlowState, ManualClock, Phase},
};
use ergon_tests::{Gate, Place, TestClock, Trace, note, soon, state_of, trace, until, within};
use futures::{FutureExt, StreamExt};
use tokio::runtime::Builder;

type Outcome<T> = Result<T, String>;

/// Replays a flow from the beginning at each of its waits, in virtual time, and returns its result.
fn replayed<F: Flow<Output = u64>>(flow: F, trace: &Trace) -> u64
where
    F::Error: std::fmt::Debug,
{
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let clock = TestClock::new(1);
        let log = Place::memory().log_at(clock).await;
        let worker = Worker::new(log.clone()).register::<F>().with_state(trace.clone());
        let worker = worker.parked_max(0).moment(Duration::ZERO).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(flow).id("flow").await.unwrap();
        let result = within(Duration::from_secs(1_000_000_000), "the flow's end", flow.result()).await;
        let result = result.unwrap_or_else(|error| panic!("{error:?}"));
        worker.shutdown().await;
        result
    })
}

/// Hides a `select!` from the macro, which would make it biased.
macro_rules! hidden {
    ($($body:tt)*) => { $($body)* };
}

/// Two branches whose first calls are made in random order, then a wait, again and again.
#[flow_type]
struct Selects {
    rounds: u64,
    futures: bool,
}

#[flow_type]
impl Selects {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let mut sum = 0;
        for round in 0..self.rounds {
            sum += if self.futures { self.by_futures(round).await? } else { self.by_tokio(round).await? };
            sleep(Duration::from_secs(1)).await;
        }
        Ok(sum)
    }

    async fn by_tokio(&self, round: u64) -> Outcome<u64> {
        hidden!(tokio::select! {
            first = async { self.add(round, 1).await } => first,
            second = async { self.add(round, 2).await } => second,
            third = async { self.same(round).await } => third,
            fourth = async { self.same(round).await } => fourth,
            () = async { sleep(Duration::from_secs(5)).await } => Ok(0),
        })
    }

    async fn by_futures(&self, round: u64) -> Outcome<u64> {
        let first = async { self.add(round, 1).await }.fuse();
        let second = async { self.same(round).await }.fuse();
        let third = async { self.same(round).await }.fuse();
        let timer = async { sleep(Duration::from_secs(5)).await }.fuse();
        futures::pin_mut!(first, second, third, timer);
        hidden!(futures::select! {
            first = first => first,
            second = second => second,
            third = third => third,
            () = timer => Ok(0),
        })
    }

    #[step]
    async fn add(&self, round: u64, number: u64) -> Outcome<u64> {
        Ok(round + number)
    }

    #[step]
    async fn same(&self, round: u64) -> Outcome<u64> {
        Ok(round)
    }
}

/// 10,000 replays in all: each flow of 25 rounds is replayed from its beginning 25 times.
#[test]
fn an_unbiased_select_over_async_blocks_replays() {
    for _ in 0..200 {
        for futures in [false, true] {
            replayed(Selects { rounds: 25, futures }, &Trace::new());
        }
    }
}

/// Futures that are made and dropped, made and not polled for long, polled in another order than made.
#[flow_type]
struct Unpolled;

#[flow_type]
impl Unpolled {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let mut sum = 0;
        for round in 0..10 {
            drop(self.number(1_000));
            let never = self.number(2_000);
            let late = self.number(round);
            let early = self.number(round + 1);
            let timer = sleep(Duration::from_secs(60));
            drop(sleep(Duration::from_secs(1)));
            drop(signal::<u64>("nothing"));
            sum += early.await?;
            sleep(Duration::from_secs(1)).await;
            sum += late.await?;
            let _dropped_after_a_poll = self.number(3_000).now_or_never();
            timer.await;
            drop(never);
        }
        Ok(sum)
    }

    #[step]
    async fn number(&self, number: u64) -> Outcome<u64> {
        note(number.to_string());
        Ok(number)
    }
}

#[test]
fn futures_dropped_unpolled_or_polled_late_replay() {
    let trace = Trace::new();
    assert_eq!(replayed(Unpolled, &trace), (0..10).map(|n| n + n + 1).sum::<u64>());
    // Whatever was never polled, or only once, never ran.
    let ran = trace.take();
    assert_eq!(ran.len(), 20, "{ran:?}");
    assert!(ran.iter().all(|number| number.len() < 4), "{ran:?}");
}

/// The same step with the same arguments, three times in a row and three times at once.
#[flow_type]
struct Thrice;

#[flow_type]
impl Thrice {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let mut keys = BTreeSet::new();
        for _ in 0..3 {
            keys.insert(self.call(7).await?);
            sleep(Duration::from_secs(1)).await;
        }
        let (first, second, third) = tokio::try_join!(self.call(7), self.call(7), self.call(7))?;
        keys.extend([first, second, third]);
        sleep(Duration::from_secs(1)).await;
        Ok(keys.len() as u64)
    }

    #[step(retry(max_attempts = 3, backoff = "1s"))]
    async fn call(&self, _number: u64) -> Outcome<String> {
        note(format!("{} {}", idempotency_key(), attempt()));
        if attempt() < 3 { Err("again".into()) } else { Ok(idempotency_key()) }
    }
}

#[test]
fn the_same_call_thrice_runs_thrice_with_a_key_of_its_own() {
    let trace = Trace::new();
    assert_eq!(replayed(Thrice, &trace), 6);
    let ran = trace.take();
    let keys: BTreeSet<_> = ran.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!((ran.len(), keys.len()), (18, 6), "three attempts under each of six keys: {ran:?}");
}

/// Branches that are polled in random order, each with a step that ends in its third life only.
#[flow_type]
struct Keys;

#[flow_type]
impl Keys {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        self.race().await
    }

    async fn race(&self) -> Outcome<u64> {
        // Both branches of a kind call the same step with the same argument.
        hidden!(tokio::select! {
            never = async { tokio::join!(async { self.call(1).await }, async { sleep(Duration::from_secs(1)).await }) } => never.0,
            never = async { tokio::join!(async { sleep(Duration::from_secs(2)).await }, async { self.call(1).await }) } => never.1,
            never = async { self.call(2).await } => never,
            never = async { self.call(3).await } => never,
        })
    }

    #[step]
    async fn call(&self, number: u64) -> Outcome<u64> {
        note(format!("{number} {}", idempotency_key()));
        if trace().notes().len() > 2 * 4 { Ok(number) } else { std::future::pending().await }
    }
}

#[test]
fn calls_in_random_order_keep_their_keys_over_crashes() {
    for _ in 0..20 {
        let trace = Trace::new();
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let log = Place::memory().log_at(TestClock::new(1)).await;
            let flow = Scheduler::new(log.clone()).schedule(Keys).await.unwrap();
            for life in 1..=2 {
                let process = log.another();
                let worker = Worker::new(process.clone()).register::<Keys>().with_state(trace.clone());
                let worker = worker.lease(Duration::from_secs(1)).start().await.unwrap();
                until("the bodies to begin", || async { trace.notes().len() == life * 4 }).await;
                process.crash().await;
                drop(worker);
            }
            let worker = Worker::new(log.clone()).register::<Keys>().with_state(trace.clone()).start().await.unwrap();
            within(Duration::from_secs(1_000), "the flow's end", flow.result()).await.unwrap();
            worker.shutdown().await;
        });
        let ran = trace.take();
        let lives: Vec<BTreeSet<_>> = ran[..8].chunks(4).map(|life| life.iter().collect()).collect();
        assert_eq!(lives[0], lives[1]);
        assert_eq!(lives[0].len(), 4, "each call has a key of its own: {ran:?}");
    }
}

/// Losers of a select: a step, a timer, a signal.
#[flow_type]
struct Losers;

#[flow_type]
impl Losers {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let text = |result: Result<String, ergon::Error>| result.map_err(|error| error.to_string());
        let first = tokio::select! {
            slow = self.slow() => slow?,
            () = sleep(Duration::from_secs(1)) => 1,
            _ = signal::<String>("word") => 100,
        };
        // The signal comes now, after its first wait has lost; the next wait gets it, after a replay.
        sleep(Duration::from_secs(10)).await;
        let word = text(signal("word").await)?;
        let second = tokio::select! {
            quick = self.quick() => quick?,
            () = sleep(Duration::from_secs(1)) => 100,
            _ = signal::<String>("other") => 100,
        };
        sleep(Duration::from_secs(10)).await;
        let other: Option<String> = signal("other").timeout(Duration::from_secs(1)).await.map_err(|e| e.to_string())?;
        Ok(first + second + u64::from(word == "word") * 4 + u64::from(other.is_none()) * 8)
    }

    #[step]
    async fn slow(&self) -> Outcome<u64> {
        note("slow");
        tokio::time::sleep(Duration::from_secs(5)).await;
        note("slow ended");
        Ok(100)
    }

    #[step]
    async fn quick(&self) -> Outcome<u64> {
        note("quick");
        Ok(2)
    }
}

#[test]
fn a_loser_never_wins_a_replay_and_takes_nothing() {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let clock = TestClock::new(1);
        let trace = Trace::new();
        let log = Place::memory().log_at(clock.clone()).await;
        let worker = Worker::new(log.clone()).register::<Losers>().with_state(trace.clone());
        let worker = worker.parked_max(0).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Losers).await.unwrap();
        clock.sleep_until(clock.now().saturating_add(Duration::from_secs(5))).await;
        flow.signal("word", "word").await.unwrap();
        let result = within(Duration::from_secs(1_000), "the flow's end", flow.result()).await.unwrap();
        assert_eq!(result, 1 + 2 + 4 + 8);
        assert_eq!(trace.take(), ["slow", "quick"]);
        worker.shutdown().await;
    });
}

/// A body that is under way when the code goes elsewhere: its outcome comes in the same moment as the winner's.
#[flow_type]
struct Photo {
    runners: u64,
}

#[flow_type]
impl Photo {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let mut order = 0;
        for round in 0..5 {
            let mut race: futures::stream::FuturesUnordered<_> =
                (0..self.runners).map(|runner| async move { self.runs(runner).await }).collect();
            let winner = race.next().await.ok_or("nobody")??;
            let second = race.next().await.ok_or("nobody")??;
            // The others lose.
            drop(race);
            // The order becomes part of the history: a replay with another one diverges.
            order = self.keep(order * 100 + winner * 10 + second).await?;
            sleep(Duration::from_secs(round)).await;
        }
        Ok(order)
    }

    #[step]
    async fn keep(&self, order: u64) -> Outcome<u64> {
        Ok(order)
    }

    #[step]
    async fn runs(&self, runner: u64) -> Outcome<u64> {
        for _ in 0..(runner * 7) % 5 {
            tokio::task::yield_now().await;
        }
        Ok(runner)
    }
}

#[test]
fn races_end_the_same_way_in_every_replay() {
    // Each wait is followed by a replay of all that came before.
    for runners in 2..9 {
        replayed(Photo { runners }, &Trace::new());
    }
}

/// Branches that hand each other values: one makes what the other one uses.
#[flow_type]
struct Pipeline;

#[flow_type]
impl Pipeline {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let (made, mut received) = tokio::sync::mpsc::unbounded_channel();
        let (used, all_made) = tokio::join!(
            async {
                let mut sum = 0;
                while let Some(item) = received.recv().await {
                    sum += self.consume(item).await?;
                }
                Outcome::Ok(sum)
            },
            async move {
                for item in 0..10 {
                    self.produce(item).await?;
                    made.send(item).map_err(|error| error.to_string())?;
                    self.tidy(item).await?;
                    sleep(Duration::from_secs(1)).await;
                }
                Outcome::Ok(())
            }
        );
        all_made.and(used)
    }

    #[step]
    async fn produce(&self, item: u64) -> Outcome<()> {
        yields((item + 1) % 3).await;
        Ok(())
    }

    #[step]
    async fn tidy(&self, item: u64) -> Outcome<()> {
        yields((item + 2) % 3).await;
        Ok(())
    }

    #[step]
    async fn consume(&self, item: u64) -> Outcome<u64> {
        yields(item % 3).await;
        Ok(item)
    }
}

async fn yields(times: u64) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

#[test]
fn branches_that_hand_each_other_values_replay() {
    for _ in 0..10 {
        assert_eq!(replayed(Pipeline, &Trace::new()), 45);
    }
}

/// Branches that wait for each other: only one of them may be at its first step.
#[flow_type]
struct Shares {
    how: String,
}

#[flow_type]
impl Shares {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let permits = tokio::sync::Semaphore::new(1);
        let branch = async |number: u64| {
            let mut sum = 0;
            for round in 0..4 {
                let permit = permits.acquire().await.map_err(|error| error.to_string())?;
                sum += self.work(number, number + round).await?;
                drop(permit);
                sum += self.work(number, number * round).await?;
                sleep(Duration::from_secs(1)).await;
            }
            Outcome::Ok(sum)
        };
        match &*self.how {
            "join" => {
                let (one, two, three) = tokio::join!(branch(1), branch(2), branch(3));
                Ok(one? + two? + three?)
            }
            "try_join" => tokio::try_join!(branch(1), branch(2), branch(3)).map(|(one, two, three)| one + two + three),
            "futures::join" => {
                let (one, two, three) = futures::join!(branch(1), branch(2), branch(3));
                Ok(one? + two? + three?)
            }
            "join_all" => futures::future::join_all((1..=3).map(&branch)).await.into_iter().sum(),
            _ => {
                let mut branches: futures::stream::FuturesUnordered<_> = (1..=3).map(&branch).collect();
                let mut sum = 0;
                while let Some(branch) = branches.next().await {
                    sum += branch?;
                }
                Ok(sum)
            }
        }
    }

    #[step]
    async fn work(&self, number: u64, times: u64) -> Outcome<u64> {
        yields(times % 3).await;
        Ok(number)
    }
}

#[test]
fn branches_that_wait_for_each_other_replay() {
    for how in ["join", "try_join", "futures::join", "join_all", "FuturesUnordered"] {
        for _ in 0..10 {
            assert_eq!(replayed(Shares { how: how.into() }, &Trace::new()), 2 * 4 * (1 + 2 + 3), "{how}");
        }
    }
}

/// Hundreds of concurrent calls.
#[flow_type]
struct Wide {
    width: u64,
}

#[flow_type]
impl Wide {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let joined = futures::future::join_all((0..self.width).map(|_| self.one())).await;
        sleep(Duration::from_secs(1)).await;
        let buffered: Vec<_> = futures::stream::iter((0..self.width).map(|_| async { self.one().await }))
            .buffer_unordered(16)
            .collect()
            .await;
        sleep(Duration::from_secs(1)).await;
        joined.into_iter().chain(buffered).sum()
    }

    #[step]
    async fn one(&self) -> Outcome<u64> {
        note("one");
        tokio::task::yield_now().await;
        Ok(1)
    }
}

#[test]
fn five_hundred_equal_calls_at_once_replay() {
    for width in [2, 3, 17, 500] {
        let trace = Trace::new();
        assert_eq!(replayed(Wide { width }, &trace), 2 * width);
        assert_eq!(trace.take().len() as u64, 2 * width);
    }
}

/// What a flow learns of time and chance.
#[flow_type]
struct Draws;

#[flow_type]
impl Draws {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let mut seen = Vec::new();
        for _ in 0..5 {
            let (now, number, id) = (ergon::now(), ergon::random(), ergon::uuid());
            // The step's arguments are part of the history: a replay that draws something else diverges.
            self.keep(now, number, id.to_string()).await?;
            seen.push((now, number, id));
            sleep(Duration::from_secs(3)).await;
        }
        let distinct: BTreeSet<_> = seen.iter().map(|(_, number, _)| number).collect();
        let rising = seen.windows(2).all(|pair| pair[1].0.since(pair[0].0) >= Duration::from_secs(3));
        Ok(distinct.len() as u64 + 100 * u64::from(rising))
    }

    #[step]
    async fn keep(&self, _now: ergon::Timestamp, _number: u64, _id: String) -> Outcome<()> {
        Ok(())
    }
}

#[test]
fn time_and_chance_are_the_same_in_every_replay() {
    assert_eq!(replayed(Draws, &Trace::new()), 105);
}

/// What a body waits for that knows of no runtime.
#[derive(Clone)]
struct Late(Arc<Mutex<mpsc::Receiver<()>>>);

/// The loser's late outcome, of a body that cannot be dropped in time.
#[flow_type]
#[derive(Clone)]
struct Blocking;

#[flow_type]
impl Blocking {
    #[flow]
    async fn run(&self) -> Outcome<u64> {
        let won = tokio::select! {
            slow = self.blocks() => slow?,
            quick = self.quick() => quick?,
        };
        let after = self.quick().await?;
        sleep(Duration::from_secs(1)).await;
        Ok(won + after)
    }

    #[step(blocking)]
    fn blocks(&self) -> Outcome<u64> {
        note("blocks");
        // Until the test lets go of the other end.
        let _ = state::<Late>().0.lock().unwrap().recv();
        note("blocked");
        Ok(100)
    }

    #[step]
    async fn quick(&self) -> Outcome<u64> {
        state::<Gate>().pass().await;
        Ok(1)
    }
}

ergon_tests::both!(a_late_outcome_is_ignored);

async fn a_late_outcome_is_ignored(place: Place) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    // While the flow is in memory, and while it is not.
    for (moment, waits) in [(10, FlowState::Running), (0, FlowState::Suspended)] {
        let (trace, gate, (go, late)) = (Trace::new(), Gate::closed(), mpsc::channel());
        let worker = Worker::new(log.clone()).register::<Blocking>().with_state(trace.clone()).parked_max(0);
        let worker = worker.with_state(Late(Arc::new(Mutex::new(late)))).moment(Duration::from_secs(moment));
        let worker = worker.with_state(gate.clone()).start().await.unwrap();
        let flow = Scheduler::new(log.clone()).schedule(Blocking).await.unwrap();
        until("the body to block", || async { trace.count("blocks") == 1 }).await;
        gate.open();
        log.at_rest().await;
        state_of(&log, flow.id(), waits).await;
        drop(go);
        until("the late outcome", || async { trace.count("blocked") == 1 }).await;
        log.at_rest().await;
        clock.advance(Duration::from_secs(1));
        assert_eq!(soon("the flow's end", flow.result()).await.unwrap(), 2);
        assert_eq!(trace.take(), ["blocks", "blocked"]);
        let history = log.history(flow.id(), 0, 100).await.unwrap();
        let late = history.iter().find(|record| &*record.name == "blocks" && record.phase == Phase::Completed);
        assert!(late.is_none(), "{history:#?}");
        worker.shutdown().await;
    }
}

/// Steps called outside are refused, and say what to do instead.
#[test]
fn a_step_outside_a_flow_is_refused() {
    let called = std::panic::catch_unwind(|| drop(Thrice.call(1)));
    let panic = called.unwrap_err();
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("the step \"call\" was called outside a flow"), "{message}");
    assert!(message.contains("to test a step by itself"), "{message}");
}
