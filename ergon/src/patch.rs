//! Changing the code of live flows.

use ergon_storage::Record;

use crate::{
    context::{Context, Halt, invalid},
    journal::Place,
};

/// True when this flow goes by the change of its code that is named `id`; false when it had passed this place
/// before the change was made, and must go on as it did.
///
/// A flow that is under way when its code changes is replayed by the new code, which must make the calls that the
/// history has. Put the change behind a name of its own, and keep the old way beside it:
///
/// ```
/// # use ergon::prelude::*;
/// # #[flow_type] struct Trip;
/// # #[flow_type] impl Trip {
/// #[flow]
/// async fn run(&self) -> ergon::Result<String> {
///     let train = self.book("train").await?;
///     if ergon::patched("book a seat too") {
///         self.book("seat").await?;
///     }
///     self.book("hotel").await
/// }
/// # #[step] async fn book(&self, what: &str) -> ergon::Result<String> { Ok(what.into()) }
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let booked = Executor::new(InMemoryExecutionLog::new()).run(Trip).await?;
/// assert_eq!(booked, "hotel");
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What tells that a flow has passed this place is a record of a later call, or of one that was made since the flow's
/// code last waited: then the flow goes on as it did. A flow under the old code that only waits
/// for a signal without a time limit there, or runs a step, has none yet, and takes up the change too.
///
/// New flows, and those that have not come to this place, take up the change, which their history tells with the
/// next record. The answer for an `id` is the same for the rest of the flow's life, wherever it is asked for: a
/// flow that had passed the first such place does not take the change up later, for instance in the next round of
/// a loop. Once no flow is left that was under way when the change was made, the condition and the old way can be
/// removed; histories that tell of the change are no obstacle.
///
/// This is what other systems call patching or versioning; the semantics are those of
/// [Temporal's `patched`](https://docs.temporal.io/patching), but for a marker that takes no place among the calls
/// and so needs no deprecation.
///
/// The id has 1 to 255 bytes, otherwise the flow fails.
///
/// # Panics
///
/// Outside a flow, and inside a step: a step's body may change at any time.
#[track_caller]
pub fn patched(id: &str) -> bool {
    let context = Context::current("ergon::patched()");
    assert!(
        context.place == Place::Flow,
        "ergon::patched() is for a flow's own code; the body of a step may be changed as it is"
    );
    if id.is_empty() || id.len() > Record::NAME_BYTES_MAX {
        let message = format!("a patch's id has 1 to {} bytes, {id:?} has {}", Record::NAME_BYTES_MAX, id.len());
        context.flow.halt(Halt::Fault(invalid(message)));
        return false;
    }
    let now = context.flow.env.clock.now();
    context.flow.journal().patched(id, now)
}
