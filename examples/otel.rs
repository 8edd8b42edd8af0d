//! One trace for a flow's whole life: over two lives of a worker, a suspension, and a child.
//!
//! ```text
//! cargo run --example otel
//! ```
//!
//! Spans go where a program's OpenTelemetry SDK sends them: here into memory, to be printed as a tree at the end. In earnest
//! the exporter is one for OTLP. See docs/tracing.md.

use std::collections::HashMap;

use ergon::prelude::*;
use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

#[flow_type]
#[derive(Clone)]
struct Order {
    id: String,
}

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let stock = self.reserve().await?;
        let by: String = signal("approval").await?;
        let parcel = child(pack(stock)).await?;
        Ok(format!("{parcel}, approved by {by}"))
    }

    #[step]
    async fn reserve(&self) -> ergon::Result<String> {
        tracing::info!("the shelf is looked at"); // an event of the step's span
        Ok(format!("stock of {}", self.id))
    }
}

#[flow]
async fn pack(stock: String) -> ergon::Result<String> {
    wrap(&stock).await
}

#[step(retry(max_attempts = 3, backoff = "10ms"))]
async fn wrap(stock: &str) -> ergon::Result<String> {
    if attempt() == 1 {
        return Err(ergon::Error::new("the paper is torn"));
    }
    Ok(format!("a parcel with {stock}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("orders"));
    tracing_subscriber::registry().with(LevelFilter::INFO).with(layer).init();

    let log = SqliteExecutionLog::open_in_memory().await?;
    let scheduler = Scheduler::new(log.clone());
    let start = async || Worker::new(log.clone()).register::<Order>().register::<pack>().start().await;

    // The first life: until the order waits for its approval.
    let worker = start().await?;
    let request = tracing::info_span!("POST /orders");
    let scheduling = request.in_scope(|| scheduler.schedule(Order { id: "7".into() }).id("order-7").into_future());
    let order = scheduling.await?;
    drop(request);
    while order.status().await?.state != ergon::FlowState::Suspended {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.shutdown().await;

    // The second: to the end.
    let worker = start().await?;
    order.signal("approval", "ada").await?;
    println!("{}\n", order.result().await?);
    worker.shutdown().await;

    provider.force_flush()?;
    print(exporter.get_finished_spans()?);
    Ok(())
}

/// The spans as trees, below the traces that they are in.
fn print(spans: Vec<SpanData>) {
    fn below(parent: SpanId, spans: &HashMap<SpanId, Vec<SpanData>>, depth: usize) {
        for span in spans.get(&parent).into_iter().flatten() {
            println!("{:depth$}{}", "", span.name, depth = depth * 2);
            below(span.span_context.span_id(), spans, depth + 1);
        }
    }
    let mut by_trace: HashMap<_, HashMap<SpanId, Vec<SpanData>>> = HashMap::new();
    for span in spans {
        let trace = by_trace.entry(span.span_context.trace_id()).or_default();
        trace.entry(span.parent_span_id).or_default().push(span);
    }
    println!("{} trace", by_trace.len());
    for (id, mut spans) in by_trace {
        println!("{id}");
        for siblings in spans.values_mut() {
            siblings.sort_by_key(|span| span.start_time);
        }
        below(SpanId::INVALID, &spans, 1);
    }
}
