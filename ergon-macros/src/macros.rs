//! What each attribute does, on tokens that also exist outside of a macro's expansion.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Error, parse::Parser};

use crate::{
    ast::{MarkerKind, Method, Target},
    attr::{FlowArgs, FlowTypeArgs, StepArgs},
    errors::Errors,
    expand,
    validate::{self, Place},
};

pub(crate) fn flow_type(args: TokenStream, item: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let expanded = match Target::parse(item.clone()) {
        Ok(Target::Type(ty)) => {
            let args = FlowTypeArgs::parse(args, &mut errors);
            validate::flow_type(ty, args, &mut errors).map_or(item, |model| expand::flow_type(&model))
        }
        Ok(Target::Impl(source)) => {
            let (plain, mentions) = (source.plain(), expand::mentions(&source));
            let expanded =
                validate::flow_impl(&args, source, &mut errors).map_or(plain, |model| expand::flow_impl(&model));
            quote!(#expanded #mentions)
        }
        Ok(Target::Other(word)) => {
            let message = "`#[flow_type]` goes on a struct, on an enum, or on its impl with the `#[flow]`";
            errors.fatal_on(word, message);
            item
        }
        Err(error) => {
            errors.fatal(error);
            item
        }
    };
    with_errors(errors, expanded)
}

/// Runs on functions, and on methods where no `#[flow_type]` has taken the attribute away.
pub(crate) fn flow(args: TokenStream, item: TokenStream) -> TokenStream {
    if is_mention(&args) {
        return TokenStream::new();
    }
    let mut errors = Errors::default();
    let method = match syn::parse2::<Method>(item.clone()) {
        Ok(method) => method,
        Err(error) => {
            errors.fatal(not_a_function(MarkerKind::Flow, &item).unwrap_or(error));
            return with_errors(errors, item);
        }
    };
    if method.sig.receiver().is_some() {
        errors.fatal(Error::new(
            Span::call_site(),
            "`#[flow]` marks a method of an impl that has `#[flow_type]` on it: put `#[flow_type]` on the impl",
        ));
        return with_errors(errors, item);
    }
    let plain = method.to_token_stream();
    let args = FlowArgs::parse(args, &mut errors);
    let expanded =
        validate::flow_function(method, args, &mut errors).map_or(plain, |model| expand::flow_function(&model));
    with_errors(errors, expanded)
}

/// What to say of an attribute on something that is no function at all.
fn not_a_function(kind: MarkerKind, item: &TokenStream) -> Option<Error> {
    let word = Target::keyword.parse2(item.clone()).ok()?;
    let is_function = FUNCTION_WORDS.contains(&word.to_string().as_str());
    (!is_function).then(|| Error::new(word.span(), validate::misplaced(kind)))
}

/// Runs on steps outside of an impl with `#[flow_type]`.
pub(crate) fn step(args: TokenStream, item: TokenStream) -> TokenStream {
    if is_mention(&args) {
        return TokenStream::new();
    }
    let mut errors = Errors::default();
    let method = match syn::parse2::<Method>(item.clone()) {
        Ok(method) => method,
        Err(error) => {
            errors.fatal(not_a_function(MarkerKind::Step, &item).unwrap_or(error));
            return with_errors(errors, item);
        }
    };
    let plain = method.to_token_stream();
    let args = StepArgs::parse(args, &mut errors);
    let expanded = validate::step(method, args, Place::Alone, &mut errors)
        .filter(|_| !errors.is_fatal())
        .map_or(plain, |model| expand::step(&model));
    with_errors(errors, expanded)
}

/// What a function can begin with.
const FUNCTION_WORDS: [&str; 6] = ["fn", "async", "const", "unsafe", "extern", "default"];

/// True for an attribute that only says that its import is used.
fn is_mention(args: &TokenStream) -> bool {
    args.to_string() == expand::MENTION
}

fn with_errors(errors: Errors, expanded: TokenStream) -> TokenStream {
    let mut tokens = errors.into_compile_errors();
    tokens.extend(expanded);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        text.split_whitespace().collect()
    }

    fn expanded(expand: impl FnOnce(TokenStream, TokenStream) -> TokenStream, args: &str, item: &str) -> String {
        let tokens = expand(args.parse().unwrap(), item.parse().unwrap());
        syn::parse2::<syn::File>(tokens.clone()).unwrap_or_else(|error| panic!("{error}: {tokens}"));
        tokens.to_string()
    }

    #[track_caller]
    fn holds(tokens: &str, part: &str) {
        assert!(normal(tokens).contains(&normal(part)), "no\n{part}\nin\n{tokens}");
    }

    #[test]
    fn a_type_gets_its_name_and_its_derives() {
        let tokens = expanded(flow_type, "", "struct Order { id: String }");
        holds(&tokens, "#[derive(::ergon::__private::serde::Serialize, ::ergon::__private::serde::Deserialize,)]");
        holds(&tokens, "#[serde(crate = \"::ergon::__private::serde\")] struct Order { id: String }");
        holds(&tokens, "impl ::ergon::FlowType for Order { const NAME: &'static str = \"Order\";");
        holds(&tokens, "const VERSION: u32 = 1u32;");
        let tokens = expanded(flow_type, "name = \"r\", version = 2", "#[cfg(a)] enum r#Type { A }");
        holds(&tokens, "const NAME: &'static str = \"r\"; const VERSION: u32 = 2u32;");
        holds(&tokens, "#[cfg(a)] const _: () =");
    }

    #[test]
    fn an_impl_becomes_a_flow() {
        let tokens = expanded(
            flow_type,
            "",
            "impl Order {
                #![allow(unused)]
                const LIMIT: u8 = 1;
                #[flow(timeout = \"1s\")] pub async fn run(&self) -> Res<u8> { select! { a => 1 } }
                #[cfg(a)] #[step(name = \"charge-card\")] async fn charge(&self, (a, b): (&str, u8)) -> Res<()> { go(a, b) }
                fn helper(&self) {}
            }",
        );
        holds(&tokens, "impl Order { #![allow(unused)] const LIMIT: u8 = 1;");
        holds(&tokens, "pub async fn run(&self) -> Res<u8> { select! { biased; a => 1 } }");
        holds(&tokens, "fn charge<'ergon>(&'ergon self, arg0: (&'ergon str, u8)) -> ::ergon::Step<'ergon,");
        holds(&tokens, "async fn __ergon_step_charge(&self, (a, b): (&str, u8)) -> Res<()> { go(a, b) }");
        holds(&tokens, "const { &::ergon::__private::StepSpec::new(\"charge-card\") }");
        holds(&tokens, "fn helper(&self) {}");
        holds(&tokens, "impl ::ergon::Flow for Order { type Output = <Res<u8> as ::ergon::__private::Outcome>::Ok;");
        holds(&tokens, "&[#[cfg(a)] \"charge-card\"]");
        holds(&tokens, "::core::option::Option::Some(::core::time::Duration::new(1u64, 0u32))");
        holds(&tokens, "#[flow(__ergon_mention)] const _: () = (); #[step(__ergon_mention)] const _: () = ();");
    }

    #[test]
    fn a_step_stands_alone() {
        let item = "pub async fn fetch(url: String) -> Res<u8> { get(url) }";
        let tokens = expanded(step, "retry(max_attempts = 2, backoff = \"1s..2s\"), timeout = \"5ms\"", item);
        holds(&tokens, "pub fn fetch(url: String) -> ::ergon::Step<'static,");
        holds(&tokens, "async fn __ergon_step_fetch(url: String) -> Res<u8> { get(url) }");
        holds(
            &tokens,
            ".retry(::ergon::RetryPolicy::new().max_attempts(2u32)
                .backoff(::core::time::Duration::new(1u64, 0u32))
                .max_backoff(::core::time::Duration::new(2u64, 0u32)))
             .timeout(::core::time::Duration::new(0u64, 5000000u32))",
        );
        let tokens = expanded(step, "", "async fn fetch(url: &str) -> Res<u8> {}");
        holds(&tokens, "fn fetch<'ergon>(url: &'ergon str) -> ::ergon::Step<'ergon,");
        let tokens = expanded(step, "blocking, retry = none", "fn size(url: String) -> Res<u8> {}");
        holds(&tokens, "::ergon::__private::blocking(move || __ergon_step_size(url))");
        holds(&tokens, ".retry(::ergon::RetryPolicy::NONE)");
    }

    #[test]
    fn a_refused_item_is_kept_without_our_attributes() {
        let tokens =
            expanded(flow_type, "", "impl Order { #[step] #[inline] async fn a(self) -> Res<u8> { 1 } fn b() {} }");
        holds(&tokens, "impl Order { #[inline] async fn a(self) -> Res<u8> { 1 } fn b() {} }");
        assert_eq!(tokens.matches("compile_error").count(), 2, "{tokens}");
        let tokens = expanded(step, "", "#[inline] fn a() -> Res<u8> {}");
        holds(&tokens, "#[inline] fn a() -> Res<u8> {}");
        for item in ["struct A;", "pub enum A {}", "trait A {}"] {
            holds(&expanded(step, "", item), item);
        }
        for item in ["fn a() {}", "trait A {}", "mod a {}", "type A = u8;"] {
            holds(&expanded(flow_type, "", item), item);
        }
    }

    #[test]
    fn a_mistake_in_an_option_or_a_body_leaves_the_expansion() {
        let tokens = expanded(flow_type, "version = 0", "struct Order;");
        holds(&tokens, "impl ::ergon::FlowType for Order");
        let tokens = expanded(
            flow_type,
            "",
            "impl Order { #[flow] async fn run(&self) -> R { Utc::now() } #[step(timeout = 1)] async fn a(&self) -> R {} }",
        );
        assert_eq!(tokens.matches("compile_error").count(), 2, "{tokens}");
        holds(&tokens, "impl ::ergon::Flow for Order");
        holds(&tokens, "async fn __ergon_step_a(&self)");
    }

    #[test]
    fn a_function_becomes_a_flow() {
        let tokens = expanded(
            flow,
            "name = \"ship-it\", version = 2, timeout = \"1s\"",
            "/// Ships.
             #[derive(Clone)] #[inline] #[cfg(a)]
             pub async fn r#ship(mut order: Order, #[serde(default)] to: String) -> Res<u8> { select! { a => 1 } }",
        );
        holds(&tokens, "#[derive(Clone)] #[cfg(a)] #[allow(non_camel_case_types");
        holds(&tokens, "pub struct r#ship { order: Order, #[serde(default)] to: String }");
        holds(&tokens, "pub fn r#ship(order: Order, to: String) -> r#ship { r#ship { order, to } }");
        holds(&tokens, "#[inline]");
        holds(&tokens, "async fn __ergon_flow_ship(mut order: Order, to: String) -> Res<u8> { select! { biased; a");
        holds(&tokens, "impl ::ergon::FlowType for r#ship { const NAME: &'static str = \"ship-it\";");
        holds(&tokens, "type Output = <Res<u8> as ::ergon::__private::Outcome>::Ok;");
        holds(&tokens, "__ergon_flow_ship(order, to)");
        let tokens = expanded(flow, "", "async fn nightly() -> Res<()> { Ok(()) }");
        holds(&tokens, "struct nightly {}");
        holds(&tokens, "const NAME: &'static str = \"nightly\"; const VERSION: u32 = 1u32;");
    }

    #[test]
    fn a_refused_flow_is_kept() {
        let refused = |item: &str| {
            let tokens = expanded(flow, "", item);
            holds(&tokens, "compile_error");
            tokens
        };
        holds(&refused("async fn run(&self) {}"), "async fn run(&self) {}");
        holds(&refused("#[inline] fn run() -> Res<()> {}"), "#[inline] fn run() -> Res<()> {}");
        holds(&refused("async fn run(a: &str) -> Res<()> {}"), "async fn run(a: &str) -> Res<()> {}");
        holds(&refused("struct A;"), "struct A;");
    }

    #[test]
    fn a_mention_leaves_nothing() {
        let args: TokenStream = expand::MENTION.parse().unwrap();
        let item: TokenStream = "const _: () = ();".parse().unwrap();
        assert!(flow(args.clone(), item.clone()).is_empty());
        assert!(step(args, item).is_empty());
    }
}
