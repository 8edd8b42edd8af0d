//! The tools for testing flows, tested.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use ergon::{
    ErrorKind, FlowError, FlowState,
    prelude::*,
    testing::{Setup, TestRuntime, check_determinism, crash_everywhere},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Notes the steps that run.
#[derive(Clone, Default)]
struct Watcher(Arc<std::sync::Mutex<Vec<String>>>);

impl Middleware for Watcher {
    async fn step(&self, step: &ergon::StepRun, next: ergon::NextStep<'_>) -> ergon::Result<()> {
        self.0.lock().unwrap().push(format!("{} {}", step.name, step.attempt));
        next.run().await
    }
}

#[flow]
async fn greets() -> ergon::Result<String> {
    greeting().await
}

#[step(retry(max_attempts = 3, backoff = "1h"))]
async fn greeting() -> ergon::Result<String> {
    panic!("a double stands for it")
}

#[tokio::test]
async fn a_setup_has_middleware() {
    let watcher = Watcher::default();
    let setup = Setup::new().register::<greets>().middleware(watcher.clone());
    let error = ergon::Error::new("not yet");
    let runtime = setup.step_returns("greeting", "hello").step_fails("greeting", 1..=1, &error).start().await;
    assert_eq!(runtime.run(greets()).await.unwrap(), "hello");
    assert_eq!(*watcher.0.lock().unwrap(), ["greeting 1", "greeting 2"]);
}

/// Writes payloads backwards, and counts them.
#[derive(Clone, Default)]
struct Backwards(Arc<AtomicU32>);

impl ergon::PayloadCodec for Backwards {
    fn id(&self) -> &'static str {
        "backwards"
    }

    fn encode(&self, _: &ergon::PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, ergon::CodecError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(payload.iter().rev().copied().collect())
    }

    fn decode(&self, _: &ergon::PayloadContext<'_>, payload: &[u8]) -> Result<Vec<u8>, ergon::CodecError> {
        Ok(payload.iter().rev().copied().collect())
    }
}

#[tokio::test]
async fn a_setup_has_a_codec() {
    let codec = Backwards::default();
    let setup = || Setup::new().register::<greets>().codec(codec.clone()).step_returns("greeting", "hello");
    let report = crash_everywhere(setup, async |runtime| runtime.run(greets()).await.unwrap()).await;
    assert_eq!(report.result, "hello");
    assert!(codec.0.load(Ordering::SeqCst) >= 3, "the value, the outcome and the result of each run");
}

/// An order that needs much.
#[flow_type]
#[derive(Clone)]
struct Order {
    approved_within: Duration,
}

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        let (stock, label) = tokio::try_join!(self.reserve(), self.label())?;
        let receipt = self.charge(42).await?;
        sleep(30 * DAY).await;
        let approval = signal::<String>("approval").timeout(self.approved_within).await;
        let Some(by) = approval.map_err(|error| error.to_string())? else {
            return Ok(format!("{stock}, {label}, {receipt}, not approved"));
        };
        let parcel = child(Parcel { weight: 7 }).id("parcel").await?;
        Ok(format!("{stock}, {label}, {receipt}, approved by {by}, {parcel}"))
    }

    #[step]
    async fn reserve(&self) -> Result<String, String> {
        sleep(DAY).await;
        Ok("stock".into())
    }

    #[step]
    async fn label(&self) -> Result<String, String> {
        Ok("label".into())
    }

    #[step(retry(max_attempts = 4, backoff = "1h", multiplier = 2))]
    async fn charge(&self, cents: u32) -> Result<String, String> {
        if attempt() < 3 { Err("declined".into()) } else { Ok(format!("charged {cents}")) }
    }
}

#[flow_type]
struct Parcel {
    weight: u32,
}

#[flow_type]
impl Parcel {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        self.send().await
    }

    #[step]
    async fn send(&self) -> Result<String, String> {
        sleep(2 * DAY).await;
        Ok(format!("sent {} kg", self.weight))
    }
}

fn setup() -> Setup {
    Setup::new().register::<Order>().register::<Parcel>()
}

/// Orders, approves in time, and returns what became of it.
async fn approved(runtime: &TestRuntime) -> String {
    let order = runtime.scheduler().schedule(Order { approved_within: DAY }).id("order").await.unwrap();
    order.signal("approval", "ada").await.unwrap();
    runtime.result(&order).await.unwrap()
}

const APPROVED: &str = "stock, label, charged 42, approved by ada, sent 7 kg";

#[tokio::test]
async fn weeks_pass_in_a_moment() {
    let runtime = setup().start().await;
    let began = runtime.now();
    assert_eq!(approved(&runtime).await, APPROVED);
    // A day in a step, up to three hours of backoff, thirty days, two days of the child.
    let took = runtime.now().since(began);
    assert!(took > 33 * DAY && took <= 33 * DAY + Duration::from_secs(3 * 3600), "{took:?}");
    let runs: Vec<_> = runtime.step_runs().into_iter().map(|run| format!("{} {}", run.step, run.attempt)).collect();
    // A body that waits starts again.
    assert_eq!(runs[2..], ["reserve 1", "charge 1", "charge 2", "charge 3", "send 1", "send 1"]);
    assert_eq!((runtime.runs("reserve"), runtime.runs("label"), runtime.runs("charge")), (2, 1, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_change_nothing() {
    for _ in 0..20 {
        assert_eq!(approved(&setup().start().await).await, APPROVED);
    }
}

#[tokio::test]
async fn time_stands_still_until_it_is_moved() {
    let runtime = setup().start().await;
    let order = runtime.scheduler().schedule(Order { approved_within: DAY }).await.unwrap();
    let began = runtime.now();
    runtime.idle().await;
    assert_eq!((order.status().await.unwrap().state, runtime.now()), (FlowState::Suspended, began));
    // To the wait for the approval, with all that comes before it.
    runtime.advance(32 * DAY).await;
    assert_eq!(runtime.now().since(began), 32 * DAY);
    assert_eq!(runtime.runs("charge"), 3);
    assert!(!order.status().await.unwrap().state.is_final());
    runtime.advance(DAY).await;
    assert_eq!(order.try_result().await.unwrap().unwrap(), "stock, label, charged 42, not approved");
    // A signal that never comes costs a test its time limit, and no more.
    assert_eq!(
        runtime.run(Order { approved_within: 365 * DAY }).await.unwrap(),
        "stock, label, charged 42, not approved"
    );
}

#[tokio::test]
async fn steps_have_doubles() {
    let setup = setup().step_returns("label", "golden label").step_fails("charge", 1..=4, "bankrupt");
    let runtime = setup.clone().start().await;
    let error = runtime.run(Order { approved_within: DAY }).await.unwrap_err();
    assert!(matches!(&error, FlowError::Failed(error) if error == "bankrupt"), "{error}");
    assert_eq!(runtime.runs("charge"), 4);
    // The last one counts, of those that fit.
    let runtime = setup.step_returns("charge", "paid").step_fails("charge", 1..=1, "later").start().await;
    assert_eq!(runtime.run(Order { approved_within: DAY }).await.unwrap(), "stock, golden label, paid, not approved");
    assert_eq!(runtime.runs("charge"), 2);
    let runtime = self::setup().step_returns("label", &7).start().await;
    let error = runtime.run(Order { approved_within: DAY }).await.unwrap_err().to_string();
    assert!(error.contains(r#"what stands for step "label" cannot be read"#), "{error}");
}

#[tokio::test]
async fn a_crash_at_any_write_changes_nothing() {
    let report = crash_everywhere(setup, approved).await;
    assert_eq!(report.result, APPROVED);
    assert!(report.crashes > 30, "{report:?}");
    // The attempts of `charge` are recorded one by one; a body may have run when its record was lost.
    let most: Vec<_> = report.body_runs_max.iter().map(|(step, most)| (&**step, *most)).collect();
    assert_eq!(most, [("charge", 2), ("label", 2), ("reserve", 3), ("send", 3)]);
}

/// Works once the world is repaired, with a child beside it.
#[flow_type]
struct Repaired;

#[flow_type]
impl Repaired {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let fine = child(Parcel { weight: 1 }).id("fine").await?.len();
        self.work().await.map(|work| work + u32::try_from(fine).unwrap_or_default())
    }

    #[step(retry = none)]
    async fn work(&self) -> Result<u32, String> {
        if state::<Arc<AtomicBool>>().load(Ordering::SeqCst) { Ok(7) } else { Err("broken".into()) }
    }
}

/// As an operator does: retries what has failed, or deletes it and begins anew.
#[tokio::test]
async fn what_is_made_again_after_a_failure_may_run_again() {
    for anew in [false, true] {
        let works = Arc::new(AtomicBool::new(false));
        let setup = || Setup::new().register::<Repaired>().register::<Parcel>().with_state(Arc::clone(&works));
        let report = crash_everywhere(setup, async |runtime| {
            works.store(false, Ordering::SeqCst);
            let schedule = async || runtime.scheduler().schedule(Repaired).id("flow").await.unwrap();
            let flow = schedule().await;
            assert!(runtime.result(&flow).await.is_err());
            works.store(true, Ordering::SeqCst);
            if anew {
                for id in ["flow", "fine"] {
                    runtime.log().delete(&ergon::FlowId::new(id).unwrap()).await.unwrap();
                }
                schedule().await;
            } else {
                flow.retry().await.unwrap();
            }
            runtime.result(&flow).await.unwrap()
        })
        .await;
        assert_eq!(report.result, 7 + 9);
        assert!(report.crashes > 10, "{report:?}");
    }
}

/// Asks somebody who does not answer.
#[flow_type]
struct Asks {
    /// For how long, at most.
    within: Option<Duration>,
}

#[flow_type]
impl Asks {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        match self.within {
            Some(Duration::ZERO) => self.ask_shortly().await.map_err(|error| error.to_string()),
            Some(within) => tokio::select! {
                answer = self.ask() => answer,
                () = sleep(within) => Ok("gave up".into()),
            },
            None => self.ask().await,
        }
    }

    #[step(retry = none)]
    async fn ask(&self) -> Result<String, String> {
        std::future::pending().await
    }

    #[step(retry = none, timeout = "10s")]
    async fn ask_shortly(&self) -> ergon::Result<String> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn time_passes_a_body_that_hangs() {
    let runtime = Setup::new().register::<Asks>().start().await;
    let began = runtime.now();
    assert_eq!(runtime.run(Asks { within: Some(DAY) }).await.unwrap(), "gave up");
    assert_eq!(runtime.now().since(began), DAY);
    let error = runtime.run(Asks { within: Some(Duration::ZERO) }).await.unwrap_err().to_string();
    assert!(error.contains("10s"), "{error}");
    assert_eq!(runtime.now().since(began), DAY + Duration::from_secs(10));
    // It hangs, and all others go on.
    let hangs = runtime.scheduler().schedule(Asks { within: Some(400 * DAY) }).await.unwrap();
    assert_eq!(runtime.run(Asks { within: Some(DAY) }).await.unwrap(), "gave up");
    runtime.advance(398 * DAY).await;
    assert_eq!(hangs.status().await.unwrap().state, FlowState::Running);
    runtime.advance(2 * DAY).await;
    assert_eq!(hangs.try_result().await.unwrap().unwrap(), "gave up");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = r#"attempt 1 of step "ask", call 1 of flow "hangs" has neither ended nor called anything"#)]
async fn a_body_that_hangs_for_ever_is_told() {
    let runtime = Setup::new().register::<Asks>().start().await;
    let flow = runtime.scheduler().schedule(Asks { within: None }).id("hangs").await.unwrap();
    let _ = runtime.result(&flow).await;
}

/// Counts what should be counted by somebody else.
#[flow_type]
struct Careless;

#[flow_type]
impl Careless {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        self.count().await
    }

    #[step]
    async fn count(&self) -> Result<u32, String> {
        Ok(state::<Arc<AtomicU32>>().fetch_add(1, Ordering::Relaxed))
    }
}

#[tokio::test]
#[should_panic(expected = "changes nothing, the undisturbed result is on the right")]
async fn a_flow_that_depends_on_a_crash_is_found() {
    let setup = || Setup::new().register::<Careless>().with_state(Arc::new(AtomicU32::new(0)));
    crash_everywhere(setup, async |runtime| runtime.run(Careless).await.unwrap()).await;
}

/// Waits for what leaves no record.
#[flow_type]
struct Impatient;

#[flow_type]
impl Impatient {
    #[flow(allow(nondeterminism))]
    async fn run(&self) -> Result<(), String> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        sleep(DAY).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_not_durable_is_an_error() {
    let runtime = Setup::new().register::<Impatient>().start().await;
    let error = runtime.run(Impatient).await.unwrap_err().to_string();
    assert!(error.contains("the flow waited for something that is not durable before it called timer"), "{error}");
}

/// Waits for a signal.
#[flow_type]
struct Patient;

#[flow_type]
impl Patient {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        signal("never").await
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "never ends: it is suspended, waits for signal:never")]
async fn a_wait_that_never_ends_is_told() {
    let runtime = Setup::new().register::<Patient>().start().await;
    let _ = runtime.run(Patient).await;
}

/// Versions of one flow's code; each module is a deploy.
macro_rules! deploys {
    ($($name:ident: { $($body:tt)* })*) => {
        $(mod $name {
            use super::*;

            #[flow_type(name = "trip")]
            pub(super) struct Trip;

            #[flow_type]
            impl Trip {
                #[flow]
                async fn run(&self) -> Result<String, String> { $($body)* }
            }
        })*
    };
}

#[step]
async fn book(what: &str) -> Result<String, String> {
    Ok(what.into())
}

deploys! {
    old: { Ok(book("train").await? + &book("hotel").await?) }
    same: { let train = book("train").await?; Ok(train + &book("hotel").await?) }
    changed: { Ok(book("train").await? + &book("hostel").await?) }
    longer: { Ok(book("train").await? + &book("hotel").await? + &book("car").await?) }
    shorter: { book("train").await }
    other_result: { Ok(book("train").await? + " and " + &book("hotel").await?) }
    failing: { book("train").await?; book("hotel").await?; Err("full".into()) }
}

#[tokio::test]
async fn histories_are_replayed_by_new_code() {
    let setup = Setup::new();
    let runtime = setup.clone().register::<old::Trip>().start().await;
    let trip = runtime.scheduler().schedule(old::Trip).id("trip").await.unwrap();
    runtime.result(&trip).await.unwrap();
    let mut history = trip.history().await.unwrap();
    setup.replay::<old::Trip>(&history).unwrap();
    setup.replay::<same::Trip>(&history).unwrap();
    let differs = |mismatch: Result<(), ergon::testing::Mismatch>, expected: &str| {
        let mismatch = mismatch.unwrap_err().to_string();
        assert!(mismatch.starts_with(r#"flow "trip": "#) && mismatch.contains(expected), "{mismatch}");
    };
    differs(setup.replay::<changed::Trip>(&history), "the code made the same call with other arguments");
    differs(setup.replay::<longer::Trip>(&history), "the code makes another call");
    differs(setup.replay::<shorter::Trip>(&history), "the code does not make that call");
    differs(setup.replay::<other_result::Trip>(&history), "the code completes with \"train and hotel\"");
    differs(setup.replay::<failing::Trip>(&history), "it completed, the code fails");
    // What a flow that is under way has yet to do is its own affair.
    history.records.pop();
    history.info.state = FlowState::Suspended;
    history.result.clear();
    for replayed in [setup.replay::<longer::Trip>(&history), setup.replay::<changed::Trip>(&history)] {
        replayed.unwrap();
    }
}

/// Results in what has no order.
#[flow_type]
struct Tally;

#[flow_type]
impl Tally {
    #[flow]
    async fn run(&self) -> Result<(HashMap<String, u32>, HashSet<u32>), String> {
        Ok((self.count().await?, (0..20).collect()))
    }

    #[step]
    async fn count(&self) -> Result<HashMap<String, u32>, String> {
        Ok((0..20).map(|n| (format!("candidate {n}"), n)).collect())
    }
}

/// Results in what has.
#[flow_type]
struct Ranking;

static REVERSED: AtomicBool = AtomicBool::new(false);

#[flow_type]
impl Ranking {
    #[flow]
    async fn run(&self) -> Result<Vec<String>, String> {
        let mut names = [book("ada").await?, book("bob").await?];
        if REVERSED.load(Ordering::SeqCst) {
            names.reverse();
        }
        Ok(names.to_vec())
    }
}

#[tokio::test]
async fn results_are_compared_as_values() {
    let setup = Setup::new().register::<Tally>().register::<Ranking>();
    let runtime = setup.clone().start().await;
    let tally = runtime.scheduler().schedule(Tally).await.unwrap();
    runtime.result(&tally).await.unwrap();
    let mut history = tally.history().await.unwrap();
    setup.replay::<Tally>(&history).unwrap();
    history.result = String::from_utf8(history.result.to_vec()).unwrap().replacen("19", "29", 1).into();
    setup.replay::<Tally>(&history).unwrap_err();
    let ranking = runtime.scheduler().schedule(Ranking).await.unwrap();
    runtime.result(&ranking).await.unwrap();
    let history = ranking.history().await.unwrap();
    setup.replay::<Ranking>(&history).unwrap();
    REVERSED.store(true, Ordering::SeqCst);
    setup.replay::<Ranking>(&history).unwrap_err();
}

/// A transfer by a bank that knows no idempotency keys, and books what it is told as often as it is told.
#[flow_type]
struct Transfer;

#[flow_type]
impl Transfer {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        match self.book().await {
            Err(error) if error.kind() == ErrorKind::UnknownOutcome => self.look_up().await,
            booked => booked,
        }
    }

    #[step(at_most_once)]
    async fn book(&self) -> ergon::Result<u32> {
        Ok(42)
    }

    /// Whatever the statement says is final by now: the step does not run any more.
    #[step]
    async fn look_up(&self) -> ergon::Result<u32> {
        Ok(42)
    }
}

#[tokio::test]
async fn what_must_not_be_repeated_is_not() {
    let report =
        crash_everywhere(|| Setup::new().register::<Transfer>(), async |runtime| runtime.run(Transfer).await.unwrap())
            .await;
    assert_eq!((report.result, report.body_runs_max["book"]), (42, 1));
    assert!(report.body_runs_max.contains_key("look_up"), "{report:?}");
}

#[tokio::test]
async fn children_have_doubles() {
    let order = || Order { approved_within: DAY };
    let runtime = setup().flow_returns::<Parcel>(&"sent by a double".to_owned()).start().await;
    assert_eq!(approved(&runtime).await, "stock, label, charged 42, approved by ada, sent by a double");
    assert_eq!(runtime.runs("send"), 0);

    let runtime = Setup::new().register::<Order>().flow_fails::<Parcel>("lost".into()).start().await;
    let order = runtime.scheduler().schedule(order()).await.unwrap();
    order.signal("approval", "ada").await.unwrap();
    let error = runtime.result(&order).await.unwrap_err();
    assert!(matches!(&error, FlowError::Failed(error) if error.contains("lost")), "{error:?}");
}

#[tokio::test]
async fn attempts_panic_and_hang_on_demand() {
    #[flow]
    async fn measure() -> ergon::Result<u32> {
        reading().await
    }

    #[step(retry(max_attempts = 5, backoff = "1s"), timeout = "10s")]
    async fn reading() -> ergon::Result<u32> {
        Ok(attempt())
    }

    let setup =
        Setup::new().register::<measure>().step_panics("reading", 1..=1, "no power").step_hangs("reading", 2..=2);
    let runtime = setup.start().await;
    let began = runtime.now();
    let flow = runtime.scheduler().schedule(measure()).await.unwrap();
    assert_eq!(runtime.result(&flow).await.unwrap(), 3);
    assert!(runtime.now().since(began) >= Duration::from_secs(10), "a time limit has passed");
    let history = flow.history().await.unwrap().to_string();
    assert!(history.contains("no power") && history.contains("10s"), "{history}");
}

/// Steps that are called in the order of a hash set are other calls in each replay.
#[tokio::test]
#[should_panic(expected = "a history is not replayed by the code that made it")]
async fn calls_in_random_order_are_found() {
    #[flow]
    async fn greet_all(names: Vec<String>) -> ergon::Result<u32> {
        let mut greeted = 0;
        let names: HashSet<String> = names.into_iter().collect();
        // All at once, so that no wait shows it earlier.
        futures::future::try_join_all(names.into_iter().enumerate().map(|(place, name)| greet(place, name))).await?;
        greeted += 1;
        Ok(greeted)
    }

    #[step]
    async fn greet(place: usize, name: String) -> ergon::Result<()> {
        let _ = (place, name);
        Ok(())
    }

    let names: Vec<String> = ('a'..='z').map(String::from).collect();
    check_determinism(
        || Setup::new().register::<greet_all>(),
        4,
        async |runtime| runtime.run(greet_all(names.clone())).await.unwrap(),
    )
    .await;
}

#[tokio::test]
#[should_panic(expected = "the result depends on the order in which steps end")]
async fn results_that_depend_on_the_order_are_found() {
    #[flow]
    async fn race() -> ergon::Result<String> {
        tokio::select! {
            first = enter("hare") => first,
            first = enter("tortoise") => first,
        }
    }

    #[step]
    async fn enter(who: &str) -> ergon::Result<String> {
        Ok(who.into())
    }

    check_determinism(
        || Setup::new().register::<race>(),
        16,
        async |runtime| {
            let race = runtime.scheduler().schedule(race()).id("race").await.unwrap();
            runtime.result(&race).await.unwrap()
        },
    )
    .await;
}

#[tokio::test]
async fn what_ends_in_any_order_is_deterministic() {
    #[flow]
    async fn sum(count: u32) -> ergon::Result<u32> {
        let numbers = ergon::try_map_concurrent(0..count, 8, |number| async move {
            let twice = double(number).await?;
            if twice % 3 == 0 {
                sleep(DAY).await;
            }
            double(twice).await
        });
        Ok(numbers.await?.into_iter().sum())
    }

    #[step]
    async fn double(number: u32) -> ergon::Result<u32> {
        Ok(2 * number)
    }

    let report =
        check_determinism(|| Setup::new().register::<sum>(), 12, async |runtime| runtime.run(sum(20)).await.unwrap())
            .await;
    assert_eq!((report.result, report.orders), (4 * 190, 12));
    assert!(report.distinct_orders > 6, "{report:?}");
}

#[tokio::test]
#[should_panic(expected = "the result depends on the order in which steps end")]
async fn races_of_children_are_found() {
    #[flow]
    async fn race() -> ergon::Result<u32> {
        tokio::select! {
            first = child(runner(1)) => Ok(first?),
            first = child(runner(2)) => Ok(first?),
        }
    }

    #[flow]
    async fn runner(number: u32) -> ergon::Result<u32> {
        runs(number).await
    }

    #[step]
    async fn runs(number: u32) -> ergon::Result<u32> {
        Ok(number)
    }

    let setup = || Setup::new().register::<race>().register::<runner>();
    check_determinism(setup, 16, async |runtime| runtime.run(race()).await.unwrap()).await;
}
