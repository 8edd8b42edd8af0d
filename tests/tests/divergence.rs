//! Code that no longer matches the history of its flows.

// As expect-test writes them.
#![allow(clippy::needless_raw_string_hashes)]

use std::{collections::HashSet, time::Duration};

use ergon::{
    Flow, FlowError, FlowHandle, WorkerHandle,
    prelude::*,
    storage::{ExecutionLog, Filter, FlowState, ManualClock, Retried},
};
use ergon_tests::{FaultyLog, Place, Trace, both, note, soon, state_of, until};
use expect_test::{Expect, expect};

#[step]
async fn book(what: &str) -> Result<String, String> {
    note(format!("book {what}"));
    Ok(what.into())
}

#[step]
async fn pay(amount: u32) -> Result<String, String> {
    note(format!("pay {amount}"));
    Ok(amount.to_string())
}

#[step]
async fn pay_now(amount: u32) -> Result<String, String> {
    note(format!("pay now {amount}"));
    Ok(amount.to_string())
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

deploys! {
    old: {
        let first = book("train").await?;
        let second = pay(7).await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(first + &second + &book("hotel").await?)
    }
    removed: {
        let second = pay(7).await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(second + &book("hotel").await?)
    }
    added: {
        let first = book("train").await?;
        let added = book("seat").await?;
        let second = pay(7).await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(first + &added + &second + &book("hotel").await?)
    }
    renamed: {
        let first = book("train").await?;
        let second = pay_now(7).await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(first + &second + &book("hotel").await?)
    }
    reordered: {
        let second = pay(7).await?;
        let first = book("train").await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(first + &second + &book("hotel").await?)
    }
    rearranged: {
        // At once what was one after the other.
        let (second, first) = tokio::try_join!(pay(7), book("train"))?;
        sleep(Duration::from_secs(3600)).await;
        Ok(first + &second + &book("hotel").await?)
    }
    changed: {
        let first = book("train").await?;
        let second = pay(8).await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(first + &second + &book("hotel").await?)
    }
    longer: {
        let first = book("train").await?;
        let second = pay(7).await?;
        sleep(Duration::from_secs(7200)).await;
        Ok(first + &second + &book("hotel").await?)
    }
    at_once: {
        let first = book("train").await?;
        // Made at once with what differs, and not to take effect.
        let beside = child(old::Trip).id("beside").start();
        let (second, ()) = tokio::join!(pay(8), sleep(Duration::from_secs(1)));
        drop(beside);
        Ok(first + &second?)
    }
    dropped: {
        let first = book("train").await?;
        Ok(first)
    }
    waiting: {
        let first = book("train").await?;
        std::future::pending::<()>().await;
        Ok(first)
    }
    appended: {
        // What comes after the history may change at will.
        let first = book("train").await?;
        let second = pay(7).await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(first + &second + &book("hostel").await? + &pay(9).await?)
    }
    another_result: {
        let first = book("train").await?;
        let second: String = pay(7).await?;
        sleep(Duration::from_secs(3600)).await;
        Ok(format!("{first}, {second}, {}", book("hotel").await?))
    }
}

async fn deploy<F: Flow>(log: &FaultyLog, trace: &Trace, build: &str) -> WorkerHandle {
    let worker = Worker::new(log.clone()).register::<F>().with_state(trace.clone()).build(build);
    worker.lease(Duration::from_secs(1_000_000)).start().await.unwrap()
}

/// A flow that the old code has brought to its timer, which is due.
async fn under_way(log: &FaultyLog, clock: &ManualClock) -> FlowHandle<String, String> {
    let trace = Trace::new();
    let worker = deploy::<old::Trip>(log, &trace, "old").await;
    let flow = Scheduler::new(log.clone()).schedule(old::Trip).id("trip").await.unwrap();
    state_of(log, flow.id(), FlowState::Suspended).await;
    worker.shutdown().await;
    clock.advance(Duration::from_secs(3600));
    assert_eq!(trace.take(), ["book train", "pay 7"]);
    flow
}

const WHAT_TO_DO: &str = "nothing is lost: undo the change, or put it behind ergon::patched(), or give the flow a new \
                          version for the changed code and let a worker with the old code finish this one, then \
                          retry the flow";

/// Stalls a flow under new code, then brings it to its end under the old code.
async fn diverges<F: Flow>(place: &Place, expect: Expect) {
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let flow = under_way(&log, &clock).await;
    let before = log.history(flow.id(), 0, 100).await.unwrap();
    let trace = Trace::new();
    let worker = deploy::<F>(&log, &trace, "new").await;
    let error = soon("the flow to stall", flow.result()).await.unwrap_err();
    let FlowError::Stalled(reason) = error else { panic!("{error:?}") };
    let (what, todo) = reason.split_once("; ").expect("what is wrong, and what to do");
    expect.assert_eq(what);
    assert_eq!(todo, WHAT_TO_DO);
    assert!(trace.take().is_empty(), "nothing runs");
    // Nothing is lost, and nothing written.
    assert_eq!(log.history(flow.id(), 0, 100).await.unwrap(), before);
    assert_eq!(log.list(&Filter::all(), None, 100).await.unwrap().flows.len(), 1, "no child was started");
    // The same build is not offered it again …
    worker.shutdown().await;
    let process = log.another();
    let worker = deploy::<F>(&process, &trace, "new").await;
    until("it to have looked", || async { process.calls().contains_key("claim") }).await;
    assert_eq!(flow.status().await.unwrap().state, FlowState::Stalled);
    worker.shutdown().await;
    // … another one is, and goes on.
    let worker = deploy::<old::Trip>(&log, &trace, "old").await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "train7hotel");
    assert_eq!(trace.take(), ["book hotel"]);
    worker.shutdown().await;
}

macro_rules! divergences {
    ($($test:ident: $deploy:ident $expect:expr,)*) => {
        both!($($test),*);
        $(async fn $test(place: Place) {
            diverges::<$deploy::Trip>(&place, $expect).await;
        })*
    };
}

divergences! {
    a_removed_call: removed expect![[r#"the code and the history part at call 1: the history has step "book" (arguments a6e71d8403937c3f), the code called step "pay" (arguments 81cdf6c23a50b520)"#]],
    an_added_call: added expect![[r#"the code and the history part at call 2: the history has step "pay" (arguments 81cdf6c23a50b520), the code called step "book" (arguments 3a1d3c9c9e9f213a)"#]],
    a_renamed_call: renamed expect![[r#"the code and the history part at call 2: the history has step "pay" (arguments 81cdf6c23a50b520), the code called step "pay_now" (arguments 81cdf6c23a50b520)"#]],
    reordered_calls: reordered expect![[r#"the code and the history part at call 1: the history has step "book" (arguments a6e71d8403937c3f), the code called step "pay" (arguments 81cdf6c23a50b520)"#]],
    changed_arguments: changed expect![[r#"the code and the history part at call 2: the history has step "pay" (arguments 81cdf6c23a50b520), the code made the same call with other arguments, step "pay" (arguments 2e6d67d6d1ed3456)"#]],
    a_changed_timer: longer expect![[r#"the code and the history part at call 3: the history has timer "sleep" (arguments 5665b0866a3ff033), the code made the same call with other arguments, timer "sleep" (arguments ab04f88a57f5fa32)"#]],
    changed_calls_at_once: at_once expect![[r#"the code and the history part at call 2: the history has step "pay" (arguments 81cdf6c23a50b520), the code called child "trip" (arguments 9cbcb82826676cd0)"#]],
    a_dropped_tail: dropped expect![[r#"the code and the history part at call 2: the history has step "pay" (arguments 81cdf6c23a50b520), the code does not make that call"#]],
    a_dropped_tail_that_waits: waiting expect![[r#"the code and the history part at call 2: the history has step "pay" (arguments 81cdf6c23a50b520), the code does not make that call"#]],
}

async fn goes_on<F: Flow>(result: &str, ran: &[&str]) {
    let clock = ManualClock::new();
    let log = Place::memory().log_at(clock.clone()).await;
    let flow = under_way(&log, &clock).await;
    let trace = Trace::new();
    let worker = deploy::<F>(&log, &trace, "new").await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), result);
    assert_eq!(trace.take(), ran);
    worker.shutdown().await;
}

#[tokio::test]
async fn changes_after_the_history_are_free() {
    goes_on::<appended::Trip>("train7hostel9", &["book hostel", "pay 9"]).await;
    goes_on::<another_result::Trip>("train, 7, hotel", &["book hotel"]).await;
}

#[tokio::test]
async fn calls_in_sequence_may_be_made_at_once() {
    goes_on::<rearranged::Trip>("train7hotel", &["book hotel"]).await;
}

#[tokio::test]
async fn the_same_build_goes_on_after_a_retry() {
    let clock = ManualClock::new();
    let log = Place::memory().log_at(clock.clone()).await;
    let flow = under_way(&log, &clock).await;
    let trace = Trace::new();
    let worker = deploy::<removed::Trip>(&log, &trace, "same").await;
    state_of(&log, flow.id(), FlowState::Stalled).await;
    worker.shutdown().await;
    let process = log.another();
    let worker = deploy::<old::Trip>(&process, &trace, "same").await;
    until("it to have looked", || async { process.calls().contains_key("claim") }).await;
    assert_eq!(flow.status().await.unwrap().state, FlowState::Stalled);
    assert_eq!(flow.retry().await.unwrap(), Retried::Scheduled);
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "train7hotel");
    assert_eq!(flow.retry().await.unwrap(), Retried::Not(FlowState::Completed));
    worker.shutdown().await;
}

#[tokio::test]
async fn a_stalled_flow_can_be_cancelled_and_signalled() {
    let clock = ManualClock::new();
    let log = Place::memory().log_at(clock.clone()).await;
    let flow = under_way(&log, &clock).await;
    let worker = deploy::<removed::Trip>(&log, &Trace::new(), "new").await;
    state_of(&log, flow.id(), FlowState::Stalled).await;
    flow.signal("word", "kept").await.unwrap();
    flow.cancel("given up").await.unwrap();
    let error = flow.result().await.unwrap_err();
    assert!(matches!(&error, FlowError::Cancelled(reason) if reason == "given up"), "{error:?}");
    worker.shutdown().await;
}

/// A step whose recorded outcome the code can no longer read.
mod reads {
    use super::*;

    #[flow_type(name = "reads")]
    pub(super) struct Before;

    #[flow_type]
    impl Before {
        #[flow]
        async fn run(&self) -> Result<String, String> {
            let read = self.read().await?;
            sleep(Duration::from_secs(3600)).await;
            Ok(read)
        }

        #[step]
        async fn read(&self) -> Result<String, String> {
            Ok("text".into())
        }
    }

    #[flow_type(name = "reads")]
    pub(super) struct After;

    #[flow_type]
    impl After {
        #[flow]
        async fn run(&self) -> Result<String, String> {
            let read = self.read().await?;
            sleep(Duration::from_secs(3600)).await;
            Ok(read.to_string())
        }

        #[step]
        async fn read(&self) -> Result<u64, String> {
            Ok(7)
        }
    }
}

#[tokio::test]
async fn an_outcome_of_another_type_stalls() {
    let clock = ManualClock::new();
    let log = Place::memory().log_at(clock.clone()).await;
    let worker = deploy::<reads::Before>(&log, &Trace::new(), "old").await;
    let flow = Scheduler::new(log.clone()).schedule(reads::Before).await.unwrap();
    state_of(&log, flow.id(), FlowState::Suspended).await;
    worker.shutdown().await;
    clock.advance(Duration::from_secs(3600));
    let worker = deploy::<reads::After>(&log, &Trace::new(), "new").await;
    let info = state_of(&log, flow.id(), FlowState::Stalled).await;
    expect![[r#"the recorded outcome of step "read" cannot be read as u64: invalid type: string "text", expected u64 at line 1 column 6; give the changed type the old form, or give the flow a new version and let workers with the old code finish what is under way"#]].assert_eq(info.reason.as_deref().unwrap_or_default());
    worker.shutdown().await;
    let worker = deploy::<reads::Before>(&log, &Trace::new(), "old").await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "text");
    worker.shutdown().await;
}

/// The value of a flow that the code can no longer read.
mod values {
    use super::*;

    #[flow_type(name = "values")]
    pub(super) struct Before {
        pub(super) name: String,
    }

    #[flow_type]
    impl Before {
        #[flow]
        async fn run(&self) -> Result<String, String> {
            Ok(self.name.clone())
        }
    }

    #[flow_type(name = "values")]
    pub(super) struct After {
        number: u64,
    }

    #[flow_type]
    impl After {
        #[flow]
        async fn run(&self) -> Result<String, String> {
            Ok(self.number.to_string())
        }
    }
}

#[tokio::test]
async fn a_value_of_another_shape_stalls() {
    let log = Place::memory().log().await;
    let flow = Scheduler::new(log.clone()).schedule(values::Before { name: "ada".into() }).await.unwrap();
    let worker = deploy::<values::After>(&log, &Trace::new(), "new").await;
    let info = state_of(&log, flow.id(), FlowState::Stalled).await;
    expect!["the flow's value cannot be read as divergence::values::After: missing field `number` at line 1 column 14; give the changed type the old form, or give the flow a new version, then retry the flow"].assert_eq(info.reason.as_deref().unwrap_or_default());
    worker.shutdown().await;
    let worker = deploy::<values::Before>(&log, &Trace::new(), "old").await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), "ada");
    worker.shutdown().await;
}

/// Starts a child whose value has another order each time.
#[flow_type]
struct Tags;

#[flow_type]
impl Tags {
    #[flow]
    async fn run(&self) -> ergon::Result<usize> {
        child(Tagged { tags: (0..20).collect() }).await
    }
}

/// Counts its tags.
#[flow_type]
struct Tagged {
    tags: HashSet<u32>,
}

#[flow_type]
impl Tagged {
    #[flow]
    async fn run(&self) -> ergon::Result<usize> {
        Ok(self.tags.len())
    }
}

#[tokio::test]
async fn a_set_in_the_value_of_a_child_is_hinted_at() {
    let log = Place::memory().log().await;
    let worker = Worker::new(log.clone()).register::<Tags>().register::<Tagged>().parked_max(0);
    let worker = worker.start().await.unwrap();
    let flow = Scheduler::new(log.clone()).schedule(Tags).await.unwrap();
    let error = soon("the flow to stall", flow.result()).await.unwrap_err();
    let FlowError::Stalled(reason) = error else { panic!("{error:?}") };
    let hint = " (if its value holds a HashSet: that has another order each time, take a BTreeSet); nothing is lost";
    assert!(reason.contains("the same call with other arguments") && reason.contains(hint), "{reason}");
    worker.shutdown().await;
}
