//! The attribute macros of [ergon]: [`macro@flow_type`], [`macro@flow`] and [`macro@step`].
//!
//! Use them through the `ergon` crate, which exports all three and holds what they expand to; the
//! examples here are shown running in its documentation.
//!
//! ```ignore
//! use ergon::prelude::*;
//!
//! #[flow_type]
//! struct Order { id: String, cents: u64 }
//!
//! #[flow_type]
//! impl Order {
//!     #[flow]
//!     async fn run(&self) -> Result<Receipt, OrderError> {
//!         let payment = self.charge(self.cents).await?;
//!         sleep(Duration::from_secs(24 * 3600)).await;
//!         self.ship(&payment).await
//!     }
//!
//!     #[step(retry(max_attempts = 5, backoff = "1s..30s"), timeout = "10s")]
//!     async fn charge(&self, cents: u64) -> Result<Payment, OrderError> {
//!         state::<Stripe>().charge(cents, idempotency_key()).await
//!     }
//!
//!     #[step]
//!     async fn ship(&self, payment: &Payment) -> Result<Receipt, OrderError> { self.parcels().send(payment).await }
//! }
//! ```
//!
//! All mistakes in one item are reported by one compilation, and an item with a mistake in it is
//! still emitted, so that nothing which uses it fails as well.
//!
//! [ergon]: https://docs.rs/ergon

// A macro's way: its arguments, what it stands on, the refusals, the tokens that come out.
mod macros;

mod attr;

mod ast;

mod model;
mod validate;

mod determinism;
mod duration;

mod expand;

mod errors;
#[cfg(test)]
mod mutation_tests;

use proc_macro::TokenStream;

/// Makes a type a flow type, and its impl block a flow.
///
/// # On a struct or an enum
///
/// Derives `Serialize` and `Deserialize` and implements `FlowType`. A value of the type is the
/// input of a flow: it is what is written to the execution log when the flow is scheduled.
///
/// ```ignore
/// #[flow_type(name = "order", version = 2)]
/// struct Order { id: String, cents: u64 }
/// ```
///
/// | option | meaning | if left out |
/// |---|---|---|
/// | `name = "order"` | what the type is called in the log; 1 to 128 bytes, no control characters | the type's own name |
/// | `version = 2` | which version of the code a flow was started with; from 1 on | 1 |
///
/// Choose a `name` when the type may be renamed one day: flows that are already in the log find
/// their code by it.
///
/// Serde's own attributes work as usual (`#[serde(rename = "…")]`, `#[serde(default)]`). To derive
/// `Serialize` or `Deserialize` yourself, write the `#[derive(…)]` below `#[flow_type]`. The type
/// cannot have generics or lifetimes, for one name stands for one type.
///
/// # On its impl block
///
/// Implements `Flow`. The block has exactly one method marked [`#[flow]`](macro@flow) and as many
/// marked [`#[step]`](macro@step) as the flow needs; other items stay as they are. There are no
/// options here.
///
/// ```ignore
/// #[flow_type]
/// impl Order {
///     #[flow]
///     async fn run(&self) -> Result<Receipt, OrderError> { self.charge(self.cents).await }
///
///     #[step]
///     async fn charge(&self, cents: u64) -> Result<Receipt, OrderError> { bank().charge(cents).await }
///
///     fn in_euros(&self) -> f64 { self.cents as f64 / 100.0 } // an ordinary method
/// }
/// ```
#[proc_macro_attribute]
pub fn flow_type(args: TokenStream, item: TokenStream) -> TokenStream {
    macros::flow_type(args.into(), item.into()).into()
}

/// Marks the method that runs a flow, in an impl block with [`#[flow_type]`](macro@flow_type); or makes a function
/// a flow.
///
/// # On a method
///
/// The method is an `async fn` that takes `&self` alone and returns a `Result`; both sides of the
/// result are recorded, so they implement `Serialize` and `Deserialize`. It stays an ordinary
/// `async fn`, which its own code can be tested through.
///
/// ```ignore
/// #[flow(timeout = "7days")]
/// async fn run(&self) -> Result<Receipt, OrderError> { self.charge(self.cents).await }
/// ```
///
/// # On a function
///
/// ```ignore
/// #[flow(version = 2)]
/// async fn ship(order: Order, to: String) -> Result<Receipt, OrderError> { label(&order, &to).await }
///
/// let worker = Worker::new(log.clone()).register::<ship>().start().await?;
/// let receipt = Scheduler::new(log).schedule(ship(order, "Oslo".into())).await?.result().await?;
/// let receipt = child(ship(order, "Oslo".into())).await?; // inside another flow
/// ```
///
/// The function's name becomes the name of a flow type too, whose fields are the arguments; nothing else in the same
/// scope can be a type or a module of that name. Calling the function makes a value of that type and runs nothing.
///
/// The arguments are owned and implement `Serialize` and `Deserialize`. They are recorded by their names: to rename
/// one that flows in the log have, write `#[serde(rename = "…")]` before it, and to add one that they lack,
/// `#[serde(default)]`. A `#[derive(…)]` below `#[flow]` goes to the type, as do serde's attributes. A body that is to be
/// tested by itself is a function that the flow calls.
///
/// # Options
///
/// | option | meaning | if left out |
/// |---|---|---|
/// | `name = "order"` | what the flow is called in the log; 1 to 128 bytes | the name of the type, or of the function |
/// | `version = 2` | which version of the code a flow was started with; from 1 on | the type's version, or 1 |
/// | `timeout = "1h"` | how long the flow may take in all, waits included | no limit |
/// | `retention = "30d"` | how long after its end workers that have the type forget a flow, see `Worker::retention` | as `Worker::retention` says, or never |
/// | `affinity(prefer = "5s")` | due again, it waits so long for the worker that ran it last, see `Affinity` | it goes anywhere |
/// | `affinity(require)`, `(require = "2m")`, `(require = "never")` | it goes to that worker alone, until that one is gone: for a minute, for so long, or never | it goes anywhere |
/// | `allow(nondeterminism)` | accepts the calls listed below | they are refused |
///
/// Durations are written as for a [step](macro@step#durations).
///
/// # What a flow may not do
///
/// A flow's body runs again, from its beginning, whenever the flow is resumed; what it did before
/// is answered from the log. So it must take the same way each time, and a call whose answer is not
/// recorded is refused at compile time:
///
/// | refused | durable |
/// |---|---|
/// | `SystemTime::now`, `Instant::now`, `Utc::now`, … | `ergon::now()` |
/// | `rand::random`, `thread_rng`, `fastrand::…` | `ergon::random()` |
/// | `Uuid::new_v4`, `Uuid::now_v7`, `Ulid::new` | `ergon::uuid()` |
/// | `tokio::time::sleep`, `interval`, `thread::sleep` | `ergon::sleep` |
/// | `tokio::time::timeout` | `ergon::timeout`, or a step's `timeout` |
/// | `tokio::spawn`, `thread::spawn`, `JoinSet::new` | a child flow, or steps that are joined |
/// | `std::fs`, `std::env`, `std::process`, `reqwest`, … | a [`#[step]`](macro@step) |
///
/// Calls are known by their paths, inside closures and macros too; a call in another function is
/// not seen. Where a refused call does no harm, say so with `#[flow(allow(nondeterminism))]`.
///
/// `println!`, `dbg!` and events of `tracing` do no harm, but they come again with each replay. What
/// is to be said once belongs into a step. What only is to be said rarely goes behind
/// `if !ergon::is_replaying()`: that is true again for what follows the last recorded outcome. The
/// engine's own events about a flow are not repeated.
///
/// A flow that waits for something that is not durable all the same (a channel, `yield_now`, a task)
/// is warned of once in the trace, with the call that followed on the wait.
///
/// `join!`, `try_join!`, `select!` and the like need no replacement. Every `select!` in the body
/// polls its branches in the order in which they are written, as if it began with `biased;`, and
/// `futures::select!` becomes `futures::select_biased!`. A `select!` without a path is taken for
/// tokio's.
#[proc_macro_attribute]
pub fn flow(args: TokenStream, item: TokenStream) -> TokenStream {
    macros::flow(args.into(), item.into()).into()
}

/// Makes a method or a function a step: its outcome is recorded once and replayed from then on.
///
/// ```ignore
/// #[step(retry(max_attempts = 5, backoff = "1s..30s"), timeout = "10s")]
/// async fn charge(&self, cents: u64) -> Result<Payment, OrderError> { bank().charge(cents).await }
/// ```
///
/// The step becomes a plain function that returns a `Step`, a future to be awaited or joined. It is
/// called inside a flow. It works in an impl with [`#[flow_type]`](macro@flow_type), which lists
/// its steps, in any other impl, and on a free function.
///
/// | option | meaning | if left out |
/// |---|---|---|
/// | `name = "charge-card"` | what the step is called in the log; 1 to 128 bytes, one of its kind in a flow type | the method's name |
/// | `retry…` | which failed attempts are followed by another, see [below](#retries) | `RetryPolicy::STANDARD` |
/// | `timeout = "10s"` | how long one attempt may take, see [below](#time-limits) | no limit |
/// | `heartbeat_timeout = "30s"` | how long one attempt may go without a heartbeat, see [below](#heartbeats) | no limit |
/// | `blocking` | a plain `fn` that blocks its thread, see [below](#blocking-steps) | an `async fn` |
/// | `transaction` | the body gets a transaction of the log's database, see [below](#transactions) | it gets none |
/// | `at_most_once` | the body must not be repeated, see [below](#at-most-once) | it runs again after a crash |
///
/// # Arguments and result
///
/// A step takes `&self` (unless it is a free function) and up to twelve arguments, owned or
/// borrowed. They implement `Serialize`, for their hash is recorded to notice a replay that went
/// another way, and `Clone`, for each attempt gets its own. A `HashSet` is refused: its order
/// differs each time, so take a `BTreeSet`.
///
/// It returns a `Result` (or an alias of one) of owned types that implement `Serialize` and
/// `Deserialize`. It cannot be generic.
///
/// # Retries
///
/// ```ignore
/// #[step(retry = none)]             // the first failure is final
/// #[step(retry = standard)]         // `RetryPolicy::STANDARD`
/// #[step(retry = persistent)]       // `RetryPolicy::PERSISTENT`
/// #[step(retry = BANK_POLICY)]      // a constant of type `RetryPolicy`
/// #[step(retry(max_attempts = 5, backoff = "1s..30s", multiplier = 2.0, jitter = 0.2))]
/// ```
///
/// | in `retry(…)` | meaning | values |
/// |---|---|---|
/// | `max_attempts = 5` | attempts in all, the first one included | from 1 on |
/// | `backoff = "1s"` | the wait after the first failure | a duration |
/// | `backoff = "1s..30s"` | the wait after the first failure, and the longest wait | two durations |
/// | `max = "30s"` | the longest wait, if `backoff` does not give it | a duration |
/// | `multiplier = 2.0` | by how much each wait is longer than the one before | 1.0 to 100.0 |
/// | `jitter = 0.2` | the share of a wait that is left to chance | 0.0 to 1.0 |
///
/// What is not given is as in `RetryPolicy::new()`. An error that implements `Retryable` may say that trying again
/// is in vain, or when it is not.
///
/// # Time limits
///
/// With `timeout = "10s"` an attempt fails that has no outcome ten seconds after it began; its body
/// is dropped at its next `.await`. It is a failed attempt like any other: the policy decides
/// whether another one follows, with a limit of its own. What a blocking step does goes on, unheard
/// of.
///
/// The limit is an instant, by the log's clock. When the body waits for a durable timer or a signal,
/// or calls other steps, that instant is recorded: the flow may leave memory meanwhile and its
/// process may die, the body starts again, but its time does not. A body without such calls has
/// nothing to go on with when its process dies; it runs again as the same attempt, with its full
/// time.
///
/// # Heartbeats
///
/// ```ignore
/// #[step(heartbeat_timeout = "30s")]
/// async fn index(&self) -> ergon::Result<u64> {
///     let mut line = ergon::last_heartbeat()?.unwrap_or(0);
///     while self.index_line(line).await? {
///         line += 1;
///         ergon::heartbeat(&line)?;
///     }
///     Ok(line)
/// }
/// ```
///
/// With `heartbeat_timeout = "30s"` an attempt fails that has begun, or called `ergon::heartbeat`, longer than thirty
/// seconds ago, and has no outcome. It is a failed attempt like any other. The time in which the body waits for a call of
/// its own, such as a step or a timer, does not count: such calls have limits of their own. It must be shorter than a
/// `timeout`. See `ergon::heartbeat`.
///
/// # Durations
///
/// A duration is a string of numbers with units: `"500ms"`, `"10s"`, `"1h 30m"`, `"7days"`. It is
/// read at compile time, is longer than zero and at most 3650 days.
///
/// # Blocking steps
///
/// ```ignore
/// #[step(blocking)]
/// fn resize(&self, path: String) -> Result<Size, ImageError> { shrink(&path) }
/// ```
///
/// The body runs on a thread for blocking work. So its arguments are owned, and the type it is a
/// method of implements `Clone`.
///
/// # Transactions
///
/// ```ignore
/// #[step(transaction)]
/// fn book(&self, tx: &sqlite::Transaction<'_>, cents: u64) -> Result<u64, BankError> { pay_in_sqlite(tx, cents) }
///
/// #[step(transaction)]
/// async fn book(&self, tx: &postgres::Transaction<'_>, cents: u64) -> Result<u64, BankError> { pay(tx, cents).await }
/// ```
///
/// The first argument behind `&self` is given by the engine: `self.book(cents)` is how the step is called. What the
/// body does in the transaction and the outcome of the step are committed together, exactly once; an error or a panic
/// undoes it. A plain `fn` is for the SQLite log; it runs on the thread that writes the log, so its arguments are
/// owned, its type implements `Clone` if it is a method, and it has no `timeout` and no `heartbeat_timeout`. An `async fn` is for the PostgreSQL
/// log. A worker does not start with such a step on another log. See `ergon::sqlite::transact` and
/// `ergon::postgres::transact`.
///
/// # At most once
///
/// ```ignore
/// #[step(at_most_once)]
/// async fn pay(&self, cents: u64) -> ergon::Result<Receipt> { old_bank().pay(cents).await }
///
/// let receipt = match self.pay(cents).await {
///     Err(error) if error.kind() == ErrorKind::UnknownOutcome => self.look_for_the_payment().await?,
///     outcome => outcome?,
/// };
/// ```
///
/// For what must not be repeated and knows no idempotency key. That the body begins is recorded, and durable, before it
/// does. When its process dies after that, or loses its lease, before the outcome is durable, the body never runs again:
/// the call fails with an error of the kind `UnknownOutcome`, with which the flow's code can deal if the step's error
/// implements `From<ergon::Error>`; otherwise it fails the flow. That may happen though the body did not run, but for a
/// moment too early. It costs no commit of its own where the flow has something to write beforehand, and one commit
/// otherwise.
///
/// There is one attempt unless `retry` says otherwise, and the policy is for errors that the body returns: what the body
/// has done that was cut off by its time limit, panicked, or returned what cannot be recorded, is as uncertain as that of
/// a lost one. Such a call stays failed also when the failed flow is retried.
///
/// The step is called by flows; inside another step, whose body may start again, the call panics. A wait in its body
/// keeps the flow in memory. A shutdown lets the body end within the worker's grace period; then its outcome is lost.
///
/// # Other attributes
///
/// Documentation, `#[must_use]` and `#[deprecated]` stay on the step that is called; lint levels
/// and `#[cfg]` apply to both sides; every other attribute, such as `#[tracing::instrument]`, goes
/// to the body.
#[proc_macro_attribute]
pub fn step(args: TokenStream, item: TokenStream) -> TokenStream {
    macros::step(args.into(), item.into()).into()
}
