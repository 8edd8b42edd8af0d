//! What a checked item is: all that [`expand`](crate::expand) needs, and nothing that could be wrong.

use std::time::Duration;

use proc_macro2::{Ident, Span, TokenStream};
use syn::{Attribute, DeriveInput, Expr, Lifetime, LitStr, Token, Type};

use crate::ast::{FlowImpl, Method};

/// A type that `FlowType` will be implemented for.
pub(crate) struct FlowTypeModel {
    pub(crate) item: DeriveInput,
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) derive_serialize: bool,
    pub(crate) derive_deserialize: bool,
    /// False when the author tells serde where serde is.
    pub(crate) set_serde_crate: bool,
}

/// An impl block that `Flow` will be implemented by.
pub(crate) struct FlowImplModel {
    pub(crate) source: FlowImpl,
    pub(crate) members: Vec<MemberModel>,
    pub(crate) flow: FlowModel,
}

pub(crate) enum MemberModel {
    /// Where the flow's method stands.
    Flow,
    Step(Box<StepModel>),
    Other(TokenStream),
}

pub(crate) struct FlowModel {
    /// The method, its body already made deterministic.
    pub(crate) method: Method,
    pub(crate) result: Type,
    /// `None`: as the flow type says.
    pub(crate) name: Option<String>,
    /// `None`: as the flow type says.
    pub(crate) version: Option<u32>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retention: Option<Duration>,
    pub(crate) affinity: Option<AffinityModel>,
}

#[derive(Clone, Copy)]
pub(crate) enum AffinityModel {
    Prefer(Duration),
    /// With the time until a takeover; `None` for never.
    Require(Option<Duration>),
}

/// A function that is a flow by itself.
pub(crate) struct FlowFunctionModel {
    pub(crate) flow: FlowModel,
    pub(crate) arguments: Vec<FlowArgument>,
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) derive_serialize: bool,
    pub(crate) derive_deserialize: bool,
    /// False when the author tells serde where serde is.
    pub(crate) set_serde_crate: bool,
}

pub(crate) struct FlowArgument {
    /// Serde's attributes and the like, for the field that holds the argument.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) name: Ident,
    pub(crate) ty: Type,
}

pub(crate) struct StepModel {
    pub(crate) method: Method,
    /// The `self` of `&self`; `None` in a free function.
    pub(crate) receiver: Option<Token![self]>,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) result: Type,
    /// True when the step's future holds a reference, to the receiver or to an argument.
    pub(crate) borrows: bool,
    pub(crate) blocking: bool,
    pub(crate) transaction: Option<Database>,
    pub(crate) at_most_once: bool,
    pub(crate) name: LitStr,
    pub(crate) retry: Option<RetryModel>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) heartbeat_timeout: Option<Duration>,
}

/// Whose transaction a step gets, told by the kind of function it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    /// A plain `fn`.
    Sqlite,
    /// An `async fn`.
    Postgres,
}

pub(crate) struct Argument {
    /// What the calling side names it.
    pub(crate) name: Ident,
    /// Its type with every elided lifetime written out as [`step_lifetime`].
    pub(crate) ty: Type,
}

pub(crate) enum RetryModel {
    /// A constant of `RetryPolicy`.
    Named(Ident),
    Policy(Expr),
    Options(RetryOptions),
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct RetryOptions {
    pub(crate) max_attempts: Option<u32>,
    pub(crate) backoff: Option<Duration>,
    pub(crate) backoff_max: Option<Duration>,
    pub(crate) multiplier: Option<f64>,
    pub(crate) jitter: Option<f64>,
}

/// The lifetime of a step's borrowed arguments and of its future.
pub(crate) fn step_lifetime() -> Lifetime {
    Lifetime::new("'ergon", Span::call_site())
}
