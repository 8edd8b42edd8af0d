//! Flows that begin again: each run once, with nothing lost and nothing doubled, whatever write a process dies at.

use std::collections::{BTreeMap, HashSet};

use ergon::{
    ErrorKind, FlowError, FlowState,
    prelude::*,
    random, run_number,
    storage::{CallKind, ExecutionLog},
    testing::{Setup, TestRuntime, crash_everywhere},
    uuid,
};

const NUMBERS: Mailbox<u32> = Mailbox::new("numbers");
const NOISE: Mailbox<u32> = Mailbox::new("noise");
const HOUR: Duration = Duration::from_secs(3600);

/// Adds up three numbers a run, one of them in a step, until there are as many as it wants.
#[flow_type]
struct Sum {
    numbers: Vec<u32>,
    wanted: usize,
}

#[flow_type]
impl Sum {
    #[flow]
    async fn run(&self) -> ergon::Result<(u32, Vec<u32>)> {
        let mut numbers = self.numbers.clone();
        for _ in 0..2 {
            numbers.push(NUMBERS.recv().await?);
        }
        numbers.push(self.take().await?);
        sleep(HOUR).await;
        self.note(numbers.len()).await?;
        if numbers.len() < self.wanted {
            return continue_as_new(Self { numbers, wanted: self.wanted }).await;
        }
        Ok((run_number(), numbers))
    }

    #[step]
    async fn take(&self) -> ergon::Result<u32> {
        NUMBERS.recv().await
    }

    #[step]
    async fn note(&self, numbers: usize) -> ergon::Result<usize> {
        Ok(numbers)
    }
}

#[tokio::test]
async fn runs_begin_once_and_lose_no_message() {
    let setup = || Setup::new().register::<Sum>();
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let sum = runtime.scheduler().schedule(Sum { numbers: Vec::new(), wanted: 9 }).id("sum").await.unwrap();
        for number in 1..=9 {
            sum.send(&NUMBERS, &number).await.unwrap();
        }
        runtime.result(&sum).await.unwrap()
    })
    .await;
    assert_eq!(report.result, (3, (1..=9).collect()));
    assert!(report.crashes > 10, "{report:?}");
    assert_eq!(report.body_runs_max["note"], 2, "a crash between the effect and its record, in each run by itself");
}

/// What was taken, and is in the mailbox still behind more than a claim carries, is not given to the next run.
#[tokio::test]
async fn what_a_run_has_taken_is_not_there_for_the_next() {
    let setup = || Setup::new().register::<Sum>();
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let sum = runtime.scheduler().schedule(Sum { numbers: Vec::new(), wanted: 6 }).id("sum").await.unwrap();
        for number in 0..150 {
            sum.send(&NOISE, &number).await.unwrap();
        }
        for number in 1..=6 {
            sum.send(&NUMBERS, &number).await.unwrap();
        }
        runtime.result(&sum).await.unwrap()
    })
    .await;
    assert_eq!(report.result, (2, (1..=6).collect()));
}

/// Counts down, a run for each number, with what must differ from run to run.
#[flow]
async fn countdown(left: u32, mut seen: Vec<String>) -> ergon::Result<Vec<String>> {
    seen.extend([random().to_string(), uuid().to_string(), idempotency_key()]);
    seen.push(key().await?);
    let ten = child(leaf(left)).start();
    seen.push(ten.id().to_string());
    assert_eq!(ten.await?, left);
    match left.checked_sub(1) {
        Some(left) => continue_as_new(countdown(left, seen)).await,
        None => Ok(seen),
    }
}

#[step]
async fn key() -> ergon::Result<String> {
    Ok(idempotency_key())
}

#[flow]
async fn leaf(number: u32) -> ergon::Result<u32> {
    Ok(number)
}

#[tokio::test]
async fn runs_share_no_keys_ids_or_random_numbers() {
    let setup = || Setup::new().register::<countdown>().register::<leaf>();
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let flow = runtime.scheduler().schedule(countdown(3, Vec::new())).id("ten").await.unwrap();
        runtime.result(&flow).await.unwrap()
    })
    .await;
    assert_eq!(report.result.len(), 20);
    assert_eq!(report.result.iter().collect::<HashSet<_>>().len(), 20, "{:?}", report.result);
    let children: Vec<_> = report.result.iter().skip(4).step_by(5).collect();
    assert_eq!(children, ["ten/2", "ten/2.2", "ten/3.2", "ten/4.2"]);
}

#[tokio::test]
async fn a_thousand_runs_leave_the_history_of_one() {
    #[flow]
    async fn tick(left: u32) -> ergon::Result<u32> {
        key().await?;
        if left > 1 { continue_as_new(tick(left - 1)).await } else { Ok(run_number()) }
    }
    let log = InMemoryExecutionLog::new();
    let worker = Worker::new(log.clone()).register::<tick>().start().await.unwrap();
    let scheduler = Scheduler::new(log.clone());
    let flow = scheduler.schedule(tick(1_000)).id("tick").await.unwrap();
    assert_eq!(flow.result().await.unwrap(), 1_000);
    let info = flow.status().await.unwrap();
    assert_eq!((info.run, info.records, info.epoch), (1_000, 1, 1_000));
    let timeline = flow.history().await.unwrap().to_string();
    assert!(timeline.starts_with("tick \"tick\" (version 1, run 1000): completed\n"), "{timeline}");
    assert!(timeline.contains("run 1000  {\"left\":1}"), "{timeline}");
    // Scheduling it again, as a process does that starts, finds it.
    let again = scheduler.schedule(tick(1_000)).id("tick").await.unwrap();
    assert!(again.existed());
    worker.shutdown().await;
}

#[tokio::test]
async fn an_executor_runs_all_runs() {
    #[flow]
    async fn tick(left: u32) -> ergon::Result<u32> {
        if left > 1 { continue_as_new(tick(left - 1)).await } else { Ok(run_number()) }
    }
    assert_eq!(Executor::new(InMemoryExecutionLog::new()).run(tick(5)).await.unwrap(), 5);
}

#[tokio::test]
async fn children_stay_with_the_flow_and_are_not_heard() {
    #[flow]
    async fn parent(round: u32) -> ergon::Result<u32> {
        // Started on the way out: it is accepted with the end of the run.
        let handle = child(waits(round)).id(format!("child-{round}")).start();
        if round < 3 {
            return continue_as_new(parent(round + 1)).await;
        }
        handle.await
    }
    #[flow]
    async fn waits(number: u32) -> ergon::Result<u32> {
        let _: () = signal("go").await?;
        Ok(number)
    }
    let runtime = Setup::new().register::<parent>().register::<waits>().start().await;
    let flow = runtime.scheduler().schedule(parent(1)).id("parent").await.unwrap();
    let log = runtime.log();
    let ids = ["child-1", "child-2", "child-3"].map(|id| FlowId::new(id).unwrap());
    runtime.idle().await;
    for id in &ids {
        runtime.scheduler().signal(id, "go", &()).await.unwrap();
    }
    assert_eq!(runtime.result(&flow).await.unwrap(), 3);
    for id in &ids {
        assert_eq!(log.flow(id).await.unwrap().unwrap().info.state, FlowState::Completed);
    }
}

#[tokio::test]
async fn another_type_is_refused() {
    #[flow]
    async fn one() -> ergon::Result<u32> {
        // It has the same result, which the compiler takes for the same type.
        continue_as_new(leaf(7)).await
    }
    let error = Executor::new(InMemoryExecutionLog::new()).run(one()).await.unwrap_err();
    let FlowError::Fault(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let expected = "the flow is of type \"one\" version 1 and cannot begin again as \"leaf\" version 1; give \
        continue_as_new() a value of its own type, or start the other flow as a child";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_step_cannot_begin_a_run() {
    #[flow]
    async fn wrong() -> ergon::Result<()> {
        begin().await
    }
    #[step(retry(max_attempts = 1))]
    async fn begin() -> ergon::Result<()> {
        continue_as_new(wrong()).await
    }
    let error = Executor::new(InMemoryExecutionLog::new()).run(wrong()).await.unwrap_err();
    assert!(error.to_string().contains("a flow begins again, not a step"), "{error}");
}

/// A run that ends while others of its branches are under way drops them.
#[tokio::test]
async fn branches_end_with_their_run() {
    #[flow]
    async fn branches(round: u32) -> ergon::Result<u32> {
        if round == 3 {
            return Ok(round);
        }
        let ends = async {
            key().await?;
            continue_as_new(branches(round + 1)).await
        };
        let goes_on = async {
            sleep(HOUR).await;
            let number: u32 = NUMBERS.recv().await?;
            Ok(number)
        };
        let (_, number) = tokio::try_join!(ends, goes_on)?;
        Ok(number)
    }
    let setup = || Setup::new().register::<branches>();
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let flow = runtime.scheduler().schedule(branches(1)).id("flow").await.unwrap();
        flow.send(&NUMBERS, &7).await.unwrap();
        runtime.result(&flow).await.unwrap()
    })
    .await;
    assert_eq!(report.result, 3);
}

/// A failed run is retried with its own value, and cancelling ends whatever run it is.
#[tokio::test]
async fn runs_are_retried_and_cancelled_as_flows_are() {
    #[flow]
    async fn fails(run: u32) -> ergon::Result<u32> {
        key().await?;
        if run < 3 {
            return continue_as_new(fails(run + 1)).await;
        }
        shaky().await
    }
    #[step(retry(max_attempts = 2, backoff = "1s"))]
    async fn shaky() -> ergon::Result<u32> {
        match *ergon::state::<std::sync::atomic::AtomicU32>() {
            ref tries if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 3 => {
                Err(ergon::Error::new("not yet"))
            }
            _ => Ok(run_number()),
        }
    }
    let state = std::sync::atomic::AtomicU32::new(0);
    let runtime = Setup::new().register::<fails>().with_state(state).start().await;
    let flow = runtime.scheduler().schedule(fails(1)).id("flow").await.unwrap();
    runtime.result(&flow).await.unwrap_err();
    flow.retry().await.unwrap();
    assert_eq!(runtime.result(&flow).await.unwrap(), 3);
    let calls: BTreeMap<_, u32> =
        flow.history().await.unwrap().calls().into_iter().fold(BTreeMap::new(), |mut all, call| {
            *all.entry((call.kind, call.name.to_string())).or_default() += 1;
            all
        });
    assert_eq!(calls[&(CallKind::Step, "key".to_owned())], 1, "the history is that of the last run");
}
