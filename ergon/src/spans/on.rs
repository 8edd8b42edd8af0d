//! Spans that join one trace over processes and suspensions, feature `opentelemetry`.

use std::sync::Arc;

use ergon_storage::{CallPath, FlowInfo, Labels, Timestamp};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::TRACE_LABEL;

/// The span of a flow's time in a slot, in the flow's trace.
pub(crate) fn flow(info: &FlowInfo, epoch: u64) -> Span {
    let span = tracing::info_span!(
        "flow",
        otel.name = &*info.flow_type,
        otel.kind = "consumer",
        id = %info.id,
        flow_type = %info.flow_type,
        epoch,
        run = info.run,
    );
    // Without a layer of OpenTelemetry there is nobody to tell.
    let _ = span.set_parent(Context::new().with_remote_span_context(of_flow(
        &info.labels,
        info.id.as_str(),
        info.created_at,
    )));
    span
}

/// The same for a flow that an executor runs.
pub(crate) fn in_executor<F: Future>(info: &FlowInfo, epoch: u64, run: F) -> impl Future<Output = F::Output> + use<F> {
    tracing::Instrument::instrument(run, flow(info, epoch))
}

/// The span of an attempt of a step, in that of the flow.
pub(crate) fn step(name: &'static str, path: &CallPath, attempt: u32) -> Span {
    tracing::info_span!("step", otel.name = name, name, path = %path, attempt)
}

/// Gives a flow that is about to be scheduled the present trace, unless it was given one.
pub(crate) fn scheduled(id: &str, flow_type: &str, labels: &mut Labels) {
    if labels.get(TRACE_LABEL).is_some() {
        return;
    }
    let span = tracing::info_span!(
        "schedule",
        otel.name = format_args!("schedule {flow_type}"),
        otel.kind = "producer",
        id,
        flow_type
    );
    if let Some(context) = valid(&span.context()).or_else(|| valid(&Context::current())) {
        carry(&context, labels);
    }
}

/// Gives a child the trace of the flow that starts it, unless it was given one. Where nobody listens, what the parent was
/// given is handed on.
pub(crate) fn child(parent: &Labels, labels: &mut Labels) {
    if labels.get(TRACE_LABEL).is_some() {
        return;
    }
    if let Some(here) = valid(&Span::current().context()).or_else(|| parent.get(TRACE_LABEL).and_then(parse)) {
        carry(&here, labels);
    }
}

fn valid(context: &Context) -> Option<SpanContext> {
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

/// Where a flow's spans belong: to what its label says, or else to a trace that its id and age decide.
fn of_flow(labels: &Labels, id: &str, created_at: Timestamp) -> SpanContext {
    labels.get(TRACE_LABEL).and_then(parse).unwrap_or_else(|| {
        let flow = format!("{id} {}", created_at.as_micros());
        let trace = TraceId::from(xxh3_128(flow.as_bytes()).max(1));
        let span = SpanId::from(xxh3_64(flow.as_bytes()).max(1));
        SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default())
    })
}

/// A flow that has all the labels that it may have goes without.
fn carry(context: &SpanContext, labels: &mut Labels) {
    if labels.len() < Labels::COUNT_MAX {
        let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        labels.set(TRACE_LABEL, Arc::from(format!("00-{trace}-{span}-{flags:02x}")));
    }
}

/// A `traceparent` of version 00, or what a later version has in common with it.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex =
        |part: &str, len| part.len() == len && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let well_formed = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    if !well_formed || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_is_read_again() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse(text).unwrap();
        assert!(context.is_remote() && context.is_sampled());
        let mut labels = Labels::new();
        carry(&context, &mut labels);
        assert_eq!(labels.get(TRACE_LABEL), Some(text));
        assert!(!parse(&text.replace("-01", "-00")).unwrap().is_sampled());
        assert!(parse(&text.replace("00-4", "cc-4").replace("-01", "-01-more")).is_some(), "a later version");
    }

    #[test]
    fn what_is_no_traceparent_is_passed_over() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for bad in [
            "",
            "x",
            "00",
            &good[..54],
            &good.to_uppercase(),
            zeros,
            &format!("{good}-00"),
            &good.replace("00-4", "ff-4"),
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_flow_without_a_label_has_a_trace_of_its_own() {
        let (labels, at) = (Labels::new(), Timestamp::from_micros(7));
        assert_eq!(of_flow(&labels, "a", at), of_flow(&labels, "a", at));
        assert_ne!(of_flow(&labels, "a", at).trace_id(), of_flow(&labels, "b", at).trace_id());
        assert_ne!(of_flow(&labels, "a", at).trace_id(), of_flow(&labels, "a", Timestamp::from_micros(8)).trace_id());
    }

    #[test]
    fn a_flow_with_all_its_labels_goes_without() {
        let mut labels = Labels::new();
        for label in 0..Labels::COUNT_MAX {
            labels.set(label.to_string(), "x");
        }
        carry(&of_flow(&labels, "a", Timestamp::from_micros(7)), &mut labels);
        assert_eq!(labels.get(TRACE_LABEL), None);
        labels.check().unwrap();
    }
}
