//! The laws that every log keeps, for the tests of whoever writes one.
//!
//! A law is one function that opens an empty store through a [`Harness`], does something and panics when the
//! answer is not the promised one. [`conformance_tests!`](crate::conformance_tests) makes one test of each. A
//! backend needs nothing but a harness:
//!
//! ```
//! use std::{
//!     sync::{Arc, Mutex},
//!     time::Duration,
//! };
//!
//! use ergon_storage::{InMemoryExecutionLog, ManualClock, conformance::{Harness, Lifetime}};
//!
//! struct MemoryHarness;
//!
//! struct MemoryStore {
//!     clock: ManualClock,
//!     log: Mutex<Arc<InMemoryExecutionLog>>,
//! }
//!
//! fn empty(clock: &ManualClock) -> Arc<InMemoryExecutionLog> {
//!     Arc::new(InMemoryExecutionLog::new().with_clock(Arc::new(clock.clone())))
//! }
//!
//! impl Harness for MemoryHarness {
//!     type Log = InMemoryExecutionLog;
//!     type Store = MemoryStore;
//!     const LIFETIME: Lifetime = Lifetime::Handle;
//!
//!     async fn create(&self) -> MemoryStore {
//!         let clock = ManualClock::new();
//!         MemoryStore { log: Mutex::new(empty(&clock)), clock }
//!     }
//!
//!     async fn open(&self, store: &MemoryStore) -> Arc<InMemoryExecutionLog> {
//!         Arc::clone(&store.log.lock().unwrap())
//!     }
//!
//!     async fn close(&self, store: &MemoryStore, log: Arc<InMemoryExecutionLog>) {
//!         drop(log);
//!         *store.log.lock().unwrap() = empty(&store.clock);
//!     }
//!
//!     async fn advance(&self, store: &MemoryStore, by: Duration) {
//!         store.clock.advance(by);
//!     }
//! }
//!
//! // In a test file this alone runs them all:
//! // ergon_storage::conformance_tests!(MemoryHarness);
//!
//! // A law is also a function to call.
//! ergon_storage::conformance::block_on(async {
//!     ergon_storage::conformance::queue::enqueue_takes_an_id_once_within_a_batch(&MemoryHarness).await;
//! });
//! ```

// Panicking is what a law does.
#![allow(clippy::missing_panics_doc)]

mod scene;

pub mod affinity;
pub mod beats;
pub mod cancel;
pub mod children;
pub mod claim;
pub mod cleanup;
pub mod commit;
pub mod deliveries;
pub mod durability;
pub mod feeds;
pub mod labels;
pub mod lease;
pub mod limits;
pub mod mailbox;
pub mod queue;
pub mod races;
pub mod read;
pub mod retry;
pub mod runs;
pub mod script;
pub mod snapshots;
pub mod suspend;
pub mod transact;
pub mod upkeep;
pub mod watch;

use std::{future::Future, sync::Arc, time::Duration};

pub use self::script::random_script;
use crate::ExecutionLog;

/// How the laws get at the logs of one backend.
pub trait Harness: Send + Sync + 'static {
    /// The log.
    type Log: ExecutionLog;
    /// Where a log keeps its flows: a file, a database, a clock. Removed when it is dropped.
    type Store: Send + Sync + 'static;
    /// How long what is in a store lasts.
    const LIFETIME: Lifetime;

    /// Makes an empty store that shares nothing with any other, whose time stands still.
    fn create(&self) -> impl Future<Output = Self::Store> + Send;

    /// Opens the store. A second handle on an open store is as independent of the first one as the backend
    /// allows: its own connection, if it has connections.
    fn open(&self, store: &Self::Store) -> impl Future<Output = Arc<Self::Log>> + Send;

    /// Closes the only open handle on the store, as a process does that ends.
    fn close(&self, store: &Self::Store, log: Arc<Self::Log>) -> impl Future<Output = ()> + Send;

    /// Moves the time of the store forward, for all handles on it.
    fn advance(&self, store: &Self::Store, by: Duration) -> impl Future<Output = ()> + Send;
}

/// How long what is in a store lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as a handle is open: a store that is opened again is empty.
    Handle,
    /// As long as the store: what was acknowledged is there when it is opened again.
    Store,
}

/// How long a law may take before it counts as broken.
pub const TIME_MAX: Duration = Duration::from_secs(180);

/// Runs a law to its end on several threads.
pub fn block_on(law: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("the system has threads to spare");
    let in_time = runtime.block_on(async { tokio::time::timeout(TIME_MAX, law).await });
    // Not to wait for what hangs.
    runtime.shutdown_background();
    assert!(in_time.is_ok(), "a law comes to its end within {TIME_MAX:?}");
}

/// Makes one test of each law in [`conformance`](crate::conformance), in a module for each area.
///
/// Takes an expression that makes the [`Harness`](crate::conformance::Harness); each test evaluates it once.
#[macro_export]
macro_rules! conformance_tests {
    ($harness:expr $(,)?) => {
        $crate::conformance_tests! { @areas $harness;
            queue {
                enqueue_answers_in_order
                enqueue_of_a_taken_id_changes_nothing
                enqueue_of_a_taken_id_changes_nothing_in_any_state
                enqueue_takes_an_id_once_within_a_batch
                enqueue_is_all_or_nothing
                enqueue_keeps_every_field
                enqueue_counts_from_the_acceptance
                enqueue_refuses_what_makes_no_sense
                enqueue_of_a_deleted_id_begins_anew
                enqueue_takes_a_child_of_an_unknown_parent
            }
            claim {
                claim_of_nothing_takes_nothing
                claim_answers_with_the_running_flow
                claim_counts_and_dates
                claim_leaves_other_queues_types_and_versions_alone
                claim_takes_a_flow_once_though_named_twice
                claim_merges_its_queues
                claim_takes_higher_priorities_first
                claim_takes_the_longest_due_first
                claim_takes_the_first_accepted_first
                claim_orders_all_states_by_instant
                claim_passes_over_what_is_not_due
                claim_takes_at_most_its_limit
                claim_at_the_start_but_not_before
                claim_at_the_timer_but_not_before
                claim_takes_all_timers_of_an_instant
                claim_at_the_end_of_a_lease_but_not_before
                claim_takes_a_flow_once_for_no_time
                claim_for_ever
                claim_names_the_next_instant
                claim_names_the_end_of_its_own_leases
                claim_names_no_instant_without_one
                claim_of_one_flow
                claim_carries_only_the_beginning
            }
            deliveries {
                deliveries_count_at_the_claim
                deliveries_over_the_limit_stall
                deliveries_of_one_are_allowed
                deliveries_over_the_limit_end_the_lease
                deliveries_over_the_limit_hide_no_others
                deliveries_count_for_one_flow
                deliveries_are_reset_by_progress
                deliveries_never_stall_a_flow_that_gets_on
                deliveries_are_taken_back_by_a_release
                deliveries_are_reset_by_a_retry
                deliveries_survive_a_reoffer
            }
            lease {
                heartbeat_renews_from_now
                heartbeat_keeps_a_lease
                heartbeat_answers_in_order
                heartbeat_renews_many
                an_unclaimed_lease_outlives_its_end
                heartbeat_after_anothers_claim_is_lost
                release_offers_the_flow_at_once
                release_of_a_released_flow_is_refused
                a_stale_lease_is_refused_in_every_state
                an_ended_lease_is_refused
                a_lease_ends_with_its_commit
                a_lease_of_a_deleted_flow_is_refused
                a_made_up_lease_is_refused
                a_commit_does_not_renew
            }
            commit {
                commit_keeps_every_field_of_a_record
                commit_now_commits_or_does_nothing
                commits_add_up
                commit_completes
                commit_fails
                commit_stalls
                commit_ends_with_nothing
                commit_numbers_follow
                commit_records_follow
                commit_applies_a_large_one
                commit_refuses_a_large_one_as_a_whole
                commit_recognises_its_repeat
                commit_recognises_its_repeat_by_the_number
                commit_recognises_its_repeat_until_the_next_claim
                commit_of_a_cancelled_flow_is_not_recognised
                commit_repeats_do_not_cross_leases
                commits_without_end
            }
            suspend {
                suspend_says_what_it_waits_for
                suspend_without_an_instant
                suspend_until_a_reached_instant_stays_awake
                suspend_for_a_message_that_is_there_stays_awake
                suspend_counts_what_is_left_in_the_mailbox
                suspend_passes_over_what_was_heard
                suspend_is_woken_by_a_message
                suspend_tells_channels_apart
                suspend_is_due_since_the_first_of_timer_and_message
                suspend_again_and_again
                suspend_until_the_time_limit
                suspend_past_the_time_limit_stays_awake
                a_time_limit_is_the_engines_business
            }
            mailbox {
                send_to_an_unknown_flow_is_refused
                send_to_an_ended_flow_is_refused
                send_to_a_live_flow_is_accepted
                send_keeps_every_field
                messages_are_read_in_order
                messages_leave_when_consumed
                messages_that_are_gone_can_be_consumed
                message_numbers_are_not_reused
                message_numbers_are_not_reused_after_an_end
                send_drops_a_second_message_with_a_key
                send_takes_equal_messages_without_a_key
                send_remembers_keys_until_the_flow_is_deleted
                send_forgets_the_key_of_a_refused_message
                an_end_empties_the_mailbox
                a_full_channel_hides_no_other
            }
            children {
                children_start_with_the_commit
                children_must_name_their_parent
                children_tell_their_end
                children_wake_their_parent
                children_that_have_ended_keep_their_parent_awake
                detached_children_tell_nobody
                children_of_an_ended_parent_end_in_peace
                children_of_a_stalled_parent_are_heard_later
                children_tell_only_their_end
                children_tell_their_end_again_after_a_retry
                children_of_a_failed_parent_are_heard_later
                children_go_on_when_their_call_is_made_again
                children_of_an_earlier_parent_make_room
                children_of_an_earlier_parent_are_not_heard
                children_of_an_earlier_parent_withdraw_nothing
                children_are_younger_than_their_parent
                children_with_another_value_take_the_place
                children_with_another_value_are_refused_while_one_lives
                children_that_are_found_again_are_heard_once
                children_of_one_call_are_told_apart
                children_with_a_taken_id_are_refused_by_message
                children_that_were_started_are_left_alone
                children_with_one_id_start_once
                a_refused_child_keeps_its_parent_awake
                a_refused_child_of_an_end_is_not_heard
                a_childs_end_and_its_message_are_one
                a_message_on_the_childrens_channel_is_no_child
            }
            cancel {
                cancel_wins_in_every_live_state
                cancel_wins_over_time
                cancel_of_an_ended_flow_changes_nothing
                cancel_of_an_unknown_flow_is_refused
                cancel_is_seen_by_the_worker
                cancel_reaches_attached_descendants
                cancel_stops_at_an_ended_descendant
                cancel_leaves_older_flows_alone
                cancel_tells_the_parent
                cancel_reaches_any_depth
                cancel_reaches_any_breadth
                cancel_ends_in_a_circle
                cancel_leaves_other_leases_alone
            }
            cleanup {
                cleanup_only_rises
                cleanup_comes_before_the_end
                cleanup_waits_for_the_one_who_runs_it
                cleanup_ends_as_cancelled
                cleanup_has_no_time_limit
                cleanup_is_retried
                cleanup_of_descendants
                cleanup_of_a_descendant_is_not_begun_again
                abandon_ends_at_once
                reset_takes_a_cancellation_back
                reset_leaves_children_their_cleanup
                a_long_reason_is_refused
                cleanup_is_imported
            }
            retry {
                retry_schedules_a_failed_flow
                retry_schedules_a_stalled_flow
                retry_of_any_other_flow_changes_nothing
                retry_forgets_the_calls_to_be_made_again
                retry_forgets_calls_of_any_kind
                retry_forgets_no_call_twice
                retry_begins_the_time_limit_anew
                retry_finds_the_mailbox_as_it_was
                retry_takes_along_the_children_that_failed
                retry_takes_along_failed_descendants
                retry_takes_along_many_children
                retry_leaves_children_to_the_calls_made_again
                retry_takes_along_no_other_child
                retry_of_a_stalled_flow_takes_nobody_along
                retry_renumbers_a_long_history
                retry_again_and_again
                retry_ends_the_former_lease
                reoffer_to_another_build
                reoffer_of_these_types_and_versions
                reoffer_leaves_poison_alone
            }
            runs {
                a_run_begins_with_nothing_but_its_input
                a_run_keeps_the_mailbox
                a_run_begins_once
                a_run_ends_the_lease_of_the_former
                a_run_begins_with_no_deliveries
                a_run_is_claimed_like_any_flow
                a_run_with_too_large_an_input_is_refused
                runs_hear_of_their_own_children
                runs_keep_the_children_of_former_ones
                runs_leave_the_children_of_former_ones_to_upkeep
                runs_start_children_in_the_places_of_former_ones
                runs_are_of_the_flow_that_was_accepted
                runs_are_retried_by_themselves
                runs_without_end
                runs_lose_and_double_no_message
            }
            beats {
                a_beat_replaces_what_a_record_says
                the_last_beat_counts
                a_beat_of_no_record_is_refused
                a_beat_with_too_large_a_payload_is_refused
                a_zombies_beats_are_refused
                beats_come_with_all_else
                beats_change_nothing_else
                beats_of_many_flows_at_once
                a_retry_keeps_the_beats_of_what_it_keeps
            }
            transact {
                work_for_another_database_is_refused
                work_is_done_once_for_a_call
                work_that_fails_leaves_no_trace
                work_needs_the_lease
                outcomes_of_work_go_with_their_flow
                work_of_a_former_run_is_done_anew
                work_outlasts_a_reset
            }
            snapshots {
                import_keeps_everything_in_every_state
                import_of_a_taken_id_changes_nothing
                import_refuses_what_makes_no_sense
                an_imported_flow_goes_on
                an_imported_flow_is_kept_no_more
                an_imported_run_goes_on
                an_imported_family_is_one
                an_imported_flow_is_retried
                a_large_flow_is_imported_whole
                extras_of_an_unknown_flow
                reset_brings_every_state_back
                reset_keeps_the_first_records
                reset_fences_whoever_had_the_flow
                reset_of_a_flow_that_went_on_is_refused
                reset_puts_messages_back
                reset_forgets_children
                reset_is_heard_by_the_parent_again
                reset_or_the_commit_wins
            }
            feeds {
                items_keep_every_field
                items_are_read_in_pages
                the_last_item_takes_the_place_of_the_others
                items_are_added_once
                emitted_items_are_counted_by_the_engine
                items_belong_to_the_flow
                items_are_hinted_at
                many_items_keep_their_order
            }
            read {
                reads_of_an_unknown_flow
                history_is_read_in_pages
                history_pages_are_stable
                list_is_read_in_pages
                list_tells_every_state
                list_is_filtered
                list_pages_are_stable
                list_goes_on_after_a_deleted_flow
                counts_add_up
                counts_tell_the_oldest
                reads_find_what_is_due
                reads_see_what_was_written
            }
            labels {
                labels_come_with_the_flow
                labels_do_not_tell_flows_apart
                labels_out_of_bounds_are_refused
                labels_are_set_by_a_commit
                labels_are_not_set_by_a_stale_commit
                labels_of_children_are_their_own
                labels_times_and_reasons_filter
                labels_and_reasons_of_poison
                labelled_pages_are_stable
                labels_go_with_their_flow
            }
            affinity {
                affinity_begins_anywhere
                affinity_asks_for_no_news_of_others
                affinity_prefers_the_worker_that_ran_it_last
                affinity_counts_patience_from_the_due_instant
                affinity_requires_the_worker_until_it_is_gone
                affinity_takes_over_at_once_from_who_is_long_gone
                affinity_never_moves_what_must_not
                affinity_forgets_workers_that_are_long_gone
                affinity_forgets_workers_when_another_takes_its_first_flow
                affinity_knows_a_restarted_worker_by_its_name
                affinity_lets_a_late_worker_renew
                affinity_blocks_nobody
                affinity_goes_by_type_and_queue_too
                affinity_holds_for_a_claim_of_one_flow
                affinity_of_a_session_goes_first
                affinity_of_a_session_holds_for_what_was_kept_before
                affinity_ends_with_the_time_limit
                affinity_holds_for_what_is_cleaned_up_after_the_time_limit
                affinity_leaves_kept_flows_to_everyone_else
                affinity_hints_the_worker_that_a_flow_is_kept_for
                affinity_is_checked
                affinity_is_passed_over_in_parts
                affinity_ends_where_the_worker_asks_for_others
                affinity_holds_when_many_ask_at_once
            }
            upkeep {
                prune_at_the_age_but_not_before
                prune_knows_ages_at_the_end_of_time
                prune_of_a_type_is_not_held_up_by_others
                prune_takes_the_longest_finished_first
                prune_keeps_to_its_states_and_type
                prune_keeps_the_newest
                prune_counts_what_stays_for_its_parent
                prune_keeps_the_children_of_live_parents
                prune_takes_the_children_of_an_earlier_parent
                prune_keeps_a_retried_flow
                prune_removes_everything_that_belongs_to_a_flow
                delete_an_ended_flow
                delete_of_a_live_flow_is_refused
                delete_of_a_live_parents_child_is_refused
            }
            limits {
                the_largest_payload_is_kept
                a_larger_payload_is_refused
                names_are_kept_up_to_their_length
                a_record_number_out_of_range_is_refused
                ids_are_compared_byte_for_byte
                names_are_compared_byte_for_byte
                payloads_are_kept_byte_for_byte
                reasons_are_kept_byte_for_byte
            }
            watch {
                watch_hints_at_claimable_flows
                watch_hints_at_changed_flows
                watch_keeps_a_hint
                watch_hints_to_everybody
                watch_then_look_never_misses
            }
            races {
                claims_are_exclusive
                epochs_are_unique
                claims_of_one_flow_are_exclusive
                an_id_is_created_once
                overlapping_batches_do_not_stop_one_another
                commits_with_one_number_apply_once
                commits_sent_at_once_keep_their_order
                zombies_write_nothing
                a_message_to_a_flow_that_suspends_is_not_lost
                a_child_of_a_flow_that_suspends_is_heard
                children_that_end_at_once_are_all_heard
                messages_of_many_are_all_accepted
                messages_with_one_key_are_accepted_once
                messages_are_sent_while_others_are_consumed
                a_message_to_a_flow_that_consumes_and_suspends_is_not_lost
                a_message_that_two_commits_consume_counts_once
                a_message_is_consumed_by_one_worker
                what_a_retry_takes_back_is_not_consumed
                cancel_or_the_end_wins
                a_family_is_retried_at_once
                cancel_leaves_no_late_child
                cancel_happens_once
                a_lease_is_renewed_or_claimed
                a_deleted_flow_stays_deleted
                many_workers_bring_every_flow_to_its_end
                reads_are_never_torn
            }
            durability {
                a_store_that_is_opened_again_is_the_same
                a_store_that_is_opened_again_goes_on
                a_store_that_is_opened_again_reuses_no_lease
                a_lease_is_good_on_every_handle
                stores_are_isolated
            }
            script {
                short_scripts_agree_with_the_model
                long_scripts_agree_with_the_model
            }
        }
    };
    (@areas $harness:expr; $($area:ident { $($law:ident)* })*) => {
        $($crate::conformance_tests! { @area $harness; $area { $($law)* } })*
    };
    (@area $harness:expr; $area:ident { $($law:ident)* }) => {
        mod $area {
            #[allow(unused_imports)]
            use super::*;

            $(
                #[test]
                fn $law() {
                    let harness = $harness;
                    $crate::conformance::block_on($crate::conformance::$area::$law(&harness));
                }
            )*
        }
    };
}

#[cfg(test)]
mod tests {
    /// A law that is not in the list would never be run.
    #[test]
    fn every_law_is_listed() {
        let list = include_str!("mod.rs");
        let areas = [
            ("queue", include_str!("queue.rs")),
            ("claim", include_str!("claim.rs")),
            ("deliveries", include_str!("deliveries.rs")),
            ("lease", include_str!("lease.rs")),
            ("commit", include_str!("commit.rs")),
            ("suspend", include_str!("suspend.rs")),
            ("mailbox", include_str!("mailbox.rs")),
            ("children", include_str!("children.rs")),
            ("cancel", include_str!("cancel.rs")),
            ("cleanup", include_str!("cleanup.rs")),
            ("retry", include_str!("retry.rs")),
            ("read", include_str!("read.rs")),
            ("upkeep", include_str!("upkeep.rs")),
            ("limits", include_str!("limits.rs")),
            ("watch", include_str!("watch.rs")),
            ("races", include_str!("races.rs")),
            ("durability", include_str!("durability.rs")),
            ("snapshots", include_str!("snapshots.rs")),
            ("runs", include_str!("runs.rs")),
            ("beats", include_str!("beats.rs")),
            ("feeds", include_str!("feeds.rs")),
            ("labels", include_str!("labels.rs")),
            ("affinity", include_str!("affinity.rs")),
            ("transact", include_str!("transact.rs")),
            ("script", include_str!("script.rs")),
        ];
        for (area, source) in areas {
            let listed = list.split_once(&format!("            {area} {{\n")).expect("each area is listed").1;
            let listed = listed.split_once('}').expect("a list ends").0;
            let listed: Vec<_> = listed.split_whitespace().collect();
            let laws = source.lines().filter_map(|line| {
                let (name, rest) = line.strip_prefix("pub async fn ")?.split_once('(')?;
                rest.starts_with("harness: &impl Harness)").then_some(name)
            });
            assert_eq!(listed, laws.collect::<Vec<_>>(), "in {area}");
        }
    }
}
