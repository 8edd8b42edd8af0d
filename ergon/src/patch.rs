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
/// a loop. Once no flow is left that was under way when the change was made, the old way can be removed, and
/// [`deprecate_patch`] takes the place of the condition for a while; histories that tell of the change are no obstacle to
/// code that knows it no more.
///
/// This is what other systems call patching or versioning; the semantics are those of
/// [Temporal's `patched`](https://docs.temporal.io/patching), but for a marker that takes no place among the calls.
///
/// The id has 1 to 255 bytes, otherwise the flow fails.
///
/// # Panics
///
/// Outside a flow, and inside a step: a step's body may change at any time.
#[track_caller]
pub fn patched(id: &str) -> bool {
    let context = here("ergon::patched()");
    let Some(id) = checked(&context, id) else { return false };
    let now = context.flow.env.clock.now();
    context.flow.journal().patched(id, now)
}

/// Takes the place of [`patched`] when the old way is removed: every flow goes by the change that is named `id`.
///
/// ```
/// # use ergon::prelude::*;
/// # #[flow_type] struct Trip;
/// # #[flow_type] impl Trip {
/// #[flow]
/// async fn run(&self) -> ergon::Result<String> {
///     let train = self.book("train").await?;
///     ergon::deprecate_patch("book a seat too");
///     self.book("seat").await?;
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
/// It does two things for the time until all flows have ended that were under way while the code still had both ways:
///
/// - A flow that had passed this place before the change was made, and so goes the old way, is stalled with a reason that
///   names the change. It is not replayed along the new way, which it might follow by chance for a while. Code with both
///   ways is offered it again when it is deployed.
/// - The history of a flow that comes here tells of the change, as it would with `patched`. So the deploy can be taken back:
///   code that asks whether the flow is `patched` finds that it is.
///
/// When none of those flows is left, the call is removed too.
///
/// The id has 1 to 255 bytes, otherwise the flow fails.
///
/// # Panics
///
/// Outside a flow, and inside a step.
#[track_caller]
pub fn deprecate_patch(id: &str) {
    let context = here("ergon::deprecate_patch()");
    let Some(id) = checked(&context, id) else { return };
    let now = context.flow.env.clock.now();
    if !context.flow.journal().patched(id, now) {
        context.flow.halt(Halt::Stall(format!(
            "the flow goes by the code from before the change {id:?}, which this code has no more; nothing is lost: let a \
             worker finish it that asks ergon::patched({id:?}) and has the old way beside the new one, then retry the flow"
        )));
    }
}

#[track_caller]
fn here(what: &str) -> Context {
    let context = Context::current(what);
    assert!(
        context.place == Place::Flow,
        "{what} is for a flow's own code; the body of a step may be changed as it is"
    );
    context
}

/// The id of a change, if it may be one. The flow fails otherwise.
fn checked<'a>(context: &Context, id: &'a str) -> Option<&'a str> {
    if !id.is_empty() && id.len() <= Record::NAME_BYTES_MAX {
        return Some(id);
    }
    let message = format!("a patch's id has 1 to {} bytes, {id:?} has {}", Record::NAME_BYTES_MAX, id.len());
    context.flow.halt(Halt::Fault(invalid(message)));
    None
}
