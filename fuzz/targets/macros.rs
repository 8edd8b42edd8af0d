//! Attributes and the items that they stand on: the first line is what stands in the brackets of the attribute, the
//! others are the item. What is expanded is an item again, durations are within bounds.
#![no_main]
// Here is no compiler that calls the macros.
#![allow(dead_code, missing_docs)]

#[path = "../../ergon-macros/src/ast.rs"]
mod ast;
#[path = "../../ergon-macros/src/attr.rs"]
mod attr;
#[path = "../../ergon-macros/src/determinism.rs"]
mod determinism;
#[path = "../../ergon-macros/src/duration.rs"]
mod duration;
#[path = "../../ergon-macros/src/errors.rs"]
mod errors;
#[path = "../../ergon-macros/src/expand.rs"]
mod expand;
#[path = "../../ergon-macros/src/macros.rs"]
mod macros;
#[path = "../../ergon-macros/src/model.rs"]
mod model;
#[path = "../../ergon-macros/src/validate/mod.rs"]
mod validate;

use libfuzzer_sys::fuzz_target;
use proc_macro2::{Span, TokenStream};
use syn::LitStr;

/// The compiler refuses what is nested deeper long before a macro is asked.
const DEPTH_MAX: usize = 100;

fuzz_target!(|text: &str| {
    let literal = LitStr::new(text, Span::call_site());
    if let Ok(duration) = duration::parse(&literal) {
        assert!(!duration.is_zero() && duration <= duration::DURATION_MAX);
    }
    if let Ok((first, last)) = duration::parse_range(&literal) {
        assert!(last.is_none_or(|last| first <= last));
    }
    if text.matches(['(', '[', '{', '<', '&', '*', '!', '-', '|']).count() > DEPTH_MAX {
        return;
    }
    let (arguments, item) = text.split_once('\n').unwrap_or((text, "async fn fetch() -> u8 { 1 }"));
    let (Ok(arguments), Ok(item)) = (arguments.parse::<TokenStream>(), item.parse::<TokenStream>()) else { return };
    let is_item = syn::parse2::<syn::Item>(item.clone()).is_ok();
    for expand in [macros::flow_type, macros::flow, macros::step] {
        let expanded = expand(arguments.clone(), item.clone());
        assert!(!is_item || syn::parse2::<syn::File>(expanded).is_ok());
    }
});
