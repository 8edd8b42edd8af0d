//! What flows tell of themselves: once, in order, and while they run.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use ergon::{
    ErrorKind, StreamItem,
    prelude::*,
    testing::{Setup, TestRuntime, crash_everywhere},
};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;

const HOUR: Duration = Duration::from_secs(3600);

/// Tells from its own code and from its steps, side by side, over a wait and into another run.
#[flow]
async fn report(round: u32) -> ergon::Result<u32> {
    set_status(&format!("round {round}"))?;
    emit("lines", &format!("{round}: begins"))?;
    let (first, second) = tokio::try_join!(page(round, 1), page(round, 2))?;
    emit("lines", &format!("{round}: has {}", first + second))?;
    sleep(HOUR).await;
    emit("lines", &format!("{round}: ends"))?;
    if round < 2 {
        return continue_as_new(report(round + 1)).await;
    }
    set_status("done")?;
    Ok(round)
}

#[step]
async fn page(round: u32, number: u32) -> ergon::Result<u32> {
    emit("pages", &(round, number, "a"))?;
    emit("pages", &(round, number, "b"))?;
    Ok(number)
}

#[tokio::test]
async fn what_a_flow_tells_comes_once_whatever_write_it_dies_at() {
    let setup = || Setup::new().register::<report>();
    let told = async |runtime: &TestRuntime| {
        let flow = runtime.scheduler().schedule(report(1)).id("report").await.unwrap();
        runtime.result(&flow).await.unwrap();
        let lines: Vec<StreamItem<String>> = flow.stream("lines").try_collect().await.unwrap();
        assert!(lines.iter().map(|line| line.offset).eq(1..=lines.len().try_into().unwrap()), "{lines:?}");
        assert!(lines.iter().all(|line| line.source.call.is_none()), "{lines:?}");
        // What bodies that started again have told is told apart by its source: the last one of each call counts.
        let pages: Vec<StreamItem<(u32, u32, String)>> = flow.stream("pages").try_collect().await.unwrap();
        let is_last = |page: &StreamItem<_>| {
            let same = |other: &&StreamItem<(u32, u32, String)>| {
                (other.source.run, &other.source.call) == (page.source.run, &page.source.call)
            };
            pages.iter().rfind(same).is_some_and(|last| last.source == page.source)
        };
        let mut last: Vec<_> = pages.iter().filter(|page| is_last(page)).map(|page| page.value.clone()).collect();
        last.sort();
        let status = flow.status_value::<String>().await.unwrap().unwrap();
        (lines.into_iter().map(|line| line.value).collect::<Vec<_>>(), last, status.value, status.version)
    };
    let report = crash_everywhere(setup, told).await;
    let (lines, pages, status, version) = report.result;
    assert_eq!(lines, ["1: begins", "1: has 3", "1: ends", "2: begins", "2: has 3", "2: ends"]);
    let page = |round, number| ["a", "b"].map(|half| (round, number, half.to_owned()));
    assert_eq!(pages, [page(1, 1), page(1, 2), page(2, 1), page(2, 2)].concat());
    assert_eq!((status.as_str(), version), ("done", 3));
    assert!(report.crashes > 10, "{}", report.crashes);
}

/// Generates tokens one by one, each when it is let.
#[flow]
async fn answer() -> ergon::Result<u32> {
    generate().await?;
    Ok(generate_blocking().await? + 1)
}

#[step]
async fn generate() -> ergon::Result<()> {
    for token in 1..=3 {
        emit("tokens", &token)?;
        set_status(&token)?;
        ergon::state::<Arc<Semaphore>>().acquire().await?.forget();
    }
    Ok(())
}

#[step(blocking)]
fn generate_blocking() -> ergon::Result<u32> {
    for token in 4..=6 {
        emit("tokens", &token)?;
        while ergon::state::<Arc<Semaphore>>().try_acquire().map(tokio::sync::SemaphorePermit::forget).is_err() {
            std::thread::yield_now();
        }
    }
    Ok(6)
}

/// Items become visible while the body that emits them still runs, and clients are woken for them.
#[tokio::test(flavor = "multi_thread")]
async fn items_are_seen_while_the_body_runs() {
    let log = InMemoryExecutionLog::new();
    let permits = Arc::new(Semaphore::new(0));
    let worker = Worker::new(log.clone()).register::<answer>().with_state(Arc::clone(&permits)).start().await.unwrap();
    let flow = Scheduler::new(log).schedule(answer()).await.unwrap();
    let (mut tokens, mut status) = (flow.stream::<u32>("tokens"), flow.watch_status::<u32>());
    for number in 1..=6 {
        // Before this one was seen, the body does not go on.
        let token = tokens.next().await.unwrap().unwrap();
        assert_eq!((token.value, token.offset, token.source.attempt), (number, number, 1));
        if number <= 3 {
            let status = status.next().await.unwrap().unwrap();
            assert_eq!((status.value, status.version), (number, number));
        }
        assert!(flow.try_result().await.unwrap().is_none());
        permits.add_permits(1);
    }
    assert_eq!(flow.result().await.unwrap(), 7);
    assert!(tokens.next().await.is_none() && status.next().await.is_none(), "they end with the flow");
    worker.shutdown().await;
}

/// A flow that failed and is retried tells what is new since its failure.
#[tokio::test]
async fn a_retried_flow_tells_on() {
    #[flow]
    async fn fails() -> ergon::Result<()> {
        emit("lines", "begins")?;
        match shaky().await {
            Ok(()) => emit("lines", "went well"),
            Err(error) => {
                emit("lines", "went wrong")?;
                Err(error)
            }
        }
    }
    #[step(retry(max_attempts = 1))]
    async fn shaky() -> ergon::Result<()> {
        match ergon::state::<AtomicU32>().fetch_add(1, Ordering::Relaxed) {
            0 => Err(ergon::Error::new("not yet")),
            _ => Ok(()),
        }
    }
    let runtime = Setup::new().register::<fails>().with_state(AtomicU32::new(0)).start().await;
    let flow = runtime.scheduler().schedule(fails()).await.unwrap();
    runtime.result(&flow).await.unwrap_err();
    flow.retry().await.unwrap();
    runtime.result(&flow).await.unwrap();
    let lines: Vec<_> = flow.stream::<String>("lines").map_ok(|line| line.value).try_collect().await.unwrap();
    assert_eq!(lines, ["begins", "went wrong", "went well"]);
}

/// A client that comes back goes on after the last item that it saw, and ends with the flow.
#[tokio::test]
async fn streams_are_resumed_by_their_offsets() {
    #[flow]
    async fn counts() -> ergon::Result<()> {
        for number in 1..=1_200 {
            emit("numbers", &number)?;
        }
        Ok(())
    }
    let log = InMemoryExecutionLog::new();
    let flow = Scheduler::new(log.clone()).schedule(counts()).await.unwrap();
    let follow = tokio::spawn(flow.stream::<u32>("numbers").try_collect::<Vec<_>>());
    let worker = Worker::new(log).register::<counts>().start().await.unwrap();
    flow.result().await.unwrap();
    let all = follow.await.unwrap().unwrap();
    assert!(all.iter().map(|item| item.value).eq(1..=1_200));
    let rest: Vec<_> = flow.stream::<u32>("numbers").after(all[999].offset).try_collect().await.unwrap();
    assert_eq!(rest, all[1_000..]);
    let unreadable = flow.stream::<String>("numbers").next().await.unwrap().unwrap_err();
    assert_eq!(unreadable.kind(), ergon::storage::ErrorKind::Corrupt);
    assert!(flow.watch_status::<u32>().next().await.is_none(), "nothing was said");
    worker.shutdown().await;
}

#[tokio::test]
async fn names_and_values_that_cannot_be_are_errors() {
    #[flow]
    async fn wrong() -> ergon::Result<Vec<String>> {
        let names = [String::new(), "x".repeat(ergon::STREAM_NAME_BYTES_MAX + 1)];
        let refused = names.map(|name| emit(&name, &1).unwrap_err());
        assert!(refused.iter().all(|error| error.kind() == ErrorKind::Invalid));
        let huge = set_status(&"x".repeat(17 << 20)).unwrap_err();
        emit(&"x".repeat(ergon::STREAM_NAME_BYTES_MAX), &1)?;
        Ok(refused.iter().chain([&huge]).map(ToString::to_string).collect())
    }
    let told = Executor::new(InMemoryExecutionLog::new()).run(wrong()).await.unwrap();
    assert_eq!(told[0], "a stream's name has 1 to 248 bytes, this one has 0");
    assert!(told[2].starts_with("the status takes"), "{}", told[2]);
}
