//! Compensations: in reverse order, once each, whatever happens to the process.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ergon::{
    ErrorKind, FlowError, SagaError,
    prelude::*,
    saga,
    testing::{Setup, TestRuntime, crash_everywhere},
};
use serde::{Deserialize, Serialize};

/// Three bookings, the last of which fails or not.
#[flow_type]
#[derive(Clone)]
struct Trip {
    sold_out: String,
}

#[flow_type]
impl Trip {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let booked = saga(async |saga| {
            let flight = self.book("flight").await?;
            saga.undo(move || self.release(flight));
            let hotel = self.book("hotel").await?;
            let name = format!("hotel {hotel}");
            saga.undo(async move || self.send_off(&name).await);
            let car = self.book("car").await?;
            Ok(format!("{flight} {hotel} {car}"))
        });
        Ok(booked.await?)
    }

    #[step(retry = none)]
    async fn book(&self, what: &str) -> ergon::Result<usize> {
        if what == self.sold_out { Err(ergon::Error::permanent(format!("no {what}"))) } else { Ok(what.len()) }
    }

    #[step]
    async fn release(&self, number: usize) -> ergon::Result<usize> {
        sleep(Duration::from_secs(3_600)).await;
        Ok(number)
    }

    #[step(retry(max_attempts = 3, backoff = "1h"))]
    async fn send_off(&self, name: &str) -> ergon::Result<()> {
        match state::<Arc<AtomicBool>>().load(Ordering::SeqCst) {
            true if attempt() < 3 => Err(ergon::Error::new("later")),
            true => Ok(()),
            false => Err(ergon::Error::permanent(format!("{name} does not answer"))),
        }
    }
}

fn setup(works: &Arc<AtomicBool>) -> Setup {
    Setup::new().register::<Trip>().register::<typed>().register::<joined>().with_state(Arc::clone(works))
}

fn works(works: bool) -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(works))
}

/// The names of the steps whose bodies ran, in order, without those that began again.
fn ran(runtime: &TestRuntime) -> Vec<String> {
    let mut runs: Vec<_> = runtime.step_runs().into_iter().map(|run| format!("{} {}", run.step, run.attempt)).collect();
    runs.dedup();
    runs
}

#[tokio::test]
async fn what_succeeds_is_not_undone() {
    let world = works(true);
    let report = crash_everywhere(
        || setup(&world),
        async |runtime| runtime.run(Trip { sold_out: String::new() }).await.unwrap(),
    );
    let report = report.await;
    assert_eq!(report.result, "6 5 3");
    assert_eq!(report.body_runs_max.keys().collect::<Vec<_>>(), ["book"]);
}

#[tokio::test]
async fn what_fails_is_undone_in_reverse_order() {
    let world = works(true);
    let hotel = ["send_off 1", "send_off 2", "send_off 3"];
    let flight = ["release 1"];
    for (sold_out, undone) in [("car", [&hotel[..], &flight].concat()), ("hotel", flight.to_vec()), ("flight", vec![])]
    {
        let trip = Trip { sold_out: sold_out.into() };
        let runtime = setup(&world).start().await;
        runtime.run(trip.clone()).await.unwrap_err();
        assert_eq!(ran(&runtime), [vec!["book 1"], undone].concat(), "{sold_out}");

        let report = crash_everywhere(
            || setup(&world),
            async |runtime| runtime.run(trip.clone()).await.unwrap_err().to_string(),
        );
        let report = report.await;
        assert_eq!(report.result, format!("the flow failed: no {sold_out}"));
        assert!(report.crashes >= 4, "{report:?}");
    }
}

#[tokio::test]
async fn a_retry_goes_on_with_the_compensation_that_failed() {
    let world = works(false);
    let report = crash_everywhere(
        || setup(&world),
        async |runtime| {
            world.store(false, Ordering::SeqCst);
            let trip = runtime.scheduler().schedule(Trip { sold_out: "car".into() }).id("trip").await.unwrap();
            let error = runtime.result(&trip).await.unwrap_err();
            let FlowError::Failed(error) = error else { panic!("{error:?}") };
            assert_eq!(error.kind(), ErrorKind::Failed);
            assert!(!error.is_retryable(), "as the error of the body");
            world.store(true, Ordering::SeqCst);
            trip.retry().await.unwrap();
            let again = runtime.result(&trip).await.unwrap_err();
            // Nothing is left to be done, so another retry does nothing.
            let runs = runtime.step_runs().len();
            trip.retry().await.unwrap();
            assert_eq!(runtime.result(&trip).await.unwrap_err().to_string(), again.to_string());
            assert_eq!(runtime.step_runs().len(), runs);
            let calls: Vec<_> = (trip.history().await.unwrap().calls().iter())
                .map(|call| format!("{} {}: {:?}", call.path, call.name, call.phase))
                .collect();
            (error.to_string(), again.to_string(), calls)
        },
    );
    let (failed, again, calls) = report.await.result;
    assert_eq!(failed, "no car; compensation 2 failed too, and those before it did not run: hotel 5 does not answer");
    assert_eq!(again, "the flow failed: no car");
    assert_eq!(
        calls,
        [
            "1 book: Completed",
            "2 book: Completed",
            "3 book: Failed",
            "4 send_off: Completed",
            "5.1 sleep: Completed",
            "5 release: Completed"
        ]
    );
}

/// An error of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Trouble {
    Refused(u32),
}

/// Fails with the error of a saga as it is.
#[flow]
async fn typed(amounts: Vec<u32>) -> Result<u32, SagaError<Trouble>> {
    saga(|saga| async move {
        let mut sum = 0;
        for amount in amounts {
            sum += pay(amount).await?;
            saga.undo(move || refund(amount));
        }
        Ok(sum)
    })
    .await
}

#[step(retry = none)]
async fn pay(amount: u32) -> Result<u32, Trouble> {
    if amount > 99 { Err(Trouble::Refused(amount)) } else { Ok(amount) }
}

#[step(retry = none)]
async fn refund(amount: u32) -> Result<(), Trouble> {
    if amount == 13 { Err(Trouble::Refused(amount)) } else { Ok(()) }
}

#[tokio::test]
async fn the_error_says_what_failed_and_what_was_not_undone() {
    let runtime = setup(&works(true)).start().await;
    assert_eq!(runtime.run(typed(vec![1, 2, 3])).await.unwrap(), 6);
    let fails = async |amounts: &[u32]| match runtime.run(typed(amounts.to_vec())).await {
        Err(FlowError::Failed(error)) => error,
        other => panic!("{other:?}"),
    };
    let error = fails(&[1, 2, 100]).await;
    assert_eq!(error.compensation, None);
    assert_eq!(error.into_error(), Trouble::Refused(100));
    let SagaError { error, compensation } = fails(&[1, 13, 2, 100]).await;
    let compensation = compensation.unwrap();
    assert_eq!(error, Trouble::Refused(100));
    assert_eq!((compensation.number, compensation.error), (2, Trouble::Refused(13)));
    let refunds = runtime.runs("refund");
    assert_eq!(refunds, 2 + 2, "the first payment is not given back");
}

/// Branches that share a saga, one of which fails while another runs.
#[flow]
async fn joined() -> Result<(), Trouble> {
    let paid = saga(async |saga| {
        let pays = async |amount: u32, saga: ergon::Saga<'static, Trouble>| {
            sleep(Duration::from_secs(u64::from(amount))).await;
            pay(amount).await?;
            saga.undo(move || refund(amount));
            Ok(())
        };
        tokio::try_join!(
            pays(30, saga.clone()),
            pays(100, saga.clone()),
            pays(20, saga.clone()),
            pays(13, saga.clone())
        )
    });
    paid.await.map(drop).map_err(|failed| match failed.compensation {
        Some(compensation) => compensation.error,
        None => failed.error,
    })
}

#[tokio::test]
async fn branches_are_undone_in_the_reverse_order_of_their_success() {
    let report = crash_everywhere(
        || setup(&works(true)),
        async |runtime| {
            let flow = runtime.scheduler().schedule(joined()).id("flow").await.unwrap();
            let error = runtime.result(&flow).await.unwrap_err();
            assert!(matches!(error, FlowError::Failed(Trouble::Refused(13))), "{error:?}");
            let records = flow.history().await.unwrap().records;
            records.into_iter().filter(|record| &*record.name == "refund").count()
        },
    );
    // Of 30 and 20, and in vain of 13.
    assert_eq!(report.await.result, 3);
}
