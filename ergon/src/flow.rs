//! What the macros implement for a flow type.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use ergon_storage::{Affinity, Database, ErrorKind as LogErrorKind, ExecutionLog};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{StorageError, codec, error::Error, retry::Retryable};

/// A type whose values can be recorded as the input of a flow. Implemented by `#[flow_type]` on a struct, and by
/// `#[flow]` on a function, for the type of its arguments.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a flow type",
    label = "put `#[flow_type]` on the struct too",
    note = "`#[flow_type]` goes on the struct and on its impl block"
)]
pub trait FlowType: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name under which its flows are recorded. Renaming the Rust type is safe as long as this stays.
    const NAME: &'static str;
    /// The version of its code, from 1.
    const VERSION: u32;
}

/// A durable flow. Implemented by `#[flow_type]` on the type's impl block, and by `#[flow]` on a function.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a flow",
    label = "has no `#[flow]` method",
    note = "put `#[flow_type]` on an impl block of it that has one `#[flow] async fn`"
)]
pub trait Flow: FlowType {
    /// What it results in.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// What it fails with.
    type Error: Serialize + DeserializeOwned + fmt::Debug + Send + 'static;
    /// The name under which its flows are recorded, by itself that of its type.
    const NAME: &'static str = <Self as FlowType>::NAME;
    /// The version of its code, by itself that of its type: only workers that have it run its flows.
    const VERSION: u32 = <Self as FlowType>::VERSION;
    /// Its time limit, counted from its start.
    const TIMEOUT: Option<Duration>;
    /// How long after its end a flow is forgotten, by workers that have the type; `None` as
    /// [`Worker::retention`](crate::Worker::retention) says, or never.
    const RETENTION: Option<Duration> = None;
    /// Whether it waits for the worker that ran it last, unless it is scheduled otherwise.
    const AFFINITY: Affinity = Affinity::Anyone;
    /// The names of its steps.
    const STEPS: &'static [&'static str];

    /// Its steps that are transactions of the log's database, and whose.
    const TRANSACTIONS: &'static [(&'static str, Database)] = &[];

    /// Its code. Makes sense only within the engine, which polls it.
    fn execute(self) -> BoxFuture<'static, Result<Self::Output, Self::Error>>;

    /// What its error type can do.
    fn error_caps() -> ErrorCaps<Self::Error>;
}

/// What can be the result of a step.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the result of a step",
    label = "a result must implement `serde::Serialize` and `serde::Deserialize`, and own what it holds",
    note = "it is recorded, and read back whenever the flow is replayed",
    note = "for a type of your own, write `#[derive(serde::Serialize, serde::Deserialize)]`"
)]
pub trait Recorded: Serialize + DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> Recorded for T {}

/// What can be the error of a step.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a step",
    label = "an error must implement `serde::Serialize`, `serde::Deserialize` and `Debug`, and own what it holds",
    note = "it is recorded, and read back whenever the flow is replayed",
    note = "for a type of your own, write `#[derive(Debug, serde::Serialize, serde::Deserialize)]`"
)]
pub trait RecordedError: Serialize + DeserializeOwned + fmt::Debug {}

#[diagnostic::do_not_recommend]
impl<E: Serialize + DeserializeOwned + fmt::Debug> RecordedError for E {}

/// The two sides of a `Result`, however it is spelled.
#[diagnostic::on_unimplemented(
    message = "flows and steps return a `Result`, not `{Self}`",
    label = "must be `Result<T, E>`, for instance `ergon::Result<T>`"
)]
pub trait Outcome {
    /// The type of its `Ok`.
    type Ok;
    /// The type of its `Err`.
    type Err;
}

impl<T, E> Outcome for Result<T, E> {
    type Ok = T;
    type Err = E;
}

/// What an error type can do, found out by the macros.
pub struct ErrorCaps<E> {
    /// Makes it from an engine error, where it implements `From<ergon::Error>`.
    pub from_error: Option<fn(Error) -> E>,
    /// Says whether trying again can help, where it implements [`Retryable`].
    pub is_retryable: Option<fn(&E) -> bool>,
    /// Says when trying again can help, where it implements [`Retryable`].
    pub retry_after: Option<fn(&E) -> Option<Duration>>,
}

impl<E> Clone for ErrorCaps<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for ErrorCaps<E> {}

impl<E> fmt::Debug for ErrorCaps<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorCaps")
            .field("from_error", &self.from_error.is_some())
            .field("is_retryable", &self.is_retryable.is_some())
            .field("retry_after", &self.retry_after.is_some())
            .finish()
    }
}

/// Finds out what `E` can do by method lookup: an inherent-looking method on `Probe<E>` is found before the one
/// on `&Probe<E>`, if its bound holds.
#[derive(Debug)]
pub struct Probe<E>(PhantomData<E>);

impl<E> Probe<E> {
    /// A probe for `E`.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E> Default for Probe<E> {
    fn default() -> Self {
        Self::new()
    }
}

/// `E` can be made from an engine error.
// A probe has no value of `E`, so the method takes the probe.
#[allow(clippy::wrong_self_convention)]
pub trait FromErrorYes<E> {
    /// How.
    fn from_error(&self) -> Option<fn(Error) -> E>;
}

impl<E: From<Error>> FromErrorYes<E> for Probe<E> {
    fn from_error(&self) -> Option<fn(Error) -> E> {
        Some(E::from)
    }
}

/// `E` cannot be made from an engine error.
#[allow(clippy::wrong_self_convention)]
pub trait FromErrorNo<E> {
    /// Not at all.
    fn from_error(&self) -> Option<fn(Error) -> E>;
}

impl<E> FromErrorNo<E> for &Probe<E> {
    fn from_error(&self) -> Option<fn(Error) -> E> {
        None
    }
}

/// `E` says whether trying again can help, and when.
pub trait RetryableYes<E> {
    /// How.
    fn is_retryable(&self) -> Option<fn(&E) -> bool>;
    /// How.
    fn retry_after(&self) -> Option<fn(&E) -> Option<Duration>>;
}

impl<E: Retryable> RetryableYes<E> for Probe<E> {
    fn is_retryable(&self) -> Option<fn(&E) -> bool> {
        Some(<E as Retryable>::is_retryable)
    }

    fn retry_after(&self) -> Option<fn(&E) -> Option<Duration>> {
        Some(<E as Retryable>::retry_after)
    }
}

/// `E` does not say whether trying again can help.
pub trait RetryableNo<E> {
    /// Not at all.
    fn is_retryable(&self) -> Option<fn(&E) -> bool>;
    /// Not at all.
    fn retry_after(&self) -> Option<fn(&E) -> Option<Duration>>;
}

impl<E> RetryableNo<E> for &Probe<E> {
    fn is_retryable(&self) -> Option<fn(&E) -> bool> {
        None
    }

    fn retry_after(&self) -> Option<fn(&E) -> Option<Duration>> {
        None
    }
}

/// What an error type can do; `$error` must be concrete.
#[doc(hidden)]
#[macro_export]
macro_rules! __error_caps {
    ($error:ty) => {{
        #[allow(unused_imports)]
        use $crate::__private::{FromErrorNo as _, FromErrorYes as _, RetryableNo as _, RetryableYes as _};
        let probe = $crate::__private::Probe::<$error>::new();
        $crate::__private::ErrorCaps {
            from_error: (&probe).from_error(),
            is_retryable: (&probe).is_retryable(),
            retry_after: (&probe).retry_after(),
        }
    }};
}

/// How a flow failed, as it is recorded: with its own error, or because the engine could not go on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure<E> {
    Error(E),
    Fault(Error),
}

/// How the code of a flow ended.
#[derive(Debug, Clone)]
pub(crate) enum FlowEnd {
    Completed {
        result: Bytes,
    },
    Failed {
        error: Bytes,
        reason: String,
    },
    /// It was cancelled, and has cleaned up.
    Cancelled {
        reason: Arc<str>,
    },
    /// Its next run has this value.
    Continued {
        input: Bytes,
    },
}

impl FlowEnd {
    /// The flow failed for a reason that its code did not return.
    pub(crate) fn fault(error: &Error) -> Self {
        let payload = serde_json::to_vec(&Failure::<()>::Fault(error.clone())).unwrap_or_default();
        Self::Failed { error: payload.into(), reason: crate::step::shorten(format!("{error:#}")) }
    }
}

/// The code of a flow type, without the type.
#[derive(Clone, Copy)]
pub(crate) struct FlowDef {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) rust_type: &'static str,
    pub(crate) retention: Option<Duration>,
    transactions: &'static [(&'static str, Database)],
    pub(crate) begin: fn(input: &[u8], limit: usize) -> Result<FlowFuture, Error>,
}

pub(crate) type FlowFuture = BoxFuture<'static, FlowEnd>;

impl FlowDef {
    pub(crate) fn of<F: Flow>() -> Self {
        Self {
            name: <F as Flow>::NAME,
            version: <F as Flow>::VERSION,
            rust_type: std::any::type_name::<F>(),
            retention: F::RETENTION,
            transactions: F::TRANSACTIONS,
            begin: begin::<F>,
        }
    }
}

impl FlowDef {
    #[cfg(test)]
    pub(crate) fn for_test(name: &'static str, version: u32, retention: Option<Duration>) -> Self {
        let begin = |_: &[u8], _| unreachable!("it is not run");
        Self { name, version, rust_type: name, retention, transactions: &[], begin }
    }

    /// Refuses a log that lends no such transactions as the flow's steps need.
    pub(crate) fn check(&self, log: &dyn ExecutionLog) -> Result<(), StorageError> {
        let has = log.database();
        let Some((step, wanted)) = self.transactions.iter().find(|(_, wanted)| has != Some(*wanted)) else {
            return Ok(());
        };
        let has = has.map_or_else(|| "lends none".to_owned(), |has| format!("lends those of {has}"));
        let message = format!(
            "the step {step:?} of the flow {:?} is a transaction of {wanted}, and this log {has}; take another log, or \
             make it a step without `transaction`",
            self.name
        );
        Err(StorageError::new(LogErrorKind::Unsupported, message))
    }
}

fn begin<F: Flow>(input: &[u8], limit: usize) -> Result<FlowFuture, Error> {
    let flow: F = codec::decode("the flow's value", input)?;
    Ok(Box::pin(async move {
        let outcome = flow.execute().await;
        match end::<F>(outcome, limit) {
            Ok(end) => end,
            Err(error) => FlowEnd::fault(&error),
        }
    }))
}

fn end<F: Flow>(outcome: Result<F::Output, F::Error>, limit: usize) -> Result<FlowEnd, Error> {
    Ok(match outcome {
        Ok(output) => FlowEnd::Completed { result: codec::encode_exact("the flow's result", &output, limit)?.0 },
        Err(error) => {
            let reason = crate::step::shorten(format!("{error:?}"));
            let error = codec::encode("the flow's error", &Failure::Error(error), limit)?;
            FlowEnd::Failed { error, reason }
        }
    })
}
