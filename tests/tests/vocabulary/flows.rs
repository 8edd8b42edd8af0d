//! Flows that use everything that goes through the log. Their steps note that they run, as `FLOW LABEL`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ergon::{
    ErrorKind, FlowRef, SessionLost, Takeover, first_ok, heartbeat, last_heartbeat, map_concurrent, on_cancel, patched,
    prelude::*, remove_label, run_number, saga, send_once, session_with, set_label, storage::Clock, timeout,
    try_map_concurrent,
};
use ergon_tests::{TestClock, note};

pub(crate) const NUMBERS: Mailbox<u32> = Mailbox::new("numbers");
pub(crate) const WORDS: Mailbox<String> = Mailbox::new("words");
const SECOND: Duration = Duration::from_secs(1);
/// Longer than all leases of one run.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// What a worker tells its flows.
pub(crate) struct Here {
    /// Its name.
    pub(crate) worker: &'static str,
    /// The build of its code.
    pub(crate) build: u32,
}

/// Whether a step works again.
#[derive(Clone, Default)]
pub(crate) struct Mended(pub(crate) Arc<AtomicBool>);

fn ran(label: &str) {
    note(format!("{} {label}", flow_id()));
}

#[step]
async fn work(label: &str) -> ergon::Result<String> {
    ran(label);
    Ok(label.into())
}

/// Says so, and waits until nothing else is to be done.
async fn waits_for_ever() -> ergon::Result<()> {
    set_status("waiting")?;
    signal("never").await
}

// ---- runs, mailboxes, progress ---------------------------------------------------------------------------------

/// Adds a number in each run, and tells the sum to a flow that the first run has started.
#[flow(affinity(prefer = "5s"))]
pub(crate) async fn rounds(sum: u32, listener: Option<FlowRef<listens>>) -> ergon::Result<String> {
    let listener = match listener {
        Some(listener) => listener,
        None => FlowRef::new(child(listens()).id(format!("{}-listener", flow_id())).start_detached().await?),
    };
    let number = NUMBERS.recv().await?;
    work(&format!("add {number}")).await?;
    let sum = sum + number;
    if run_number() < 3 {
        return continue_as_new(rounds(sum, Some(listener))).await;
    }
    send(&listener, &NUMBERS, &sum).await?;
    Ok(format!("{sum} in run {}", run_number()))
}

#[flow]
pub(crate) async fn listens() -> ergon::Result<String> {
    let heard = NUMBERS.recv().await?;
    work(&format!("hear {heard}")).await
}

/// Takes messages in all ways, and exchanges some with a child.
#[flow]
pub(crate) async fn post() -> ergon::Result<String> {
    signal::<()>("go").await?;
    let first = WORDS.recv().await?;
    let second = WORDS.recv_timeout(DAY).await?;
    let third = WORDS.try_recv().await?;
    let none = WORDS.recv_timeout(SECOND).await?;
    work("taken").await?;
    let echo = child(echoes(FlowRef::new(flow_id()))).start();
    send(echo.id(), &WORDS, &first).await?;
    send_once(echo.id(), &WORDS, &"once".into(), "k").await?;
    send_once(echo.id(), &WORDS, &"twice".into(), "k").await?;
    send(echo.id(), &WORDS, &"end".into()).await?;
    let heard = echo.await?;
    let answer = WORDS.recv().await?;
    let raced = tokio::select! {
        biased;
        () = sleep(SECOND) => None,
        word = WORDS.recv() => Some(word?),
    };
    work("answered").await?;
    set_status("waiting")?;
    let last = WORDS.recv().await?;
    Ok(format!("{first} {second:?} {third:?} {none:?}, {heard}, {answer}, {raced:?} {last}"))
}

/// Answers from a step when it has heard the end.
#[flow]
pub(crate) async fn echoes(to: FlowRef<post>) -> ergon::Result<String> {
    let mut heard = Vec::new();
    loop {
        match WORDS.recv().await?.as_str() {
            "end" => break,
            word => heard.push(word.to_owned()),
        }
    }
    answer(to).await?;
    Ok(heard.join("+"))
}

#[step]
async fn answer(to: FlowRef<post>) -> ergon::Result<()> {
    ran("answer");
    send(&to, &WORDS, &"answer".into()).await?;
    Ok(())
}

/// Says what it is at, and emits as it goes.
#[flow]
pub(crate) async fn tells() -> ergon::Result<String> {
    for line in 1..=3 {
        set_status(&format!("line {line}"))?;
        ergon::emit("lines", &line)?;
        work(&line.to_string()).await?;
        sleep(SECOND).await;
        ergon::emit("lines", &(line * 10))?;
    }
    set_status("told")?;
    Ok("done".into())
}

// ---- races, limits, undoing ------------------------------------------------------------------------------------

/// Several at once, the first that succeeds, and blocks with time limits.
#[flow]
pub(crate) async fn together() -> ergon::Result<String> {
    let squares = map_concurrent(1..=4, 2, square).await.into_iter().collect::<ergon::Result<Vec<_>>>()?;
    let fails = try_map_concurrent(1..=4, 1, |number| odd(number)).await.unwrap_err();
    let first = first_ok([refuses("left"), refuses("middle"), work("right")]).await.map_err(|mut all| all.remove(0))?;
    let late = timeout(SECOND, signal::<()>("never")).await.unwrap_err();
    let in_time = timeout(DAY, async {
        work("quick").await?;
        sleep(SECOND).await;
        work("enough").await
    });
    let in_time = in_time.await??;
    Ok(format!("{squares:?}, {fails}, {first}, {:?}, {in_time}", late.kind()))
}

#[step]
async fn square(number: u32) -> ergon::Result<u32> {
    ran(&format!("square {number}"));
    Ok(number * number)
}

#[step(retry = none)]
async fn odd(number: u32) -> ergon::Result<u32> {
    ran(&format!("odd {number}"));
    if number % 2 == 1 { Ok(number) } else { Err(ergon::Error::new(format!("{number} is even"))) }
}

#[step(retry = none)]
async fn refuses(label: &str) -> ergon::Result<String> {
    ran(label);
    Err(ergon::Error::new("no"))
}

/// Reserves, pays, and waits; undone when it is cancelled.
#[flow]
pub(crate) async fn undone() -> ergon::Result<String> {
    let watched = on_cancel(
        async {
            let trip = saga(async |saga| {
                work("reserve").await?;
                saga.undo(|| work("release"));
                work("pay").await?;
                saga.undo(|| work("refund"));
                waits_for_ever().await
            });
            trip.await.map_err(ergon::SagaError::into_error)
        },
        async |reason| work(&reason).await,
    );
    watched.await?;
    Ok("never".into())
}

/// The same for one whose rest fails, and which goes on with the error.
#[flow]
pub(crate) async fn gives_up() -> ergon::Result<String> {
    let trip = saga(async |saga| {
        work("reserve").await?;
        saga.undo(|| work("release"));
        work("pay").await?;
        saga.undo(|| work("refund"));
        refuses("deliver").await
    });
    let error = trip.await.unwrap_err();
    work("apologise").await?;
    Ok(error.into_error().to_string())
}

/// Exceeds its time limit, and cleans up.
#[flow(timeout = "10h")]
pub(crate) async fn limited() -> ergon::Result<String> {
    let trip = saga(async |saga| {
        work("reserve").await?;
        saga.undo(|| work("release"));
        waits_for_ever().await
    });
    trip.await?;
    Ok("never".into())
}

// ---- long and careful steps ------------------------------------------------------------------------------------

/// A step that tells how far it has come.
#[flow]
pub(crate) async fn reads() -> ergon::Result<String> {
    let pages = pages().await?;
    work("read").await?;
    Ok(pages.to_string())
}

#[step(heartbeat_timeout = "10m")]
async fn pages() -> ergon::Result<u32> {
    let clock = state::<TestClock>();
    let begun: u32 = last_heartbeat()?.unwrap_or(0);
    for page in begun + 1..=5 {
        ran(&format!("page {page}"));
        clock.sleep_until(clock.now().saturating_add(SECOND * 2)).await;
        heartbeat(&page)?;
    }
    Ok(5)
}

/// A payment that is not repeated: whoever does not know asks.
#[flow]
pub(crate) async fn pays() -> ergon::Result<String> {
    work("cart").await?;
    let paid = match pay().await {
        Err(error) if error.kind() == ErrorKind::UnknownOutcome => work("ask").await?,
        paid => paid?,
    };
    work("ship").await?;
    Ok(paid)
}

#[step(at_most_once)]
async fn pay() -> ergon::Result<String> {
    ran("pay");
    Ok("pay".into())
}

// ---- where it runs, and by which code --------------------------------------------------------------------------

/// A session that is begun again when it is lost. Notes where each step ran.
#[flow]
pub(crate) async fn converts() -> ergon::Result<String> {
    let mut places = Vec::new();
    loop {
        let file = session_with(Takeover::After(SECOND * 300), async || {
            here("load").await?;
            sleep(SECOND).await;
            here("convert").await?;
            here("store").await
        });
        match file.await {
            Ok(stored) => {
                places.push(stored?);
                sleep(SECOND).await;
                here("report").await?;
                return Ok(places.join(", "));
            }
            Err(SessionLost { worker, by, .. }) => places.push(format!("{worker} to {by}")),
        }
    }
}

#[step]
async fn here(label: &str) -> ergon::Result<String> {
    let worker = state::<Here>().worker;
    ran(&format!("{label} on {worker}"));
    Ok(worker.into())
}

/// What has another way in build 2.
#[flow]
pub(crate) async fn changes() -> ergon::Result<String> {
    work("begin").await?;
    let way = if state::<Here>().build > 1 && patched("another way") { "new" } else { "old" };
    let way = work(way).await?;
    work("end").await?;
    Ok(way)
}

// ---- families and repair ---------------------------------------------------------------------------------------

/// Children, labels, signals, timers, and what must be the same in every life.
#[flow]
pub(crate) async fn family() -> ergon::Result<String> {
    set_label("stage", "begun");
    set_label("draft", "yes");
    let begun = ergon::now();
    let drawn = (ergon::random(), ergon::uuid());
    let eldest = child(greets("eldest".into(), None)).label("of", "family").priority(3).start();
    let elder = eldest.flow();
    let eldest = eldest.await?;
    set_label("stage", "grown");
    remove_label("draft");
    let early: String = signal("early").await?;
    schedule_timer_named("nap", SECOND).await;
    sleep_until(begun.saturating_add(SECOND * 5)).await;
    let youngest = child(greets(early, Some(elder))).delay(SECOND).await?;
    let late: Option<String> = signal("late").timeout(SECOND).await?;
    // Had it drawn others before a crash, the call would not be the one that is recorded.
    keep(&format!("{drawn:?}")).await?;
    work("end").await?;
    Ok(format!("{eldest}, {youngest}, {late:?}"))
}

#[step]
async fn keep(drawn: &str) -> ergon::Result<String> {
    ran("keep");
    Ok(drawn.into())
}

#[flow]
pub(crate) async fn greets(name: String, elder: Option<FlowRef<greets>>) -> ergon::Result<String> {
    work(&name).await?;
    sleep(SECOND).await;
    Ok(match elder {
        Some(elder) => format!("{name} after {}", elder.id().as_str().rsplit('/').next().unwrap_or_default()),
        None => name,
    })
}

/// Fails in the middle until somebody mends what is broken.
#[flow]
pub(crate) async fn breaks() -> ergon::Result<String> {
    work("a").await?;
    fragile().await?;
    sleep(SECOND).await;
    work("z").await
}

#[step(retry = none)]
async fn fragile() -> ergon::Result<()> {
    ran("fragile");
    if state::<Mended>().0.load(Ordering::Acquire) { Ok(()) } else { Err(ergon::Error::new("broken")) }
}
