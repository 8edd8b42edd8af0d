//! Collects mistakes, so that one compilation reports them all.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::Error;

/// Every mistake found so far, and whether the item can still be expanded.
///
/// A mistake in an option or in a body leaves the shape of the item intact, so the item is expanded
/// all the same and nothing that uses it fails too. A mistake in the shape is [fatal](Self::fatal).
#[derive(Default)]
pub(crate) struct Errors {
    all: Option<Error>,
    fatal: bool,
}

impl Errors {
    /// Records a mistake that leaves enough of the item to expand it.
    pub(crate) fn push(&mut self, error: Error) {
        match &mut self.all {
            Some(all) => all.combine(error),
            None => self.all = Some(error),
        }
    }

    /// Records a mistake after which the item is emitted as it was written.
    pub(crate) fn fatal(&mut self, error: Error) {
        self.push(error);
        self.fatal = true;
    }

    /// Records a mistake on `tokens`, from the first of them to the last.
    pub(crate) fn push_on(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.push(Error::new_spanned(tokens, message));
    }

    /// As [`push_on`](Self::push_on), for a mistake in the item's shape.
    pub(crate) fn fatal_on(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.fatal(Error::new_spanned(tokens, message));
    }

    /// Keeps the value and records the mistake otherwise.
    pub(crate) fn ok<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    pub(crate) fn is_fatal(&self) -> bool {
        self.fatal
    }

    /// One `compile_error!` for each mistake; nothing when there was none.
    pub(crate) fn into_compile_errors(self) -> TokenStream {
        self.all.map(Error::into_compile_error).unwrap_or_default()
    }
}

#[cfg(test)]
impl Errors {
    /// The messages, in the order in which they were found.
    pub(crate) fn messages(self) -> Vec<String> {
        self.all.into_iter().flatten().map(|error| error.to_string()).collect()
    }
}
