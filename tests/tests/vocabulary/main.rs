//! Everything that goes through the log, on every log: in memory, in a file, on Redis and on PostgreSQL.
//!
//! Each case is run once without a fault, and then with one at each write of a worker that the first run had: the process
//! dies before the write or after it, or never hears of it. On servers only some of the writes, others for each case. What
//! ran is held against what ran without a fault, for each flow by itself: a dead process has run a beginning of it, the
//! next one the end, and both of them only what was under way.

mod flows;

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::atomic::Ordering, time::Duration};

use ergon::{Flow, FlowError, FlowHandle, WorkerHandle, admin::Cut, prelude::*};
use ergon_tests::{Fault, FaultyLog, Place, TestClock, Trace, soon};
use flows::{
    Here, Mended, NUMBERS, WORDS, breaks, changes, converts, echoes, family, gives_up, greets, limited, listens, pays,
    post, reads, rounds, tells, together, undone,
};
use futures::StreamExt;

const SPEED: u32 = 1_000;
const LEASE: Duration = Duration::from_secs(3_600);
/// How many writes have a fault on a server, of each kind.
const SAMPLES: u64 = 6;
const FAULTS: [Fault; 3] = [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseAnswer];

type Handle = FlowHandle<String, ergon::Error>;
/// Takes the result, what ran before the fault, and what ran after it.
type Otherwise = fn(&str, &[&str], &[&str]) -> bool;
type Ending = Pin<Box<dyn Future<Output = String> + Send>>;

/// What stands outside of all workers: it schedules the flow, does what people do, and says what came of it.
struct Outside {
    scheduler: Scheduler,
    clock: TestClock,
    id: String,
    mended: Mended,
}

impl Outside {
    async fn schedule<F: Flow<Output = String, Error = ergon::Error>>(&self, flow: F) -> Handle {
        self.scheduler.schedule(flow).id(&self.id).await.unwrap()
    }
}

/// What a flow does and what is to come of it.
struct Case {
    play: fn(Outside) -> Ending,
    result: &'static str,
    /// What runs when nothing goes wrong, by the rest of the flow's id.
    ran: &'static [(&'static str, &'static [&'static str])],
    /// How many bodies may run twice, for they are under way at once or are one.
    again: usize,
    /// The second worker.
    heir: Here,
    /// What else a fault may lead to, by the result and the notes of the flow itself.
    otherwise: Option<Otherwise>,
}

impl Case {
    fn new(
        play: fn(Outside) -> Ending,
        result: &'static str,
        ran: &'static [(&'static str, &'static [&'static str])],
    ) -> Self {
        Self { play, result, ran, again: 1, heir: Here { worker: "ann", build: 1 }, otherwise: None }
    }
}

async fn worker(log: &FaultyLog, clock: &TestClock, trace: &Trace, mended: &Mended, here: Here) -> WorkerHandle {
    let worker = Worker::new(log.clone()).name(here.worker).lease(LEASE).with_state(here).with_state(clock.clone());
    let worker = worker.with_state(trace.clone()).with_state(mended.clone());
    let worker = worker.register::<rounds>().register::<listens>().register::<post>().register::<echoes>();
    let worker = worker.register::<tells>().register::<together>().register::<undone>().register::<gives_up>();
    let worker = worker.register::<limited>().register::<reads>().register::<pays>().register::<converts>();
    let worker = worker.register::<changes>().register::<family>().register::<greets>().register::<breaks>();
    worker.start().await.unwrap()
}

/// What one run of a case has come to.
struct Ran {
    result: String,
    before: Vec<String>,
    after: Vec<String>,
    crashed: bool,
    writes: u64,
}

async fn run(case: &Case, log: &FaultyLog, clock: &TestClock, id: String, fault: Option<(u64, Fault)>) -> Ran {
    let (process, mended) = (log.another(), Mended::default());
    if let Some((write, fault)) = fault {
        process.order(write, fault);
    }
    let (first, second) = (Trace::new(), Trace::new());
    let ann = worker(&process, clock, &first, &mended, Here { worker: "ann", build: 1 }).await;
    let outside = Outside {
        scheduler: Scheduler::new(log.clone()),
        clock: clock.clone(),
        id: id.clone(),
        mended: mended.clone(),
    };
    let mut ending = tokio::spawn((case.play)(outside));
    let what = format!("the end of {id}, {fault:?}");
    let lived = soon(&what, async {
        loop {
            tokio::select! {
                biased;
                () = process.crashed() => return None,
                result = &mut ending => return Some(result.unwrap()),
                // Nobody knows that the flow is leased: it is not let go before that ends.
                () = process.claim_lost() => clock.skip(LEASE),
            }
        }
    });
    let lived = lived.await;
    let crashed = lived.is_none();
    let result = if let Some(result) = lived {
        ann.shutdown().await;
        result
    } else {
        drop(ann);
        clock.skip(LEASE);
        let Here { worker: name, build } = case.heir;
        let heir = worker(log, clock, &second, &mended, Here { worker: name, build }).await;
        let result = soon(&what, ending).await.unwrap();
        heir.shutdown().await;
        result
    };
    Ran { result, before: first.take(), after: second.take(), crashed, writes: process.writes() }
}

/// The labels that each flow has noted, by the rest of its id.
fn by_flow<'a>(id: &str, notes: &'a [String]) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for note in notes {
        let (flow, label) = note.split_once(' ').unwrap();
        flows.entry(flow.strip_prefix(id).unwrap()).or_default().push(label);
    }
    flows
}

/// Holds what ran, and what came of it, against what is to be.
fn check(case: &Case, id: &str, ran: &Ran, fault: Option<(u64, Fault)>) {
    let what = format!("{id}, {fault:?}: {:?} after {:?}, then {:?}", ran.result, ran.before, ran.after);
    let (mut before, mut after) = (by_flow(id, &ran.before), by_flow(id, &ran.after));
    let wanted: BTreeMap<_, _> = case.ran.iter().copied().collect();
    for flow in before.keys().chain(after.keys()) {
        assert!(wanted.contains_key(flow), "{what}: {flow:?} should not be");
    }
    if fault.is_none() {
        assert_eq!(ran.result, case.result, "{what}");
        assert_eq!(before, wanted.into_iter().map(|(flow, notes)| (flow, notes.to_vec())).collect(), "{what}");
        return;
    }
    let again = if ran.crashed { case.again } else { 0 };
    let mut is_otherwise = false;
    for (flow, wanted) in wanted {
        let (before, after) = (before.remove(flow).unwrap_or_default(), after.remove(flow).unwrap_or_default());
        let twice = (before.len() + after.len()).checked_sub(wanted.len());
        let is_plain = wanted.starts_with(&before) && wanted.ends_with(&after);
        if is_plain && twice.is_some_and(|twice| twice <= again) {
            continue;
        }
        is_otherwise = case.otherwise.is_some_and(|may_be| flow.is_empty() && may_be(&ran.result, &before, &after));
        assert!(is_otherwise, "{what}: {flow:?} should run {wanted:?}");
    }
    assert!(is_otherwise || ran.result == case.result, "{what}");
}

/// Runs a case without a fault and with one at each write, or at some of them.
async fn sweep(place: Place, name: &str, case: Case) {
    let clock = TestClock::new(SPEED);
    let log = place.log_at(clock.clone()).await;
    let clean = run(&case, &log, &clock, name.into(), None).await;
    check(&case, name, &clean, None);
    let step = if place.is_server() { clean.writes.div_ceil(SAMPLES) } else { 1 };
    let mut crashes = 0;
    for (kind, fault) in (0..).zip(FAULTS) {
        // The writes of one kind lie between those of the others.
        let first = 1 + kind * step / 3;
        for write in (first..=clean.writes).step_by(usize::try_from(step).unwrap()) {
            let id = format!("{name}-{kind}-{write}");
            let ran = run(&case, &log, &clock, id.clone(), Some((write, fault))).await;
            crashes += u32::from(ran.crashed);
            check(&case, &id, &ran, Some((write, fault)));
        }
    }
    assert!(crashes >= 4, "{name}: only {crashes} of the processes died");
}

/// What a flow has ended with, for one that is not to have a result.
fn told(result: Result<String, FlowError<ergon::Error>>) -> String {
    result.unwrap_or_else(|error| error.to_string())
}

macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {
        $(fn $name() -> Case { $case })*
        cases!(@on memory sqlite redis postgres: $($name)*);
    };
    (@on $place:ident $($others:ident)*: $($name:ident)*) => {
        mod $place {
            $(#[tokio::test]
            async fn $name() {
                super::sweep(super::Place::$place(), stringify!($name), super::$name()).await;
            })*
        }
        cases!(@on $($others)*: $($name)*);
    };
    (@on : $($name:ident)*) => {};
}

cases! {
    a_flow_begins_again: Case::new(
        |outside| Box::pin(async move {
            let flow = outside.schedule(rounds(0, None)).await;
            for number in [1, 20, 300] {
                flow.send_once(&NUMBERS, &number, &number.to_string()).await.unwrap();
                flow.send_once(&NUMBERS, &number, &number.to_string()).await.unwrap();
            }
            let listener = FlowId::new(format!("{}-listener", outside.id)).unwrap();
            let sum = told(flow.result().await);
            sum + ", " + &told(outside.scheduler.handle::<listens>(listener).result().await)
        }),
        "321 in run 3, hear 321",
        &[("", &["add 1", "add 20", "add 300"]), ("-listener", &["hear 321"])],
    );

    messages_arrive_once: Case::new(
        |outside| Box::pin(async move {
            let flow = outside.schedule(post()).await;
            for word in ["one", "two", "three"] {
                flow.send(&WORDS, &word.to_owned()).await.unwrap();
            }
            flow.signal("go", &()).await.unwrap();
            // Nobody races for the last word any more.
            waiting(&flow).await;
            flow.send(&WORDS, &"last".to_owned()).await.unwrap();
            told(flow.result().await)
        }),
        "one Some(\"two\") Some(\"three\") None, one+once, answer, None last",
        &[("", &["taken", "answered"]), ("/7", &["answer"])],
    );

    progress_is_told_once: Case::new(
        |outside| Box::pin(async move {
            let flow = outside.schedule(tells()).await;
            let (lines, statuses, result) = tokio::join!(
                flow.stream::<u32>("lines").map(|item| item.unwrap()).collect::<Vec<_>>(),
                flow.watch_status::<String>().map(|status| status.unwrap().value).collect::<Vec<_>>(),
                flow.result(),
            );
            let offsets: Vec<_> = lines.iter().map(|line| line.offset).collect();
            assert_eq!(offsets, [1, 2, 3, 4, 5, 6]);
            let resumed = flow.stream::<u32>("lines").after(4).map(|item| item.unwrap().value);
            assert_eq!(resumed.collect::<Vec<_>>().await, [3, 30]);
            let values: Vec<_> = lines.iter().map(|line| line.value).collect();
            format!("{values:?}, {}, {}", statuses.last().unwrap(), told(result))
        }),
        "[1, 10, 2, 20, 3, 30], told, done",
        &[("", &["1", "2", "3"])],
    );

    what_runs_at_once_and_what_is_late: Case { again: 3, ..Case::new(
        |outside| Box::pin(async move { told(outside.schedule(together()).await.result().await) }),
        "[1, 4, 9, 16], 2 is even, right, Timeout, enough",
        &[("", &[
            "square 1", "square 2", "square 3", "square 4", "odd 1", "odd 2", "left", "middle", "right", "quick",
            "enough",
        ])],
    ) };

    a_cancelled_flow_is_undone: Case::new(
        |outside| Box::pin(async move {
            let flow = outside.schedule(undone()).await;
            waiting(&flow).await;
            flow.cancel("ill").await.unwrap();
            told(flow.result().await)
        }),
        "the flow was cancelled: ill",
        &[("", &["reserve", "pay", "refund", "release", "ill"])],
    );

    a_failed_saga_is_undone: Case::new(
        |outside| Box::pin(async move { told(outside.schedule(gives_up()).await.result().await) }),
        "no",
        &[("", &["reserve", "pay", "deliver", "refund", "release", "apologise"])],
    );

    a_flow_whose_time_is_up_is_undone: Case::new(
        |outside| Box::pin(async move {
            let flow = outside.schedule(limited()).await;
            waiting(&flow).await;
            outside.clock.skip(LEASE * 10);
            told(flow.result().await)
        }),
        "the flow failed: the flow exceeded its time limit",
        &[("", &["reserve", "release"])],
    );

    a_long_step_goes_on: Case { again: 5, ..Case::new(
        |outside| Box::pin(async move { told(outside.schedule(reads()).await.result().await) }),
        "5",
        &[("", &["page 1", "page 2", "page 3", "page 4", "page 5", "read"])],
    ) };

    a_payment_is_made_once: Case {
        again: 1,
        otherwise: Some(|result, before, after| {
            let asked = |notes: &[&str]| ["ask", "ship"].ends_with(notes);
            let paid = before.iter().chain(after).filter(|label| **label == "pay").count();
            result == "ask" && paid <= 1 && before.first() == Some(&"cart") && asked(after)
        }),
        ..Case::new(
            |outside| Box::pin(async move { told(outside.schedule(pays()).await.result().await) }),
            "pay",
            &[("", &["cart", "pay", "ship"])],
        )
    };

    a_session_goes_on_under_the_same_name: Case::new(
        |outside| Box::pin(async move { told(outside.schedule(converts()).await.result().await) }),
        "ann",
        &[("", &["load on ann", "convert on ann", "store on ann", "report on ann"])],
    );

    a_session_is_lost_elsewhere: Case {
        heir: Here { worker: "bob", build: 1 },
        otherwise: Some(|result, before, after| {
            let begun = ["load on ann", "convert on ann", "store on ann", "report on ann"].starts_with(before);
            begun && match result {
                "ann" => after == ["report on bob"],
                "ann to bob, bob" | "bob" => {
                    after == ["load on bob", "convert on bob", "store on bob", "report on bob"]
                }
                _ => false,
            }
        }),
        ..Case::new(
            |outside| Box::pin(async move { told(outside.schedule(converts()).await.result().await) }),
            "ann",
            &[("", &["load on ann", "convert on ann", "store on ann", "report on ann"])],
        )
    };

    code_changes_under_a_flow: Case {
        heir: Here { worker: "ann", build: 2 },
        otherwise: Some(|result, before, after| {
            // What had come to the old way's end by the log stays on it; what had not takes the new one.
            result == "new" && ["begin", "old"].starts_with(before) && ["begin", "new", "end"].ends_with(after)
                && after.len() >= 2 && before.len() + after.len() <= 4
        }),
        ..Case::new(
            |outside| Box::pin(async move { told(outside.schedule(changes()).await.result().await) }),
            "old",
            &[("", &["begin", "old", "end"])],
        )
    };

    a_family_grows: Case::new(
        |outside| Box::pin(async move {
            let flow = outside.scheduler.schedule(family()).id(&outside.id).label("by", "ada").await.unwrap();
            flow.signal_once("early", "youngest", "k").await.unwrap();
            let result = told(flow.result().await);
            let labels = flow.status().await.unwrap().labels;
            let labels = [labels.get("by"), labels.get("stage"), labels.get("draft")];
            let child = FlowId::new(format!("{}/1", outside.id)).unwrap();
            let child = outside.scheduler.status(&child).await.unwrap().unwrap();
            assert_eq!((child.labels.get("of"), child.priority), (Some("family"), 3));
            format!("{result}, {labels:?}")
        }),
        "eldest, youngest after 1, None, [Some(\"ada\"), Some(\"grown\"), None]",
        &[("", &["keep", "end"]), ("/1", &["eldest"]), ("/5", &["youngest"])],
    );

    a_flow_is_mended: Case::new(
        |outside| Box::pin(async move {
            let flow = outside.schedule(breaks()).await;
            let broken = told(flow.result().await);
            outside.mended.0.store(true, Ordering::Release);
            flow.retry().await.unwrap();
            let mended = told(flow.result().await);
            let admin = outside.scheduler.admin();
            let fork = admin.fork(flow.id()).at(Cut::first("sleep")).id(format!("{}-fork", outside.id)).await.unwrap();
            let forked = told(outside.scheduler.handle::<breaks>(fork).result().await);
            admin.reset(flow.id(), Cut::first("fragile")).await.unwrap();
            format!("{broken}; {mended}; {forked}; {}", told(flow.result().await))
        }),
        "the flow failed: broken; z; z; z",
        &[("", &["a", "fragile", "fragile", "z", "fragile", "z"]), ("-fork", &["z"])],
    );
}

/// Waits until the flow has said that it waits.
async fn waiting(flow: &Handle) {
    let mut statuses = flow.watch_status::<String>();
    while statuses.next().await.unwrap().unwrap().value != "waiting" {}
}
