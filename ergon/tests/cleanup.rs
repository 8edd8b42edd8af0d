//! What a flow cleans up when it is cancelled, whatever happens to the process.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use ergon::{
    Admin, ErrorKind, FlowError, FlowHandle,
    admin::Cut,
    on_cancel,
    prelude::*,
    saga,
    storage::{CallKind, Cancelled, Cleanup, FlowState},
    testing::{Setup, TestRuntime, crash_everywhere},
};
use futures::{StreamExt, stream::FuturesUnordered};

const HOUR: Duration = Duration::from_secs(3_600);

/// A saga that stands before the scopes which it is used in.
async fn lodging(work: &Work) -> ergon::Result<String> {
    Ok(saga(async |saga| work.booking(saga, "").await).await?)
}

/// Does one thing or another, and then waits for a word that never comes.
#[flow_type]
#[derive(Clone, Debug)]
struct Work {
    how: String,
}

#[flow_type]
impl Work {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        match self.how.as_str() {
            "saga" => Ok(saga(async |saga| self.booking(saga, "").await).await?),
            "nested" => self.nested().await,
            "joined" => {
                let one = saga(async |saga| self.booking(saga, "one's ").await);
                let two = saga(async |saga| self.booking(saga, "two's ").await);
                let (one, two) = tokio::join!(one, two);
                Ok(one? + &two?)
            }
            "left" => self.left().await,
            "undoing" => self.undoing().await,
            "unpolled" => self.unpolled().await,
            "made before" => {
                let trip = saga(async |saga| self.booking(saga, "").await);
                Ok(on_cancel(trip, async |_| self.note("at last").await).await?)
            }
            "stands before" => {
                let all = saga(async |saga| {
                    saga.undo(|| self.note("at last"));
                    lodging(self).await
                });
                Ok(all.await?)
            }
            "over" => {
                let work = child(Self { how: "waits".into() }).start();
                on_cancel(signal::<String>("never"), async |_| work.await.map(drop)).await
            }
            "parent" => {
                let booked = saga(async |saga| {
                    let room = self.book("hall").await?;
                    saga.undo(move || self.release(room));
                    child(Self { how: "saga".into() }).id("child").await
                });
                Ok(booked.await?)
            }
            "waits" => signal("never").await,
            other => panic!("{other}?"),
        }
    }

    async fn booking<'a>(&'a self, saga: ergon::Saga<'a, ergon::Error>, whose: &str) -> ergon::Result<String> {
        let flight = self.book(&format!("{whose}flight")).await?;
        saga.undo(move || self.release(flight));
        let hotel = self.book(&format!("{whose}hotel")).await?;
        saga.undo(move || self.release(hotel));
        signal::<String>("never").await
    }

    async fn nested(&self) -> ergon::Result<String> {
        let outer = on_cancel(
            async {
                let inner = saga(async |saga| self.booking(saga, "").await);
                self.note("begins").await?;
                Ok(inner.await?)
            },
            async |reason| {
                // A saga within a clean-up is as any other.
                let tidy = saga(async |saga| {
                    self.note("tidies").await?;
                    saga.undo(|| self.note("untidies"));
                    Err::<(), _>(ergon::Error::permanent("as it is"))
                });
                assert!(tidy.await.is_err());
                self.note(&reason).await
            },
        );
        outer.await
    }

    /// Nothing is left to be cleaned up when it waits.
    async fn left(&self) -> ergon::Result<String> {
        on_cancel(self.note("done"), async |_| self.note("never").await).await?;
        {
            let dropped = on_cancel(sleep(HOUR), async |_| self.note("never").await);
            tokio::select! {
                () = dropped => {}
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
        signal("never").await
    }

    /// Is undone already when it is cancelled.
    async fn undoing(&self) -> ergon::Result<String> {
        let undone = saga(async |saga| {
            saga.undo(|| self.note("first"));
            saga.undo(async || {
                sleep(HOUR).await;
                self.note("second").await
            });
            Err::<String, _>(ergon::Error::permanent("it failed"))
        });
        Ok(undone.await?)
    }

    /// Holds what it does not poll.
    async fn unpolled(&self) -> ergon::Result<String> {
        let mut all = FuturesUnordered::new();
        let scope = |step| on_cancel(step, async |_| self.note("never").await);
        all.push(scope(self.note("done")));
        all.push(scope(self.stays()));
        all.next().await.expect("there are two")?;
        signal("never").await
    }

    #[step]
    async fn book(&self, what: &str) -> ergon::Result<String> {
        Ok(what.to_owned())
    }

    #[step(retry(max_attempts = 3, backoff = "1h"))]
    async fn release(&self, what: String) -> ergon::Result<()> {
        let works = state::<Arc<AtomicBool>>().load(Ordering::SeqCst);
        match attempt() {
            1 | 2 if what.ends_with("hotel") => Err(ergon::Error::new("later")),
            _ if what.ends_with("hotel") && !works => Err(ergon::Error::permanent("the hotel does not answer")),
            _ => Ok(()),
        }
    }

    #[step]
    async fn stays(&self) -> ergon::Result<()> {
        signal("never").await
    }

    #[step]
    async fn note(&self, text: &str) -> ergon::Result<()> {
        let _ = text;
        Ok(())
    }
}

/// Cleans up for longer than it may take.
#[flow(timeout = "10h")]
async fn late() -> ergon::Result<()> {
    on_cancel(sleep(100 * HOUR), async |reason| {
        note(&reason).await?;
        sleep(50 * HOUR).await;
        note("after a while").await
    })
    .await;
    Ok(())
}

#[step]
async fn note(text: &str) -> ergon::Result<()> {
    let _ = text;
    Ok(())
}

const WORDS: Mailbox<String> = Mailbox::new("words");

/// Asks for a word and then for it no more, but holds what it has asked with; takes it when it cleans up.
#[flow]
async fn holds() -> ergon::Result<()> {
    let mut word = pin!(WORDS.recv());
    on_cancel(
        async {
            let asked = poll_fn(|cx| Poll::Ready(word.as_mut().poll(cx).is_ready())).await;
            assert!(!asked, "there is none yet");
            signal("never").await
        },
        async |_| say(WORDS.recv_timeout(HOUR).await?).await,
    )
    .await
}

#[step]
async fn say(word: Option<String>) -> ergon::Result<String> {
    Ok(word.unwrap_or_default())
}

fn setup(works: bool) -> Setup {
    Setup::new().register::<Work>().register::<late>().register::<holds>().with_state(Arc::new(AtomicBool::new(works)))
}

type Handle = FlowHandle<String, ergon::Error>;

/// Schedules a flow and waits until it rests.
async fn resting(runtime: &TestRuntime, how: &str) -> Handle {
    let flow = runtime.scheduler().schedule(Work { how: how.into() }).id("flow").await.unwrap();
    runtime.idle().await;
    flow
}

/// What the flow has called, with what became of it and its arguments where these are told.
async fn calls<T, E>(flow: &FlowHandle<T, E>) -> Vec<String> {
    let history = flow.history().await.unwrap();
    let cancelled = history.records.iter().find(|record| record.kind == CallKind::Cancel).map(|record| record.seq);
    let calls = history.calls().into_iter().filter(|call| call.kind == CallKind::Step);
    calls
        .map(|call| {
            let last = history.records.iter().rev().find(|record| record.path == call.path).unwrap();
            let after = if cancelled.is_some_and(|seq| last.seq > seq) { "then " } else { "" };
            format!("{after}{}: {:?}", call.name, call.phase)
        })
        .collect()
}

/// Cancels a flow that rests, and comes to its end.
async fn cancelled(runtime: &TestRuntime, how: &str) -> (String, Vec<String>) {
    let flow = resting(runtime, how).await;
    assert_eq!(flow.cancel("no more").await.unwrap(), Cancelled::Now);
    let error = runtime.result(&flow).await.unwrap_err().to_string();
    (error, calls(&flow).await)
}

const CANCELLED: &str = "the flow was cancelled: no more";

#[tokio::test]
async fn a_saga_is_undone_when_its_flow_is_cancelled() {
    let report = crash_everywhere(|| setup(true), async |runtime| cancelled(runtime, "saga").await).await;
    let (error, calls) = report.result;
    assert_eq!(error, CANCELLED);
    assert_eq!(
        calls,
        ["book: Completed", "book: Completed", "then release: Completed", "then release: Completed"],
        "the hotel, in three attempts, and then the flight"
    );
    assert!(report.crashes >= 16, "{}", report.crashes);
    // A crash between the beginning of a body and its record.
    assert!(report.body_runs_max.values().all(|runs| *runs <= 2));
}

#[tokio::test]
async fn scopes_clean_up_last_first() {
    let report = crash_everywhere(|| setup(true), async |runtime| cancelled(runtime, "nested").await).await;
    assert_eq!(report.result.0, CANCELLED);
    assert_eq!(
        report.result.1,
        [
            "note: Completed",
            "book: Completed",
            "book: Completed",
            "then release: Completed",
            "then release: Completed",
            "then note: Completed",
            "then note: Completed",
            "then note: Completed"
        ]
    );
    // Wherever they stand in the source: what is within another is opened after it.
    for how in ["made before", "stands before"] {
        let report = crash_everywhere(|| setup(true), async |runtime| cancelled(runtime, how).await).await;
        assert_eq!(report.result.0, CANCELLED);
        assert_eq!(
            report.result.1,
            [
                "book: Completed",
                "book: Completed",
                "then release: Completed",
                "then release: Completed",
                "then note: Completed"
            ],
            "{how}"
        );
    }
    let report = crash_everywhere(|| setup(true), async |runtime| cancelled(runtime, "joined").await).await;
    assert_eq!(report.result.0, CANCELLED);
    assert_eq!(report.result.1.iter().filter(|call| *call == "then release: Completed").count(), 4);
}

#[tokio::test]
async fn what_is_left_has_nothing_to_clean_up() {
    let report = crash_everywhere(
        || setup(true),
        async |runtime| {
            let flow = resting(runtime, "left").await;
            runtime.advance(Duration::from_secs(1)).await;
            flow.cancel("no more").await.unwrap();
            (runtime.result(&flow).await.unwrap_err().to_string(), calls(&flow).await)
        },
    );
    assert_eq!(report.await.result, (CANCELLED.to_owned(), vec!["note: Completed".to_owned()]));
}

#[tokio::test]
async fn a_flow_with_nothing_to_clean_up_ends_at_once() {
    let runtime = setup(true).start().await;
    let flow = resting(&runtime, "waits").await;
    flow.cancel("no more").await.unwrap();
    let history = flow.history().await.unwrap();
    assert_eq!((history.info.state, history.info.cleanup), (FlowState::Cancelled, Cleanup::None));
    assert!(history.records.iter().all(|record| record.kind != CallKind::Cancel));
}

#[tokio::test]
async fn what_undoes_already_is_not_interrupted() {
    let report = crash_everywhere(|| setup(true), async |runtime| cancelled(runtime, "undoing").await).await;
    assert_eq!(report.result.0, CANCELLED);
    assert_eq!(report.result.1, ["then note: Completed", "then note: Completed"]);
}

/// The cancellation has ended the wait that the message was handed to.
#[tokio::test]
async fn a_message_that_was_not_taken_is_there_for_the_clean_up() {
    let report = crash_everywhere(
        || setup(true),
        async |runtime| {
            let flow = runtime.scheduler().schedule(holds()).id("flow").await.unwrap();
            runtime.idle().await;
            flow.send_once(&WORDS, &"farewell".to_owned(), "k").await.unwrap();
            runtime.idle().await;
            flow.cancel("no more").await.unwrap();
            let error = runtime.result(&flow).await.unwrap_err().to_string();
            let said = flow.history().await.unwrap().records.into_iter().rfind(|record| &*record.name == "say");
            (error, String::from_utf8(said.unwrap().payload.to_vec()).unwrap())
        },
    );
    assert_eq!(report.await.result, (CANCELLED.to_owned(), "\"farewell\"".to_owned()));
}

#[tokio::test]
async fn a_time_limit_is_followed_by_the_clean_up_too() {
    let report = crash_everywhere(
        || setup(true),
        async |runtime| {
            let flow = runtime.scheduler().schedule(late()).id("flow").await.unwrap();
            let begun = runtime.now();
            let error = runtime.result(&flow).await.unwrap_err();
            let FlowError::Fault(error) = error else { panic!("{error:?}") };
            let took = runtime.now().since(begun);
            // It has cleaned up, and that is not taken back.
            flow.retry().await.unwrap();
            let again = runtime.result(&flow).await.unwrap_err().to_string();
            (error.kind(), error.to_string(), again, took.as_secs() / 3_600, calls(&flow).await)
        },
    );
    let (kind, error, again, hours, calls) = report.await.result;
    assert_eq!((kind, error.as_str()), (ErrorKind::Timeout, "the flow exceeded its time limit"));
    assert_eq!(again, "the flow failed: the flow exceeded its time limit");
    assert_eq!((hours, calls), (60, vec!["then note: Completed".to_owned(); 2]));
}

#[tokio::test]
async fn a_clean_up_that_fails_goes_on_when_it_is_retried() {
    let works = Arc::new(AtomicBool::new(false));
    let report = crash_everywhere(
        || Setup::new().register::<Work>().with_state(Arc::clone(&works)),
        async |runtime| {
            works.store(false, Ordering::SeqCst);
            let flow = resting(runtime, "saga").await;
            flow.cancel("no more").await.unwrap();
            let error = runtime.result(&flow).await.unwrap_err();
            let FlowError::Fault(fault) = &error else { panic!("{error:?}") };
            assert_eq!(fault.kind(), ErrorKind::Cleanup);
            let attention =
                Admin::new(Arc::clone(runtime.log())).attention(&ergon::Filter::all(), None, 10).await.unwrap();
            assert_eq!(attention.flows.len(), 1);
            assert_eq!(flow.cancel("again").await.unwrap(), Cancelled::Already(FlowState::Failed));
            let failed = (error.to_string(), attention.to_string());
            works.store(true, Ordering::SeqCst);
            flow.retry().await.unwrap();
            let error = runtime.result(&flow).await.unwrap_err().to_string();
            (failed, error, calls(&flow).await)
        },
    );
    let ((failed, attention), error, calls) = report.await.result;
    for text in [&failed, &attention] {
        assert!(
            text.contains("the flow was cancelled: no more; its clean-up failed: compensation 2 of the saga"),
            "{text}"
        );
        assert!(text.contains("cleanup.rs:") && text.contains("the hotel does not answer"), "{text}");
    }
    assert_eq!(error, CANCELLED);
    assert_eq!(calls[2..], ["then release: Completed", "then release: Completed"]);
}

#[tokio::test]
async fn a_scope_that_is_not_polled_is_named() {
    let runtime = setup(true).start().await;
    let (error, calls) = cancelled(&runtime, "unpolled").await;
    assert!(
        error.starts_with("the flow failed: the flow was cancelled: no more; its clean-up failed: the scope at"),
        "{error}"
    );
    assert!(error.contains("cleanup.rs:") && error.contains("is no longer polled"), "{error}");
    assert_eq!(calls, ["note: Completed"]);
}

#[tokio::test]
async fn a_clean_up_that_awaits_what_was_ended_is_told_so() {
    let runtime = setup(true).start().await;
    let (error, _) = cancelled(&runtime, "over").await;
    assert!(error.contains("its clean-up failed: the scope at") && error.contains("cleanup.rs:"), "{error}");
    assert!(error.contains("waits for child \"Work\"") && error.contains("which that has ended"), "{error}");
}

#[tokio::test]
async fn children_clean_up_with_their_parent() {
    let report = crash_everywhere(
        || setup(true),
        async |runtime| {
            let flow = resting(runtime, "parent").await;
            flow.cancel("no more").await.unwrap();
            let child: Handle = runtime.scheduler().handle::<Work>(FlowId::new("child").unwrap());
            let ends = (
                runtime.result(&flow).await.unwrap_err().to_string(),
                runtime.result(&child).await.unwrap_err().to_string(),
            );
            (ends, calls(&flow).await, calls(&child).await)
        },
    );
    let ((parent, child), of_parent, of_child) = report.await.result;
    assert_eq!((parent.as_str(), child.as_str()), (CANCELLED, CANCELLED));
    assert_eq!(of_parent, ["book: Completed", "then release: Completed"]);
    assert_eq!(of_child[2..], ["then release: Completed", "then release: Completed"]);
}

#[tokio::test]
async fn people_see_it_and_take_it_back() {
    let runtime = setup(true).start().await;
    let admin = Admin::new(Arc::clone(runtime.log()));
    let flow = resting(&runtime, "saga").await;
    flow.cancel("no more").await.unwrap();
    assert_eq!(flow.cancel("again").await.unwrap(), Cancelled::Already(FlowState::Cancelled));
    // The hotel does not answer yet.
    runtime.idle().await;
    let text = admin.describe(flow.id()).await.unwrap().to_string();
    assert!(text.starts_with("Work \"flow\" (version 1): suspended, cancelling\n"), "{text}");
    assert!(text.contains("cancel   cancelled, and cleans up: no more"), "{text}");
    assert!(text.contains("for attempt 2 of step \"release\"") && !text.contains("for the signal"), "{text}");

    // The clean-up is neither a place to cut at, nor taken over.
    let release = admin.reset(flow.id(), Cut::first("release")).await.unwrap_err().to_string();
    assert!(release.contains("a part of the clean-up after its cancellation"), "{release}");
    for nothing in [Cut::call("0").unwrap(), Cut::first("cancelled"), Cut::first("cancel")] {
        let refused = admin.reset(flow.id(), nothing).await.unwrap_err();
        assert_eq!(refused.kind(), ergon::storage::ErrorKind::NotFound, "{refused}");
    }
    let fork = admin.fork(flow.id()).id("fork").await.unwrap();
    let fork: Handle = runtime.scheduler().handle::<Work>(fork);
    let forked = fork.history().await.unwrap();
    assert_eq!((forked.info.cleanup, forked.info.is_cleaning_up()), (Cleanup::Needed, false));
    assert!(forked.records.iter().all(|record| record.kind != CallKind::Cancel));
    runtime.idle().await;
    fork.signal("never", &"after all").await.unwrap();
    assert_eq!(runtime.result(&fork).await.unwrap(), "after all");

    admin.reset(flow.id(), Cut::End).await.unwrap();
    runtime.idle().await;
    flow.signal("never", &"after all").await.unwrap();
    assert_eq!(runtime.result(&flow).await.unwrap(), "after all");
}

#[tokio::test]
async fn a_flow_is_given_up_without_its_clean_up() {
    let runtime = setup(true).start().await;
    let admin = Admin::new(Arc::clone(runtime.log()));
    let flow = resting(&runtime, "saga").await;
    flow.cancel("no more").await.unwrap();
    runtime.idle().await;
    assert_eq!(admin.abandon(flow.id(), "the hotel is gone").await.unwrap(), Cancelled::Now);
    let error = runtime.result(&flow).await.unwrap_err();
    assert_eq!(error.to_string(), "the flow was cancelled: the hotel is gone");
    assert_eq!(admin.abandon(flow.id(), "").await.unwrap(), Cancelled::Already(FlowState::Cancelled));
}

#[tokio::test]
async fn histories_with_a_clean_up_are_replayed() {
    let runtime = setup(true).start().await;
    for how in ["saga", "nested", "joined", "undoing"] {
        let flow = resting(&runtime, how).await;
        flow.cancel("no more").await.unwrap();
        runtime.idle().await;
        setup(true).replay::<Work>(&flow.history().await.unwrap()).unwrap();
        runtime.result(&flow).await.unwrap_err();
        let history = flow.history().await.unwrap();
        setup(true).replay::<Work>(&history).unwrap();
        let other = ergon::History { input: r#"{"how":"waits"}"#.into(), ..history };
        assert!(setup(true).replay::<Work>(&other).is_err(), "{how}");
        assert!(runtime.log().delete(flow.id()).await.unwrap());
    }
}
