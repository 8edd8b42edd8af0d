//! The spans of a flow are in one trace, whoever runs it.

use std::{collections::HashSet, time::Duration};

use ergon::{
    Filter, FlowHandle,
    prelude::*,
    storage::{ExecutionLog, FlowState, ManualClock},
};
use ergon_tests::{FaultyLog, Gate, Place, Trace, note, soon, state_of, until};
use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

ergon_tests::both!(
    two_workers_and_a_child_share_a_trace,
    a_takeover_after_a_crash_goes_on_with_the_trace,
    a_flow_without_a_traceparent_has_one_trace,
    a_traceparent_can_be_given,
    a_traceparent_is_inherited_by_children,
    an_executor_joins_the_trace,
);

/// Listens to the spans of this thread.
struct Listener {
    exporter: InMemorySpanExporter,
    provider: SdkTracerProvider,
    _guard: DefaultGuard,
}

impl Listener {
    fn new() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let guard = tracing_subscriber::registry().with(LevelFilter::INFO).with(layer).set_default();
        Self { exporter, provider, _guard: guard }
    }

    fn spans(&self) -> Vec<SpanData> {
        self.provider.force_flush().unwrap();
        self.exporter.get_finished_spans().unwrap()
    }
}

fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> Vec<&'a SpanData> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// The one trace of all these spans.
#[track_caller]
fn trace(spans: &[SpanData]) -> TraceId {
    let traces: HashSet<_> = spans.iter().map(|span| span.span_context.trace_id()).collect();
    assert_eq!(traces.len(), 1, "{spans:#?}");
    traces.into_iter().next().unwrap()
}

#[flow_type(name = "Parent")]
struct Parent {}

#[flow_type]
impl Parent {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        let one = before().await?;
        let go: u32 = signal("go").await?;
        let two = child(small(go)).await?;
        Ok(one + two)
    }
}

#[step]
async fn before() -> ergon::Result<u32> {
    tracing::info_span!("request").in_scope(|| Ok(1))
}

#[flow]
async fn small(number: u32) -> ergon::Result<u32> {
    after(number).await
}

#[step(retry(max_attempts = 2, backoff = "1ms"))]
async fn after(number: u32) -> ergon::Result<u32> {
    if attempt() == 1 { Err(ergon::Error::new("not yet")) } else { Ok(number) }
}

/// Brings a flow to its signal with one worker, and to its end with another one.
async fn two_lives(log: &FaultyLog, schedule: impl AsyncFnOnce(&Scheduler) -> FlowHandle<u32, ergon::Error>) {
    let start = async |name: &str| {
        let worker = Worker::new(log.another()).register::<Parent>().register::<small>().name(name);
        worker.parked_max(0).start().await.unwrap()
    };
    let first = start("first").await;
    let flow = schedule(&Scheduler::new(log.clone())).await;
    state_of(log, flow.id(), FlowState::Suspended).await;
    first.shutdown().await;
    let second = start("second").await;
    flow.signal("go", &2).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    second.shutdown().await;
}

async fn two_workers_and_a_child_share_a_trace(place: Place) {
    let listener = Listener::new();
    let log = place.log().await;
    two_lives(&log, async |scheduler| {
        let request = tracing::info_span!("POST");
        let scheduling = request.in_scope(|| scheduler.schedule(Parent {}).id("p").into_future());
        scheduling.await.unwrap()
    })
    .await;
    let spans = listener.spans();
    trace(&spans);
    let (post, schedule) = (named(&spans, "POST"), named(&spans, "schedule Parent"));
    assert_eq!((post.len(), schedule.len()), (1, 1));
    assert_eq!(schedule[0].parent_span_id, id(post[0]));
    let lives = named(&spans, "Parent");
    assert!(lives.len() >= 3, "until the signal, until the child is started, and to the end: {lives:#?}");
    for life in &lives {
        assert_eq!(life.parent_span_id, id(schedule[0]), "side by side");
    }
    let lives: HashSet<_> = lives.into_iter().map(id).collect();
    let before = named(&spans, "before");
    assert_eq!(before.len(), 1, "a replay has no span");
    assert!(lives.contains(&before[0].parent_span_id));
    assert_eq!(named(&spans, "request")[0].parent_span_id, id(before[0]));
    let small = named(&spans, "small");
    assert!(!small.is_empty());
    for life in &small {
        assert!(lives.contains(&life.parent_span_id), "below the life that started it");
    }
    let after = named(&spans, "after");
    assert_eq!(after.len(), 2, "one for each attempt");
    assert!(after.iter().all(|attempt| small.iter().any(|life| id(life) == attempt.parent_span_id)));
}

#[flow_type(name = "Doomed")]
struct Doomed {}

#[flow_type]
impl Doomed {
    #[flow]
    async fn run(&self) -> ergon::Result<u32> {
        let one = before().await?;
        self.pass().await?;
        Ok(one + child(calm(2)).await?)
    }

    #[step]
    async fn pass(&self) -> ergon::Result<()> {
        note("begins");
        state::<Gate>().pass().await;
        Ok(())
    }
}

#[flow]
async fn calm(number: u32) -> ergon::Result<u32> {
    Ok(number)
}

/// The first process dies in the middle of a step; the second one has the trace from the log alone.
async fn a_takeover_after_a_crash_goes_on_with_the_trace(place: Place) {
    const LEASE: Duration = Duration::from_secs(60);
    let listener = Listener::new();
    let clock = ManualClock::new();
    let log = place.log_at(clock.clone()).await;
    let (notes, gate) = (Trace::new(), Gate::closed());
    let start = async |log: &FaultyLog, gate: &Gate| {
        let worker = Worker::new(log.clone()).register::<Doomed>().register::<calm>().with_state(notes.clone());
        worker.with_state(gate.clone()).lease(LEASE).start().await.unwrap()
    };
    let process = log.another();
    let first = start(&process, &Gate::closed()).await;
    let request = tracing::info_span!("POST");
    let scheduler = Scheduler::new(log.clone());
    let scheduling = request.in_scope(|| scheduler.schedule(Doomed {}).id("d").into_future());
    let flow = scheduling.await.unwrap();
    drop(request);
    until("the step to begin", || async { notes.count("begins") == 1 }).await;
    until("the step before it to be durable", || async { flow.status().await.unwrap().records == 1 }).await;
    process.crash().await;
    drop(first);
    clock.advance(LEASE);
    gate.open();
    let second = start(&log, &gate).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 3);
    second.shutdown().await;
    let spans = listener.spans();
    trace(&spans);
    let schedule = named(&spans, "schedule Doomed");
    assert_eq!((schedule.len(), schedule[0].parent_span_id), (1, id(named(&spans, "POST")[0])));
    assert_eq!(named(&spans, "before").len(), 1, "of the first process; a replay has no span");
    let lives = named(&spans, "Doomed");
    assert!(!lives.is_empty() && lives.iter().all(|life| life.parent_span_id == id(schedule[0])), "{lives:#?}");
    // Only the second process has come to the child.
    let calm = named(&spans, "calm");
    let second = lives.iter().map(|life| id(life)).find(|life| calm.iter().all(|span| span.parent_span_id == *life));
    let second = second.filter(|_| !calm.is_empty()).expect("the child is below the second life");
    assert!(named(&spans, "pass").iter().any(|span| span.parent_span_id == second), "it is made again there");
}

async fn a_flow_without_a_traceparent_has_one_trace(place: Place) {
    let log = place.log().await;
    let listener = Listener::new();
    two_lives(&log, async |scheduler| {
        // By a process that knows nothing of traces.
        let deaf = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
        let scheduling = scheduler.schedule(Parent {}).id("p").into_future();
        drop(deaf);
        scheduling.await.unwrap()
    })
    .await;
    let spans = listener.spans();
    trace(&spans);
    assert!(named(&spans, "Parent").len() >= 3 && !named(&spans, "small").is_empty());
}

async fn a_traceparent_can_be_given(place: Place) {
    let log = place.log().await;
    let listener = Listener::new();
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    two_lives(&log, async |scheduler| scheduler.schedule(Parent {}).id("p").label("traceparent", given).await.unwrap())
        .await;
    let spans = listener.spans();
    assert_eq!(trace(&spans), TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736").unwrap());
    let parent = SpanId::from_hex("00f067aa0ba902b7").unwrap();
    assert!(named(&spans, "Parent").iter().all(|life| life.parent_span_id == parent));
}

/// Workers that nobody listens to hand on what their flows were given, and give them nothing of their own.
async fn a_traceparent_is_inherited_by_children(place: Place) {
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for label in [Some(given), None] {
        let log = place.log().await;
        let id = if label.is_some() { "with" } else { "without" };
        two_lives(&log, async |scheduler| {
            let scheduling = scheduler.schedule(Parent {}).id(id);
            match label {
                Some(given) => scheduling.label("traceparent", given).await.unwrap(),
                None => scheduling.await.unwrap(),
            }
        })
        .await;
        let all = log.list(&Filter::all().with_parent(FlowId::new(id).unwrap()), None, 10).await.unwrap().flows;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].labels.get("traceparent"), label);
    }
}

async fn an_executor_joins_the_trace(place: Place) {
    let listener = Listener::new();
    let log = place.log().await;
    let request = tracing::info_span!("POST");
    let executor = Executor::new(log.clone());
    let running = request.in_scope(|| executor.run(small(5)).into_future());
    drop(request);
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap(), 5);
    let spans = listener.spans();
    trace(&spans);
    assert_eq!((named(&spans, "POST").len(), named(&spans, "after").len()), (1, 2));
}
