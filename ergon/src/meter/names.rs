//! The names of what is measured, with their descriptions.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(super) const FLOWS_SCHEDULED: &str = "ergon_flows_scheduled_total";
pub(super) const FLOWS_STARTED: &str = "ergon_flows_started_total";
pub(super) const FLOWS_RESUMED: &str = "ergon_flows_resumed_total";
pub(super) const FLOWS_SUSPENDED: &str = "ergon_flows_suspended_total";
pub(super) const FLOWS_CONTINUED: &str = "ergon_flows_continued_total";
pub(super) const FLOWS_ENDED: &str = "ergon_flows_ended_total";
pub(super) const FLOW_WAIT: &str = "ergon_flow_wait_seconds";
pub(super) const FLOW_DURATION: &str = "ergon_flow_duration_seconds";
pub(super) const STEP_ATTEMPTS: &str = "ergon_step_attempts_total";
pub(super) const STEP_DURATION: &str = "ergon_step_duration_seconds";
pub(super) const LEASES_LOST: &str = "ergon_leases_lost_total";
pub(super) const SLOTS: &str = "ergon_slots";
pub(super) const SLOTS_USED: &str = "ergon_slots_used";
pub(super) const PARKED: &str = "ergon_flows_parked";
pub(super) const LOG_DURATION: &str = "ergon_log_duration_seconds";
pub(super) const LOG_ERRORS: &str = "ergon_log_errors_total";
pub(super) const FLOWS: &str = "ergon_flows";
pub(super) const OLDEST_DUE: &str = "ergon_queue_oldest_due_seconds";

/// Tells the recorder what they mean.
pub(super) fn describe() {
    describe_counter!(FLOWS_SCHEDULED, "Flows that were accepted by the log, children included");
    describe_counter!(FLOWS_STARTED, "Flows that were claimed for the first time");
    describe_counter!(FLOWS_RESUMED, "Flows that were claimed again, from the memory of the worker or from the log");
    describe_counter!(FLOWS_SUSPENDED, "Flows that gave up their slot to wait");
    describe_counter!(FLOWS_CONTINUED, "Flows that began again with another value");
    describe_counter!(FLOWS_ENDED, "Flows that ended or were stalled, by the state in which they are");
    describe_histogram!(FLOW_WAIT, Unit::Seconds, "Time from when a flow could start to its first claim");
    describe_histogram!(FLOW_DURATION, Unit::Seconds, "Time from a flow's first claim to its end, waits included");
    describe_counter!(STEP_ATTEMPTS, "Attempts of steps, by how they ended");
    describe_histogram!(STEP_DURATION, Unit::Seconds, "Time that an attempt of a step ran");
    describe_counter!(LEASES_LOST, "Flows that were let go because their lease was gone or the log did not answer");
    describe_gauge!(SLOTS, "Slots of the workers of this process");
    describe_gauge!(SLOTS_USED, "Slots with a flow in them");
    describe_gauge!(PARKED, "Suspended flows that are kept in memory");
    describe_histogram!(LOG_DURATION, Unit::Seconds, "Time that the log took to answer, errors included");
    describe_counter!(LOG_ERRORS, "Calls that the log refused or did not answer");
    describe_gauge!(FLOWS, "Flows in the log");
    describe_gauge!(OLDEST_DUE, Unit::Seconds, "For how long the flow that waits the longest could have been claimed");
}
