//! Every refusal that needs more than one argument's syntax; [`model`](crate::model)s come out of it.
//!
//! Whatever leaves here can be expanded: [`expand`](crate::expand) has no way to fail.

mod options;
mod signature;

use std::time::Duration;

use proc_macro2::{Ident, Span, TokenStream};
use quote::format_ident;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, FnArg, GenericArgument, Lifetime, LitInt, LitStr, Pat, PatType, Path,
    PathArguments, Receiver, ReceiverKind, ReturnType, Safety, Signature, Token, Type, TypePath, TypeReference,
    ext::IdentExt,
    visit::{self, Visit},
    visit_mut::{self, VisitMut},
};

use crate::{
    ast::{FlowImpl, Marker, MarkerKind, Member, Method},
    attr::{self, AffinityArg, FlowArgs, FlowTypeArgs, Number, RetryArg, RetryArgs, StepArgs},
    determinism, duration,
    errors::Errors,
    model::{
        AffinityModel, Argument, Database, FlowArgument, FlowFunctionModel, FlowImplModel, FlowModel, FlowTypeModel,
        MemberModel, RetryModel, RetryOptions, StepModel, step_lifetime,
    },
};

use self::{
    options::{checked_name, checked_retry, checked_version},
    signature::{check_arguments, check_receiver, check_signature, checked_result, is_static},
};

/// The longest name of a flow type or a step, in bytes: names are keys in every execution log.
const NAME_BYTES_MAX: usize = 128;
/// The most arguments a step takes: what the standard traits of tuples are implemented for.
const ARGUMENTS_MAX: usize = 12;
const MULTIPLIER: std::ops::RangeInclusive<f64> = 1.0..=100.0;
const JITTER: std::ops::RangeInclusive<f64> = 0.0..=1.0;
/// The names we give to the methods that hold the bodies of steps begin with this.
const RESERVED: &str = "__ergon";

/// `None`, with a fatal error recorded, when the type cannot be a flow type at all.
pub(crate) fn flow_type(item: DeriveInput, args: FlowTypeArgs, errors: &mut Errors) -> Option<FlowTypeModel> {
    if let Data::Union(union) = &item.data {
        errors.fatal_on(union.union_token, "`#[flow_type]` goes on a struct or an enum: a union cannot be serialized");
    }
    if !item.generics.params.is_empty() {
        errors.fatal_on(&item.generics.params, "a flow type cannot be generic: one name stands for one type");
    }
    let name = args.name.and_then(|name| errors.ok(checked_name(&name)));
    let version = args.version.and_then(|version| errors.ok(checked_version(&version)));
    if errors.is_fatal() {
        return None;
    }
    Some(FlowTypeModel {
        name: name.unwrap_or_else(|| item.ident.unraw().to_string()),
        version: version.unwrap_or(1),
        derive_serialize: !derives(&item.attrs, "Serialize"),
        derive_deserialize: !derives(&item.attrs, "Deserialize"),
        set_serde_crate: !sets_serde_crate(&item.attrs),
        item,
    })
}

fn derives(attrs: &[Attribute], name: &str) -> bool {
    attrs.iter().filter(|attribute| attribute.path().is_ident("derive")).any(|attribute| {
        let mut found = false;
        // A derive that cannot be read is reported by the compiler.
        let _ = attribute.parse_nested_meta(|derive| {
            found |= derive.path.segments.last().is_some_and(|last| last.ident == name);
            Ok(())
        });
        found
    })
}

fn sets_serde_crate(attrs: &[Attribute]) -> bool {
    attrs.iter().filter(|attribute| attribute.path().is_ident("serde")).any(|attribute| {
        let mut found = false;
        // What serde does not understand, serde reports.
        let _ = attribute.parse_nested_meta(|option| {
            found |= option.path.is_ident("crate");
            if option.input.peek(Token![=]) {
                option.value()?.parse::<Expr>()?;
            } else if option.input.peek(syn::token::Paren) {
                option.input.parse::<proc_macro2::Group>()?;
            }
            Ok(())
        });
        found
    })
}

/// `None`, with a fatal error recorded, when the impl is to be emitted as it was written.
pub(crate) fn flow_impl(args: &TokenStream, source: FlowImpl, errors: &mut Errors) -> Option<FlowImplModel> {
    if !args.is_empty() {
        errors.push_on(
            args,
            "`#[flow_type]` takes no options on an impl: write them on the `#[flow_type]` of the type, or in `#[flow(…)]`",
        );
    }
    check_header(&source, errors);
    let mut flow: Option<FlowModel> = None;
    let mut has_flow = false;
    let mut members = Vec::new();
    let mut names: Vec<(String, bool)> = Vec::new();
    for member in &source.members {
        let method = match member {
            Member::Other(item) => {
                members.push(MemberModel::Other(item.clone()));
                continue;
            }
            Member::Misplaced(marker, _) => {
                errors.fatal_on(&marker.attribute, misplaced(marker.kind));
                continue;
            }
            Member::Marked(method) => method,
        };
        let markers: Vec<Marker> = method.markers().collect();
        let Some((marker, others)) = markers.split_first() else {
            continue;
        };
        for other in others {
            errors.fatal_on(&other.attribute, repeated(marker.kind, other.kind));
            has_flow |= marker.kind == MarkerKind::Step && other.kind == MarkerKind::Flow;
        }
        let options = errors.ok(attr::attribute_tokens(&marker.attribute)).unwrap_or_default();
        match marker.kind {
            MarkerKind::Flow => {
                if has_flow {
                    errors.fatal_on(
                        &marker.attribute,
                        "this impl already has its `#[flow]`: a flow type has one, so call this method from it as a `#[step]` or start it as a flow of its own",
                    );
                }
                has_flow = true;
                let args = FlowArgs::parse(options, errors);
                flow = flow_method(method, args, errors);
                members.push(MemberModel::Flow);
            }
            MarkerKind::Step => {
                let args = StepArgs::parse(options, errors);
                let Some(step) = step(method.clone(), args, Place::FlowImpl, errors) else {
                    continue;
                };
                let name = step.name.value();
                let conditional = method.attrs.iter().any(|a| a.path().is_ident("cfg"));
                // Of two conditional steps only one may be there; the compiler sees to that.
                let taken = names
                    .iter()
                    .any(|(other, other_conditional)| *other == name && !(conditional && *other_conditional));
                if taken {
                    errors.fatal(Error::new(
                        step.name.span(),
                        format!("another step of this flow is already named `{name}`: give this one its own with `#[step(name = \"…\")]`"),
                    ));
                }
                names.push((name, conditional));
                members.push(MemberModel::Step(Box::new(step)));
            }
        }
    }
    if !has_flow && source.header.trait_.is_none() {
        errors.fatal_on(
            &source.header.self_ty,
            "no `#[flow]` in this impl: mark the method that runs the flow, `#[flow] async fn run(&self) -> Result<T, E>`",
        );
    }
    if errors.is_fatal() {
        return None;
    }
    Some(FlowImplModel { flow: flow?, members, source })
}

/// What to say of a second marker on one method.
fn repeated(first: MarkerKind, second: MarkerKind) -> &'static str {
    match (first, second) {
        (MarkerKind::Flow, MarkerKind::Flow) => "`#[flow]` is given twice",
        (MarkerKind::Step, MarkerKind::Step) => "`#[step]` is given twice",
        _ => "a method is the `#[flow]` or a `#[step]`, not both",
    }
}

pub(crate) fn misplaced(kind: MarkerKind) -> &'static str {
    match kind {
        MarkerKind::Flow => {
            "`#[flow]` goes on a method, `async fn run(&self) -> Result<T, E>`, or on a function, \
             `async fn ship(order: Order) -> Result<T, E>`"
        }
        MarkerKind::Step => {
            "`#[step]` goes on a method or a function: `async fn charge(&self, cents: u64) -> Result<T, E>`"
        }
    }
}

fn check_header(source: &FlowImpl, errors: &mut Errors) {
    let header = &source.header;
    if let Some((path, _)) = &header.trait_ {
        errors.fatal_on(path, "`#[flow_type]` goes on an inherent impl: `impl Order { … }`, without a trait");
    }
    if let Some(word) = &header.unsafety {
        errors.fatal_on(word, "`#[flow_type]` goes on an inherent impl, which is not `unsafe`");
    }
    let no_generics = "a flow type cannot be generic: one name stands for one type";
    if !header.generics.params.is_empty() {
        errors.fatal_on(&header.generics.params, no_generics);
        return;
    }
    if let Some(clause) = &header.generics.where_clause {
        errors.fatal_on(clause, no_generics);
    }
    let last = match ungrouped(&header.self_ty) {
        Type::Path(TypePath { qself: None, path, .. }) => path.segments.last(),
        _ => None,
    };
    match last.map(|last| &last.arguments) {
        Some(PathArguments::None) => {}
        Some(arguments) => errors.fatal_on(arguments, no_generics),
        None => errors.fatal_on(&header.self_ty, "`#[flow_type]` goes on the impl of a struct or an enum"),
    }
}

fn flow_method(method: &Method, args: FlowArgs, errors: &mut Errors) -> Option<FlowModel> {
    let sig = &method.sig;
    check_signature(sig, "flow", errors);
    if sig.asyncness.is_none() {
        errors.fatal_on(sig.fn_token, "a flow is an `async fn`");
    }
    check_receiver(sig, "flow", errors);
    for argument in sig.inputs.iter().filter(|input| matches!(input, FnArg::Typed(_))) {
        errors.fatal_on(
            argument,
            "a flow takes `&self` alone: its input is the value it runs on, so make this a field of the flow type",
        );
    }
    flow_model(method.clone(), args, errors)
}

/// How long a worker may be silent that is there.
const TAKEOVER_MIN: Duration = Duration::from_secs(15);
/// Until when others take over where nothing else is said.
const TAKEOVER: Duration = Duration::from_secs(60);
/// The longest patience, and the longest time until a takeover.
const AFFINITY_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

fn checked_affinity(affinity: AffinityArg) -> Result<AffinityModel, Error> {
    let refuse = |literal: &LitStr, message: &str| Err(Error::new(literal.span(), message));
    match affinity {
        AffinityArg::Require(None) => Ok(AffinityModel::Require(Some(TAKEOVER))),
        AffinityArg::Require(Some(text)) if text.value() == "never" => Ok(AffinityModel::Require(None)),
        AffinityArg::Prefer(text) | AffinityArg::Require(Some(text)) if duration::parse(&text)? > AFFINITY_MAX => {
            refuse(&text, "a flow waits for its worker for 365 days at most")
        }
        AffinityArg::Prefer(text) => Ok(AffinityModel::Prefer(duration::parse(&text)?)),
        AffinityArg::Require(Some(text)) => match duration::parse(&text)? {
            takeover if takeover < TAKEOVER_MIN => refuse(
                &text,
                "a worker that is there may be silent for a while: others take over after \"15s\" at the earliest",
            ),
            takeover => Ok(AffinityModel::Require(Some(takeover))),
        },
    }
}

/// What a flow's method and a flow function have in common.
fn flow_model(mut method: Method, args: FlowArgs, errors: &mut Errors) -> Option<FlowModel> {
    let result = checked_result(&method.sig, "flow", errors);
    let name = args.name.and_then(|name| errors.ok(checked_name(&name)));
    let version = args.version.and_then(|version| errors.ok(checked_version(&version)));
    let timeout = args.timeout.and_then(|timeout| errors.ok(duration::parse(&timeout)));
    let retention = args.retention.and_then(|retention| errors.ok(duration::parse(&retention)));
    let affinity = args.affinity.and_then(|affinity| errors.ok(checked_affinity(affinity)));
    if !args.allow_nondeterminism {
        determinism::check(&method.body.stream(), errors);
    }
    method.body = determinism::bias_selects(&method.body);
    Some(FlowModel { method, result: result?, name, version, timeout, retention, affinity })
}

/// `None`, with a fatal error recorded, when the function is to be emitted as it was written.
pub(crate) fn flow_function(mut method: Method, args: FlowArgs, errors: &mut Errors) -> Option<FlowFunctionModel> {
    for other in method.markers() {
        errors.fatal_on(&other.attribute, repeated(MarkerKind::Flow, other.kind));
    }
    check_signature(&method.sig, "flow", errors);
    if method.sig.asyncness.is_none() {
        errors.fatal_on(method.sig.fn_token, "a flow is an `async fn`");
    }
    let arguments = flow_arguments(&mut method.sig, errors);
    let flow = flow_model(method, args, errors);
    if errors.is_fatal() {
        return None;
    }
    let flow = flow?;
    let attrs = &flow.method.attrs;
    Some(FlowFunctionModel {
        name: flow.name.clone().unwrap_or_else(|| flow.method.sig.ident.unraw().to_string()),
        version: flow.version.unwrap_or(1),
        derive_serialize: !derives(attrs, "Serialize"),
        derive_deserialize: !derives(attrs, "Deserialize"),
        set_serde_crate: !sets_serde_crate(attrs),
        arguments,
        flow,
    })
}

/// The arguments of a flow function; their attributes are taken from the signature.
fn flow_arguments(sig: &mut Signature, errors: &mut Errors) -> Vec<FlowArgument> {
    let mut arguments = Vec::new();
    for input in &mut sig.inputs {
        let FnArg::Typed(typed) = input else { continue };
        FlowArgumentType { errors }.visit_type(&typed.ty);
        let attrs = std::mem::take(&mut typed.attrs);
        for attribute in &attrs {
            if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
                errors.fatal_on(attribute, "a flow's arguments cannot be conditional: put the `#[cfg]` on the flow");
            }
        }
        match &*typed.pat {
            Pat::Ident(pattern) if pattern.subpat.is_none() && pattern.by_ref.is_none() => {
                arguments.push(FlowArgument { attrs, name: pattern.ident.clone(), ty: (*typed.ty).clone() });
            }
            pattern => errors.fatal_on(
                pattern,
                "a flow's arguments are recorded by their names: name this one, and take it apart in the body",
            ),
        }
    }
    arguments
}

/// Looks for what a flow's argument cannot be, anywhere in its type.
struct FlowArgumentType<'a> {
    errors: &'a mut Errors,
}

impl<'ast> Visit<'ast> for FlowArgumentType<'_> {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        self.errors.fatal_on(
            reference.and_token,
            "a flow's arguments are read back from the log, so they are owned values: take `String` for `&str`, `T` for `&T`",
        );
    }

    fn visit_generic_argument(&mut self, argument: &'ast GenericArgument) {
        if let GenericArgument::Lifetime(lifetime) = argument
            && !is_static(Some(lifetime))
        {
            self.errors.fatal_on(lifetime, "a flow's arguments are read back from the log, so they are owned values");
        }
        visit::visit_generic_argument(self, argument);
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast syn::TypeImplTrait) {
        self.errors.fatal_on(ty.impl_token, "a flow cannot be generic: name one type for this argument");
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if let Some(last) = path.segments.last()
            && last.ident == "HashSet"
        {
            self.errors.fatal_on(
                &last.ident,
                "a flow's arguments are compared on replay, and a `HashSet` has another order each time: take a `BTreeSet`",
            );
        }
        visit::visit_path(self, path);
    }
}

/// Where a step stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In an impl with `#[flow_type]` on it.
    FlowImpl,
    /// Anywhere else: a free function, or a method of an ordinary impl.
    Alone,
}

/// `None`, with a fatal error recorded, when the function is to be emitted as it was written.
pub(crate) fn step(method: Method, args: StepArgs, place: Place, errors: &mut Errors) -> Option<StepModel> {
    if place == Place::Alone {
        for other in method.markers() {
            errors.fatal_on(&other.attribute, repeated(MarkerKind::Step, other.kind));
        }
    }
    let sig = &method.sig;
    check_signature(sig, "step", errors);
    let transaction = args.transaction.as_ref().map(|word| check_transaction(sig, &args, word, errors));
    match (&sig.asyncness, &args.blocking) {
        _ if transaction.is_some() => {}
        (None, None) => errors.fatal_on(
            sig.fn_token,
            "a step is an `async fn`; for work that blocks its thread write `#[step(blocking)]`",
        ),
        (Some(word), Some(_)) => errors.fatal_on(
            word,
            "a blocking step is a plain `fn`, which runs on a thread of its own: remove `async` here or `blocking` above",
        ),
        _ => {}
    }
    if let (Some(word), Some(_)) = (&args.at_most_once, &args.transaction) {
        errors.fatal_on(word, "a `transaction` happens exactly once already: remove `at_most_once`");
    }
    let at_most_once = args.at_most_once.is_some();
    let blocking = args.blocking.is_some();
    let receiver = match sig.receiver() {
        None if place == Place::Alone => None,
        _ => check_receiver(sig, "step", errors),
    };
    let (arguments, borrowed) = check_arguments(sig, blocking, transaction, errors);
    let result = checked_result(sig, "step", errors);
    let name = args
        .name
        .and_then(|name| errors.ok(checked_name(&name)).map(|_| name))
        .unwrap_or_else(|| LitStr::new(&sig.ident.unraw().to_string(), sig.ident.span()));
    let timeout = args.timeout.and_then(|timeout| errors.ok(duration::parse(&timeout)));
    let heartbeat_timeout = args.heartbeat_timeout.and_then(|silence| {
        let parsed = errors.ok(duration::parse(&silence))?;
        if timeout.is_some_and(|timeout| timeout <= parsed) {
            errors.fatal_on(
                &silence,
                "an attempt is over at its `timeout`, before this has passed: give a shorter `heartbeat_timeout`",
            );
        }
        Some(parsed)
    });
    let retry = args.retry.map(|retry| checked_retry(retry, errors));
    Some(StepModel {
        borrows: receiver.is_some() || borrowed,
        receiver,
        arguments,
        result: result?,
        blocking,
        transaction,
        at_most_once,
        name,
        retry,
        timeout,
        heartbeat_timeout,
        method,
    })
}

/// Whose transaction the step gets.
fn check_transaction(sig: &Signature, args: &StepArgs, word: &Ident, errors: &mut Errors) -> Database {
    if let Some(blocking) = &args.blocking {
        errors.fatal_on(
            blocking,
            "a `transaction` of SQLite runs on a thread of its own already, and one of PostgreSQL is an `async fn`: remove `blocking`",
        );
    }
    if let (Some(timeout), None) = (&args.timeout, &sig.asyncness) {
        errors.fatal_on(
            timeout,
            "a `transaction` of SQLite cannot be cut off, it would happen after its time: remove `timeout`",
        );
    }
    if let (Some(timeout), None) = (&args.heartbeat_timeout, &sig.asyncness) {
        errors.fatal_on(
            timeout,
            "a `transaction` of SQLite cannot be cut off, and nothing is written beside it: remove `heartbeat_timeout`",
        );
    }
    let first = sig.inputs.iter().find_map(|input| match input {
        FnArg::Typed(typed) => Some(ungrouped(&typed.ty)),
        FnArg::Receiver(_) => None,
    });
    if !matches!(first, Some(Type::Reference(reference)) if reference.mutability.is_none()) {
        errors.fatal_on(
            word,
            "the first argument of a `transaction` is the transaction: `tx: &sqlite::Transaction<'_>` in a plain `fn`, `tx: &postgres::Transaction<'_>` in an `async fn`",
        );
    }
    if sig.asyncness.is_some() { Database::Postgres } else { Database::Sqlite }
}

/// The type inside parentheses and the invisible delimiters of a `macro_rules!` fragment.
fn ungrouped(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => ungrouped(&group.elem),
        Type::Paren(paren) => ungrouped(&paren.elem),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ast::Target;

    /// What is refused in a step that stands in a flow's impl.
    fn step_mistakes(args: &str, method: &str) -> Vec<String> {
        let mut errors = Errors::default();
        let args = StepArgs::parse(args.parse().unwrap(), &mut errors);
        let model = step(syn::parse_str(method).unwrap(), args, Place::FlowImpl, &mut errors);
        assert!(model.is_some() || errors.is_fatal(), "{method}");
        errors.messages()
    }

    fn impl_mistakes(source: &str) -> Vec<String> {
        let mut errors = Errors::default();
        let Ok(Target::Impl(source)) = Target::parse(source.parse().unwrap()) else {
            panic!("{source}");
        };
        flow_impl(&TokenStream::new(), source, &mut errors);
        errors.messages()
    }

    fn type_mistakes(args: &str, item: &str) -> Vec<String> {
        let mut errors = Errors::default();
        let args = FlowTypeArgs::parse(args.parse().unwrap(), &mut errors);
        flow_type(syn::parse_str(item).unwrap(), args, &mut errors);
        errors.messages()
    }

    fn one(mistakes: &[String], expect: &str) {
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(mistakes[0].contains(expect), "{mistakes:?}");
    }

    #[test]
    fn option_bounds_are_checked() {
        let check = |args: &str, expect: &str| {
            one(&step_mistakes(args, "async fn a(&self) -> Result<(), E> {}"), expect);
        };
        check("name = \"\"", "cannot be empty");
        check("name = \"a\\nb\"", "control characters");
        check(&format!("name = \"{}\"", "a".repeat(129)), "at most 128 bytes");
        check("timeout = \"0s\"", "longer than zero");
        check("heartbeat_timeout = \"0s\"", "longer than zero");
        check("heartbeat_timeout = \"10s\", timeout = \"10s\"", "give a shorter `heartbeat_timeout`");
        check("retry(max_attempts = 0)", "from 1 to 4294967295");
        check("retry(max_attempts = 4294967296)", "from 1 to 4294967295");
        check("retry(multiplier = 0.5)", "from 1.0 to 100.0");
        check("retry(multiplier = 101)", "from 1.0 to 100.0");
        check("retry(jitter = 1.5)", "from 0.0 to 1.0");
        check("retry(jitter = -0.1)", "from 0.0 to 1.0");
        check("retry(backoff = \"1s..30s\", max = \"1m\")", "remove `max`");
        check("retry(backoff = \"1m\", max = \"1s\")", "shorter than the first");
        check("retry(backoff = \"2s..1s\")", "ends before it begins");
    }

    #[test]
    fn bounds_are_inclusive() {
        let name = format!("name = \"{}\"", "a".repeat(128));
        for args in [
            &name,
            "retry(max_attempts = 1, multiplier = 1, jitter = 0)",
            "retry(max_attempts = 4294967295, multiplier = 100.0, jitter = 1.0)",
            "retry(backoff = \"1s\", max = \"1s\")",
            "timeout = \"3650days\"",
            "heartbeat_timeout = \"9999ms\", timeout = \"10s\"",
        ] {
            let mistakes = step_mistakes(args, "async fn a(&self) -> Result<(), E> {}");
            assert_eq!(mistakes, Vec::<String>::new(), "{args}");
        }
    }

    #[test]
    fn step_signatures_are_checked() {
        let check = |method: &str, expect: &str| one(&step_mistakes("", method), expect);
        check("fn a(&self) -> Result<(), E> {}", "`#[step(blocking)]`");
        check("async unsafe fn a(&self) -> Result<(), E> {}", "cannot be `unsafe`");
        check("async extern \"C\" fn a(&self) -> Result<(), E> {}", "without `extern`");
        check("async fn a<T>(&self) -> Result<(), E> {}", "cannot be generic");
        check("async fn a<'a>(&self, b: &'a str) -> Result<(), E> {}", "cannot be generic");
        check("async fn a(&self, b: impl Into<String>) -> Result<(), E> {}", "cannot be generic");
        check("async fn a() -> Result<(), E> {}", "takes `&self`");
        check("async fn a(self) -> Result<(), E> {}", "takes `&self`");
        check("async fn a(&mut self) -> Result<(), E> {}", "lost on replay");
        check("async fn a(&'static self) -> Result<(), E> {}", "without a lifetime");
        check("async fn a(self: Arc<Self>) -> Result<(), E> {}", "takes `&self`");
        check("async fn a(&self, b: &mut u8) -> Result<(), E> {}", "return what changes");
        check("async fn a(&self, b: &HashSet<u8>) -> Result<(), E> {}", "`BTreeSet`");
        check("async fn a(&self, b: Vec<std::collections::HashSet<u8>>) -> Result<(), E> {}", "`BTreeSet`");
        check("async fn a(&self, #[cfg(x)] b: u8) -> Result<(), E> {}", "cannot be conditional");
        check("async fn a(&self) {}", "a step returns `Result<T, E>`");
        check("async fn a(&self) -> u8 {}", "a step returns `Result<T, E>`");
        check("async fn a(&self) -> (u8, u8) {}", "a step returns `Result<T, E>`");
        check("async fn a(&self) -> Option<u8> {}", "a step returns `Result<T, E>`");
        check("async fn a(&self) -> &str {}", "a step returns `Result<T, E>`");
        check("async fn a(&self) -> Result<&str, E> {}", "cannot borrow");
        check("async fn a(&self) -> Result<impl Copy, E> {}", "name its type");
        check("async fn __ergon_a(&self) -> Result<(), E> {}", "kept for generated code");
        let many = ", a: u8".repeat(13);
        check(&format!("async fn a(&self{many}) -> Result<(), E> {{}}"), "at most 12 arguments");
        assert!(step_mistakes("", "async fn a(&self, f: fn(&str) -> u8) -> io::Result<()> {}").is_empty());
    }

    #[test]
    fn blocking_steps_are_checked() {
        let check = |method: &str, expect: &str| one(&step_mistakes("blocking", method), expect);
        check("async fn a(&self) -> Result<(), E> {}", "remove `async`");
        check("fn a(&self, b: &str) -> Result<(), E> {}", "owned values");
        check("fn a(&self, b: Cow<'_, str>) -> Result<(), E> {}", "owned values");
        assert!(step_mistakes("blocking", "fn a(&self, b: &'static str) -> Result<(), E> {}").is_empty());
    }

    #[test]
    fn a_transaction_is_not_at_most_once() {
        let step = "fn a(&self, tx: &Transaction<'_>) -> Result<(), E> {}";
        one(&step_mistakes("transaction, heartbeat_timeout = \"1s\"", step), "remove `heartbeat_timeout`");
        one(&step_mistakes("transaction, at_most_once", step), "remove `at_most_once`");
        for args in ["at_most_once", "at_most_once, timeout = \"1s\"", "at_most_once, retry(max_attempts = 3)"] {
            assert_eq!(step_mistakes(args, "async fn a(&self) -> Result<(), E> {}"), Vec::<String>::new(), "{args}");
        }
        assert!(step_mistakes("at_most_once, blocking", "fn a(&self) -> Result<(), E> {}").is_empty());
    }

    #[test]
    fn impls_are_checked() {
        const FLOW: &str = "#[flow] async fn run(&self) -> Result<(), E> {}";
        let check = |source: &str, expect: &str| one(&impl_mistakes(&source.replace("FLOW", FLOW)), expect);
        check("impl Order {}", "no `#[flow]` in this impl");
        check("impl Order { FLOW #[flow] async fn b(&self) -> Result<(), E> {} }", "already has its `#[flow]`");
        check("impl Job for Order { FLOW }", "inherent impl");
        check("impl<T> Order<T> { FLOW }", "cannot be generic");
        check("impl Order<u8> { FLOW }", "cannot be generic");
        check("impl [u8] { FLOW }", "a struct or an enum");
        check("impl Order { FLOW #[step] const A: u8 = 1; }", "goes on a method");
        check("impl Order { #[step] FLOW }", "not both");
        check("impl Order { #[flow] fn run(&self) -> Result<(), E> {} }", "a flow is an `async fn`");
        check("impl Order { #[flow] async fn run(&self, a: u8) -> Result<(), E> {} }", "a field");
        check("impl Order { #[flow] async fn run(&self) {} }", "a flow returns");
        check("impl Order { #[flow(version = 0)] async fn run(&self) -> R {} }", "`version` is a whole number");
        check("impl Order { #[flow] async fn run(&self) -> R { Utc::now() } }", "`ergon::now()`");
        check("impl Order { FLOW #[step = \"a\"] async fn a(&self) -> R {} }", "in parentheses: `#[step(…)]`");
        check(
            "impl Order { FLOW #[step] async fn a(&self) -> R {} #[step(name = \"a\")] async fn b(&self) -> R {} }",
            "already named `a`",
        );
    }

    #[test]
    fn what_is_right_is_not_refused() {
        let check = |source: &str| assert_eq!(impl_mistakes(source), Vec::<String>::new(), "{source}");
        check(
            "impl Order { #[ergon::flow] async fn run(&self) -> R {}
               #[cfg(a)] #[step] async fn a(&self) -> R {} #[cfg(not(a))] #[step] async fn a(&self) -> R {} }",
        );
        check("impl Order { #[flow(allow(nondeterminism))] async fn run(&self) -> R { Utc::now() } }");
        check("impl Order { #[flow] async fn run(&self) -> R {} #[step] async fn a(&self) -> R { Utc::now() } }");
    }

    #[test]
    fn types_are_checked() {
        let check = |args: &str, item: &str, expect: &str| one(&type_mistakes(args, item), expect);
        check("", "struct Order<T>(T);", "cannot be generic");
        check("", "struct Order<'a>(&'a str);", "cannot be generic");
        check("", "union Order { a: u8 }", "a struct or an enum");
        check("name = \"\"", "struct Order;", "cannot be empty");
        check("version = 0", "struct Order;", "from 1 to");
        check("version = -1", "struct Order;", "takes a whole number");
        check("nam = \"a\"", "struct Order;", "did you mean `name`?");
        assert!(type_mistakes("name = \"a\", version = 7", "enum Order { A }").is_empty());
    }

    #[test]
    fn derives_of_the_author_are_seen() {
        let derived = |item: &str| {
            let item = syn::parse_str(item).unwrap();
            let model = flow_type(item, FlowTypeArgs::default(), &mut Errors::default()).unwrap();
            (model.derive_serialize, model.derive_deserialize, model.set_serde_crate)
        };
        assert_eq!(derived("struct A;"), (true, true, true));
        assert_eq!(derived("#[derive(Clone, Serialize)] struct A;"), (false, true, true));
        assert_eq!(derived("#[derive(serde::Deserialize)] struct A;"), (true, false, true));
        assert_eq!(derived("#[derive(Serialize)] #[derive(Deserialize)] struct A;"), (false, false, true));
        assert_eq!(
            derived("#[serde(rename_all = \"camelCase\", bound(serialize = \"\"), crate = \"s\")] struct A;"),
            (true, true, false)
        );
    }
}
