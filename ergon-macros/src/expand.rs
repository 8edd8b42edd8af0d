//! From checked models to tokens. Nothing here can fail, and nothing here decides.
//!
//! Local names carry the span of the macro's definition, so that they cannot meet an argument of
//! the same name. What the compiler may complain about carries the place the author can change.

use std::time::Duration;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{AttrStyle, Attribute, FnArg, Index, Signature, Type, ext::IdentExt, spanned::Spanned, token::SelfValue};

use crate::{
    ast::{FlowImpl, Method},
    model::{
        AffinityModel, Database, FlowArgument, FlowFunctionModel, FlowImplModel, FlowModel, FlowTypeModel, MemberModel,
        RetryModel, RetryOptions, StepModel, step_lifetime,
    },
};

/// The argument of an attribute that stands on nothing, see [`mentions`].
pub(crate) const MENTION: &str = "__ergon_mention";

/// What pedantic readers of an async method would like to see changed, and its author cannot.
fn allow_required_shape() -> TokenStream {
    quote! {
        #[allow(
            clippy::unused_async,
            clippy::unused_self,
            clippy::trivially_copy_pass_by_ref,
            clippy::unnecessary_wraps
        )]
    }
}

pub(crate) fn flow_type(model: &FlowTypeModel) -> TokenStream {
    let FlowTypeModel { item, name, version, derive_serialize, derive_deserialize, set_serde_crate } = model;
    let ident = &item.ident;
    let serialize = derive_serialize.then(|| quote!(::ergon::__private::serde::Serialize,));
    let deserialize = derive_deserialize.then(|| quote!(::ergon::__private::serde::Deserialize,));
    let derives = *derive_serialize || *derive_deserialize;
    let derive = derives.then(|| quote!(#[derive(#serialize #deserialize)]));
    let serde_crate = (derives && *set_serde_crate).then(|| quote!(#[serde(crate = "::ergon::__private::serde")]));
    // The macros that join futures hold `unsafe` blocks; a flow's methods use them, not its data.
    let allow = derive_deserialize.then(|| quote!(#[allow(clippy::unsafe_derive_deserialize)]));
    let conditions = conditions(&item.attrs);
    quote! {
        #allow
        #derive
        #serde_crate
        #item

        #(#conditions)*
        const _: () = {
            #[automatically_derived]
            impl ::ergon::FlowType for #ident {
                const NAME: &'static str = #name;
                const VERSION: u32 = #version;
            }
        };
    }
}

pub(crate) fn flow_impl(model: &FlowImplModel) -> TokenStream {
    let flow = flow_method(&model.flow);
    let members = model.members.iter().map(|member| match member {
        MemberModel::Flow => flow.clone(),
        MemberModel::Step(step) => self::step(step),
        MemberModel::Other(item) => item.clone(),
    });
    let inherent = model.source.with_members(&quote!(#(#members)*));
    let implementation = implementation(model);
    quote! {
        #inherent
        #implementation
    }
}

/// Uses the attributes `flow` and `step` of an impl once more, each on nothing.
///
/// The macro has taken the author's attributes away, and an import of them would be unused.
pub(crate) fn mentions(source: &FlowImpl) -> TokenStream {
    let mention = Ident::new(MENTION, Span::call_site());
    let paths = source.markers().map(|marker| marker.attribute.path().clone());
    quote!(#(#[#paths(#mention)] const _: () = ();)*)
}

fn flow_method(flow: &FlowModel) -> TokenStream {
    let allow = allow_required_shape();
    let method = &flow.method;
    quote!(#allow #method)
}

fn implementation(model: &FlowImplModel) -> TokenStream {
    let FlowModel { method, result, name, version, timeout, retention, affinity } = &model.flow;
    let self_ty = &model.source.header.self_ty;
    let conditions = conditions(&model.source.header.attrs);
    let flow_conditions = self::conditions(&method.attrs);
    let steps = model.members.iter().filter_map(|member| match member {
        MemberModel::Step(step) => {
            let conditions = self::conditions(&step.method.attrs);
            let name = &step.name;
            Some(quote!(#(#conditions)* #name))
        }
        MemberModel::Flow | MemberModel::Other(_) => None,
    });
    let transactions = model.members.iter().filter_map(|member| match member {
        MemberModel::Step(step) => {
            let conditions = self::conditions(&step.method.attrs);
            let database = match step.transaction? {
                Database::Sqlite => quote!(Sqlite),
                Database::Postgres => quote!(Postgres),
            };
            let name = &step.name;
            Some(quote!(#(#conditions)* (#name, ::ergon::storage::Database::#database)))
        }
        MemberModel::Flow | MemberModel::Other(_) => None,
    });
    let run = &method.sig.ident;
    let implementation = FlowTokens {
        self_ty: quote!(#self_ty),
        result,
        name: name.as_ref().map(|name| quote!(const NAME: &'static str = #name;)),
        version: version.map(|version| quote!(const VERSION: u32 = #version;)),
        timeout: *timeout,
        retention: *retention,
        affinity: *affinity,
        steps: quote!(#(#steps),*),
        transactions: quote!(#(#transactions),*),
        body: quote!(Self::#run(&self).await),
        place: run.span(),
    }
    .implementation();
    quote! {
        #(#conditions)*
        #(#flow_conditions)*
        const _: () = {
            #implementation
        };
    }
}

/// What differs from one implementation of `Flow` to another.
struct FlowTokens<'a> {
    self_ty: TokenStream,
    result: &'a Type,
    /// The constants, where they are not those of the type.
    name: Option<TokenStream>,
    version: Option<TokenStream>,
    timeout: Option<Duration>,
    retention: Option<Duration>,
    affinity: Option<AffinityModel>,
    steps: TokenStream,
    transactions: TokenStream,
    /// The code, which owns `self`.
    body: TokenStream,
    /// Where the author named the code.
    place: Span,
}

impl FlowTokens<'_> {
    fn implementation(&self) -> TokenStream {
        let Self { self_ty, result, name, version, timeout, retention, affinity, steps, transactions, body, place } =
            self;
        let (ok, err) = outcome(result);
        let (timeout, retention) = (duration_or_none(*timeout), duration_or_none(*retention));
        let affinity = affinity.map(self::affinity);
        let pin = quote_spanned!(at(*place)=> ::std::boxed::Box::pin);
        quote! {
            #[automatically_derived]
            impl ::ergon::Flow for #self_ty {
                type Output = #ok;
                type Error = #err;
                #name
                #version
                const TIMEOUT: ::core::option::Option<::core::time::Duration> = #timeout;
                const RETENTION: ::core::option::Option<::core::time::Duration> = #retention;
                #affinity
                const STEPS: &'static [&'static str] = &[#steps];
                const TRANSACTIONS: &'static [(&'static str, ::ergon::storage::Database)] = &[#transactions];

                fn execute(
                    self,
                ) -> ::core::pin::Pin<
                    ::std::boxed::Box<
                        dyn ::core::future::Future<
                                Output = ::core::result::Result<#ok, #err>,
                            > + ::core::marker::Send,
                    >,
                > {
                    #pin(async move { #body })
                }

                fn error_caps() -> ::ergon::__private::ErrorCaps<#err> {
                    ::ergon::__private::error_caps!(#err)
                }
            }
        }
    }
}

/// A function as a flow: a type that holds its arguments, a function of the same name that makes one, and the body
/// out of sight.
pub(crate) fn flow_function(model: &FlowFunctionModel) -> TokenStream {
    let FlowFunctionModel { flow, arguments, name, version, derive_serialize, derive_deserialize, set_serde_crate } =
        model;
    let FunctionAttributes { ty, call, inner } = FunctionAttributes::split(&flow.method.attrs);
    let conditions = conditions(&flow.method.attrs);
    let serialize = derive_serialize.then(|| quote!(::ergon::__private::serde::Serialize,));
    let deserialize = derive_deserialize.then(|| quote!(::ergon::__private::serde::Deserialize,));
    let derives = *derive_serialize || *derive_deserialize;
    let derive = derives.then(|| quote!(#[derive(#serialize #deserialize)]));
    let serde_crate = (derives && *set_serde_crate).then(|| quote!(#[serde(crate = "::ergon::__private::serde")]));
    let Method { vis, sig, body, .. } = &flow.method;
    let ident = &sig.ident;
    let fn_token = &sig.fn_token;
    let fields = arguments.iter().map(|FlowArgument { attrs, name, ty }| quote!(#(#attrs)* #name: #ty));
    let names: Vec<&Ident> = arguments.iter().map(|argument| &argument.name).collect();
    let types: Vec<&Type> = arguments.iter().map(|argument| &argument.ty).collect();
    let mut code = sig.clone();
    code.ident = format_ident!("__ergon_flow_{}", ident.unraw(), span = ident.span());
    let code_name = &code.ident;
    let allow = allow_required_shape();
    let implementation = FlowTokens {
        self_ty: quote!(#ident),
        result: &flow.result,
        name: None,
        version: None,
        timeout: flow.timeout,
        retention: flow.retention,
        affinity: flow.affinity,
        steps: TokenStream::new(),
        transactions: TokenStream::new(),
        body: quote!({
            let Self { #(#names),* } = self;
            #code_name(#(#names),*).await
        }),
        place: ident.span(),
    }
    .implementation();
    quote! {
        #derive
        #serde_crate
        #(#ty)*
        #[allow(non_camel_case_types, clippy::unsafe_derive_deserialize)]
        #[must_use = "calling a flow runs nothing: give it to `Scheduler::schedule`, or to `child` inside a flow"]
        #vis struct #ident { #(#fields),* }

        #(#call)*
        #[allow(dead_code, clippy::too_many_arguments)]
        #vis #fn_token #ident(#(#names: #types),*) -> #ident {
            #ident { #(#names),* }
        }

        #(#conditions)*
        const _: () = {
            #(#inner)*
            #allow
            #[allow(clippy::needless_pass_by_value)]
            #code #body

            #[automatically_derived]
            impl ::ergon::FlowType for #ident {
                const NAME: &'static str = #name;
                const VERSION: u32 = #version;
            }

            #implementation
        };
    }
}

/// The attributes of a flow function, for what it becomes.
struct FunctionAttributes<'a> {
    ty: Vec<&'a Attribute>,
    call: Vec<&'a Attribute>,
    inner: Vec<&'a Attribute>,
}

impl<'a> FunctionAttributes<'a> {
    fn split(attrs: &'a [Attribute]) -> Self {
        let (mut ty, mut call, mut inner) = (Vec::new(), Vec::new(), Vec::new());
        for attribute in attrs {
            let is = |names: &[&str]| names.iter().any(|name| attribute.path().is_ident(name));
            if is(&["cfg", "cfg_attr", "allow", "warn", "deny", "forbid"]) {
                ty.push(attribute);
                call.push(attribute);
                inner.push(attribute);
            } else if is(&["doc", "deprecated"]) {
                ty.push(attribute);
                call.push(attribute);
            } else if is(&["derive", "serde"]) {
                ty.push(attribute);
            } else if !is(&["must_use", "track_caller"]) {
                // Such as `#[tracing::instrument]` or `#[expect]`: they are about the body.
                inner.push(attribute);
            }
        }
        Self { ty, call, inner }
    }
}

/// The calling side of a step and, for a method, its body beside it.
pub(crate) fn step(step: &StepModel) -> TokenStream {
    let Attributes { outer, inner } = Attributes::split(&step.method.attrs);
    let body = step_body(step, &inner);
    let (beside, within) = match step.receiver {
        Some(_) => (Some(body), None),
        None => (None, Some(body)),
    };
    let vis = &step.method.vis;
    let name = &step.method.sig.ident;
    let fn_token = &step.method.sig.fn_token;
    let lifetime = step_lifetime();
    let generics = step.borrows.then(|| quote!(<#lifetime>));
    let receiver = receiver(&step.method.sig);
    let names: Vec<&Ident> = step.arguments.iter().map(|argument| &argument.name).collect();
    let types: Vec<&Type> = step.arguments.iter().map(|argument| &argument.ty).collect();
    let future_lifetime = if step.borrows { quote!(#lifetime) } else { quote!('static) };
    let (ok, err) = outcome(&step.result);
    let place = at(step.result.span());
    let output = quote_spanned!(place=> ::ergon::Step<#future_lifetime, #ok, #err>);
    let enter = quote_spanned!(place=> ::ergon::__private::step);
    let caps = quote_spanned!(place=> ::ergon::__private::error_caps!(#err));
    let hashed = hashed(step);
    let args = Ident::new("args", Span::mixed_site());
    let hash = Ident::new("hash", Span::mixed_site());
    let spec = spec(step);
    let attempt = attempt(step, &args);
    quote! {
        #(#outer)*
        #[allow(clippy::used_underscore_binding, clippy::too_many_arguments)]
        #[track_caller]
        #vis #fn_token #name #generics(#receiver #(#names: #types),*) -> #output {
            #within
            let #hash = #hashed;
            let #args = (#(#names,)*);
            #enter(
                const { &#spec },
                #hash,
                #caps,
                move || #attempt,
            )
        }

        #beside
    }
}

/// `&'ergon self,` with the tokens of the author's `&self`.
fn receiver(sig: &Signature) -> Option<TokenStream> {
    let FnArg::Receiver(receiver) = sig.inputs.first()? else {
        return None;
    };
    let (lifetime, this) = (step_lifetime(), receiver.self_token);
    Some(quote!(&#lifetime #this,))
}

/// The hash of the arguments.
///
/// Each is named with its type wherever it has to be one: the compiler says once what it says of one place.
fn hashed(step: &StepModel) -> TokenStream {
    let arguments = step.arguments.iter().map(|argument| {
        let (name, ty) = (&argument.name, &argument.ty);
        quote_spanned!(at(ty.span())=> .and::<#ty>(&#name))
    });
    quote!(::ergon::__private::ArgsHash::new() #(#arguments)*)
}

/// The arguments once more, as a tuple.
fn tuple_of_copies(step: &StepModel, args: &Ident) -> TokenStream {
    let copies = step.arguments.iter().enumerate().map(|(index, argument)| {
        let (index, ty) = (Index::from(index), &argument.ty);
        let copy = quote_spanned!(at(ty.span())=> ::ergon::__private::copy_of_arg);
        quote!(#copy::<#ty>(&#args.#index))
    });
    quote!((#(#copies,)*))
}

/// The flow's value once more, for a body that runs on another thread.
fn copy_of_self(this: SelfValue) -> TokenStream {
    quote_spanned!(at(this.span)=> ::ergon::__private::copy_of_self::<Self>(#this))
}

/// One attempt at the step: a pinned future that owns its copies of the arguments.
fn attempt(step: &StepModel, args: &Ident) -> TokenStream {
    let names: Vec<&Ident> = step.arguments.iter().map(|argument| &argument.name).collect();
    let copies = (!names.is_empty()).then(|| {
        let tuple = tuple_of_copies(step, args);
        quote!(let (#(#names,)*) = #tuple;)
    });
    let body = body_name(&step.method.sig.ident);
    let place = at(step.method.sig.ident.span());
    let pin = quote_spanned!(place=> ::std::boxed::Box::pin);
    if let Some(database) = step.transaction {
        return transaction(step, database, args, &pin);
    }
    match (step.receiver, step.blocking) {
        (Some(this), false) => quote!({ #copies #pin(Self::#body(#this, #(#names),*)) }),
        (None, false) => quote!({ #copies #pin(#body(#(#names),*)) }),
        (Some(this), true) => {
            let own = Ident::new("this", Span::mixed_site());
            let value = copy_of_self(this);
            quote!({
                #copies
                let #own = #value;
                #pin(::ergon::__private::blocking(move || Self::#body(&#own, #(#names),*)))
            })
        }
        (None, true) => quote!({
            #copies
            #pin(::ergon::__private::blocking(move || #body(#(#names),*)))
        }),
    }
}

/// One attempt at a step that is a transaction, which gets copies of the arguments each time that it runs.
fn transaction(step: &StepModel, database: Database, args: &Ident, pin: &TokenStream) -> TokenStream {
    let names: Vec<&Ident> = step.arguments.iter().map(|argument| &argument.name).collect();
    let body = body_name(&step.method.sig.ident);
    let [tx, own, kept] = ["tx", "this", "kept"].map(|name| Ident::new(name, Span::mixed_site()));
    let (_, err) = outcome(&step.result);
    let copies = |from: &Ident| {
        let tuple = tuple_of_copies(step, from);
        (!names.is_empty()).then(|| quote!(let (#(#names,)*) = #tuple;))
    };
    let tuple = tuple_of_copies(step, args);
    let caps = quote!(::ergon::__private::error_caps!(#err));
    match database {
        Database::Sqlite => {
            let keep = quote!(let #kept = #tuple;);
            let again = copies(&kept);
            let (this, call) = match step.receiver {
                Some(this) => {
                    let value = copy_of_self(this);
                    (Some(quote!(let #own = #value;)), quote!(Self::#body(&#own, #tx, #(#names),*)))
                }
                None => (None, quote!(#body(#tx, #(#names),*))),
            };
            quote!({
                #this
                #keep
                #pin(::ergon::sqlite::transact_with(#caps, move |#tx: &::ergon::sqlite::Transaction<'_>| {
                    #again
                    #call
                }))
            })
        }
        Database::Postgres => {
            let again = copies(args);
            let call = step
                .receiver
                .map_or_else(|| quote!(#body(#tx, #(#names),*)), |this| quote!(Self::#body(#this, #tx, #(#names),*)));
            let keep = quote!(let #args = #tuple;);
            quote!({
                #keep
                #pin(::ergon::postgres::transact_with(#caps, move |#tx, _| {
                    #again
                    #pin(#call)
                }))
            })
        }
    }
}

/// The author's function under another name.
fn step_body(step: &StepModel, attrs: &[&Attribute]) -> TokenStream {
    let allow = allow_required_shape();
    let Method { sig, body, .. } = &step.method;
    let mut sig = sig.clone();
    sig.ident = body_name(&sig.ident);
    // A blocking step owns its arguments whether its body consumes them or not.
    let owned = (step.blocking || step.transaction.is_some()).then(|| quote!(#[allow(clippy::needless_pass_by_value)]));
    quote! {
        #(#attrs)*
        #allow
        #owned
        #[allow(dead_code)]
        #[doc(hidden)]
        #sig #body
    }
}

fn body_name(name: &Ident) -> Ident {
    format_ident!("__ergon_step_{}", name.unraw(), span = name.span())
}

fn spec(step: &StepModel) -> TokenStream {
    let name = &step.name;
    let retry = step.retry.as_ref().map(|retry| {
        let policy = match retry {
            RetryModel::Named(constant) => quote!(::ergon::RetryPolicy::#constant),
            RetryModel::Policy(policy) => quote!(#policy),
            RetryModel::Options(options) => retry_options(options),
        };
        quote!(.retry(#policy))
    });
    let timeout = step.timeout.map(|timeout| {
        let timeout = duration(timeout);
        quote!(.timeout(#timeout))
    });
    let heartbeat_timeout = step.heartbeat_timeout.map(|timeout| {
        let timeout = duration(timeout);
        quote!(.heartbeat_timeout(#timeout))
    });
    // First, for it has a policy of its own.
    let at_most_once = step.at_most_once.then(|| quote!(.at_most_once()));
    quote!(::ergon::__private::StepSpec::new(#name) #at_most_once #retry #timeout #heartbeat_timeout)
}

fn retry_options(options: &RetryOptions) -> TokenStream {
    let max_attempts = options.max_attempts.map(|count| quote!(.max_attempts(#count)));
    let backoff = options.backoff.map(|backoff| {
        let backoff = duration(backoff);
        quote!(.backoff(#backoff))
    });
    let max = options.backoff_max.map(|max| {
        let max = duration(max);
        quote!(.max_backoff(#max))
    });
    let multiplier = options.multiplier.map(|number| quote!(.multiplier(#number)));
    let jitter = options.jitter.map(|number| quote!(.jitter(#number)));
    quote!(::ergon::RetryPolicy::new() #max_attempts #backoff #max #multiplier #jitter)
}

/// The constant, for a type that does not leave it as it is.
fn affinity(affinity: AffinityModel) -> TokenStream {
    let value = match affinity {
        AffinityModel::Prefer(patience) => {
            let patience = duration(patience);
            quote!(Prefer { patience: #patience })
        }
        AffinityModel::Require(None) => quote!(Require { takeover: ::ergon::Takeover::Never }),
        AffinityModel::Require(Some(takeover)) => {
            let takeover = duration(takeover);
            quote!(Require { takeover: ::ergon::Takeover::After(#takeover) })
        }
    };
    quote!(const AFFINITY: ::ergon::Affinity = ::ergon::Affinity::#value;)
}

fn duration_or_none(duration: Option<Duration>) -> TokenStream {
    let some = duration.map(self::duration).map(|duration| quote!(::core::option::Option::Some(#duration)));
    some.unwrap_or_else(|| quote!(::core::option::Option::None))
}

fn duration(duration: Duration) -> TokenStream {
    let (secs, nanos) = (duration.as_secs(), duration.subsec_nanos());
    quote!(::core::time::Duration::new(#secs, #nanos))
}

/// The value and the error of a result type, which may be an alias.
fn outcome(result: &Type) -> (TokenStream, TokenStream) {
    let place = at(result.span());
    (
        quote_spanned!(place=> <#result as ::ergon::__private::Outcome>::Ok),
        quote_spanned!(place=> <#result as ::ergon::__private::Outcome>::Err),
    )
}

/// Where the author wrote something, for code that we wrote.
fn at(place: Span) -> Span {
    Span::mixed_site().located_at(place)
}

/// The attributes of a step, for the calling side and for the body.
struct Attributes<'a> {
    outer: Vec<&'a Attribute>,
    inner: Vec<&'a Attribute>,
}

impl<'a> Attributes<'a> {
    fn split(attrs: &'a [Attribute]) -> Self {
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        for attribute in attrs {
            let is = |names: &[&str]| names.iter().any(|name| attribute.path().is_ident(name));
            if is(&["track_caller"]) {
                // Every step has it.
            } else if is(&["cfg", "cfg_attr", "allow", "warn", "deny", "forbid"]) {
                outer.push(attribute);
                inner.push(attribute);
            } else if is(&["doc", "must_use", "deprecated"]) {
                outer.push(attribute);
            } else {
                // Such as `#[tracing::instrument]` or `#[expect]`: they are about the body.
                inner.push(attribute);
            }
        }
        Self { outer, inner }
    }
}

/// The `#[cfg]`s among the attributes, for what must vanish together with their item.
fn conditions(attrs: &[Attribute]) -> Vec<&Attribute> {
    attrs
        .iter()
        .filter(|attribute| matches!(attribute.style, AttrStyle::Outer))
        .filter(|attribute| attribute.path().is_ident("cfg"))
        .collect()
}
