//! What the signature of a step or a flow may be.

use super::{
    ARGUMENTS_MAX, Argument, Database, Errors, FnArg, GenericArgument, Ident, IdentExt, Lifetime, Pat, PatType, Path,
    RESERVED, Receiver, ReceiverKind, ReturnType, Safety, Signature, Span, Token, Type, TypePath, TypeReference, Visit,
    VisitMut, format_ident, step_lifetime, ungrouped, visit, visit_mut,
};

pub(super) fn check_signature(sig: &Signature, what: &str, errors: &mut Errors) {
    if let Some(word) = &sig.constness {
        errors.fatal_on(word, format!("a {what} cannot be `const`"));
    }
    if let Safety::Unsafe(word) = &sig.safety {
        errors.fatal_on(word, format!("a {what} cannot be `unsafe`: the engine calls it, which knows no conditions"));
    }
    if let Some(abi) = &sig.abi {
        errors.fatal_on(abi, format!("a {what} is a Rust function, without `extern`"));
    }
    if let Some(variadic) = &sig.variadic {
        errors.fatal_on(variadic, format!("a {what} has a fixed number of arguments"));
    }
    if !sig.generics.params.is_empty() {
        errors.fatal_on(
            &sig.generics.params,
            format!("a {what} cannot be generic: what is recorded under its name must be of one type"),
        );
    } else if let Some(clause) = &sig.generics.where_clause {
        errors.fatal_on(clause, format!("a {what} cannot be generic: remove the `where` clause"));
    }
    if sig.ident.unraw().to_string().starts_with(RESERVED) {
        errors.fatal_on(&sig.ident, format!("names that begin with `{RESERVED}` are kept for generated code"));
    }
}

pub(super) fn check_receiver(sig: &Signature, what: &str, errors: &mut Errors) -> Option<Token![self]> {
    let Some(receiver) = sig.receiver() else {
        errors.fatal_on(&sig.ident, format!("a {what} takes `&self`: write `fn {}(&self, …)`", sig.ident));
        return None;
    };
    let Receiver { self_token, kind, .. } = receiver;
    match kind {
        ReceiverKind::Reference(_, None, None) => {}
        ReceiverKind::Reference(_, _, Some(word)) => errors
            .fatal_on(word, format!("a {what} takes `&self`: a change to the value is lost on replay, so return it")),
        ReceiverKind::Reference(_, Some(lifetime), None) => {
            errors.fatal_on(lifetime, format!("a {what} takes `&self`, without a lifetime"));
        }
        _ => {
            errors.fatal_on(receiver, format!("a {what} takes `&self`"));
        }
    }
    Some(*self_token)
}

/// The arguments behind the receiver, and whether one of them is borrowed.
pub(super) fn check_arguments(
    sig: &Signature,
    blocking: bool,
    transaction: Option<Database>,
    errors: &mut Errors,
) -> (Vec<Argument>, bool) {
    let mut arguments = Vec::new();
    let mut borrowed = false;
    let typed = sig.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(typed) => Some(typed),
        FnArg::Receiver(_) => None,
    });
    // The engine gives the transaction.
    let typed = typed.skip(usize::from(transaction.is_some()));
    let owned = match transaction {
        Some(Database::Sqlite) => Some("the work of a `transaction` of SQLite runs on another thread"),
        _ => blocking.then_some("a blocking step runs on another thread"),
    };
    for (index, typed) in typed.enumerate() {
        if index == ARGUMENTS_MAX {
            errors.fatal_on(typed, format!("a step takes at most {ARGUMENTS_MAX} arguments: group some in a struct"));
        }
        for attribute in typed.attrs.iter().filter(|a| a.path().is_ident("cfg")) {
            errors.fatal_on(attribute, "a step's arguments cannot be conditional: put the `#[cfg]` on the step");
        }
        ArgumentType { errors, owned }.visit_type(&typed.ty);
        let mut ty = (*typed.ty).clone();
        let mut elided = NameLifetimes { found: false };
        elided.visit_type_mut(&mut ty);
        borrowed |= elided.found;
        let name = argument_name(typed, index);
        arguments.push(Argument { name, ty });
    }
    (arguments, borrowed)
}

/// The name of an argument where the step is called; a pattern is left to the body.
pub(super) fn argument_name(typed: &PatType, index: usize) -> Ident {
    match &*typed.pat {
        Pat::Ident(pattern) if pattern.subpat.is_none() => pattern.ident.clone(),
        _ => format_ident!("arg{index}", span = Span::mixed_site()),
    }
}

/// Looks for what an argument cannot be, anywhere in its type.
struct ArgumentType<'a> {
    errors: &'a mut Errors,
    /// Why it cannot borrow, if it cannot.
    owned: Option<&'static str>,
}

impl<'ast> Visit<'ast> for ArgumentType<'_> {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        if let Some(word) = &reference.mutability {
            self.errors.fatal_on(
                word,
                "a step's arguments are recorded and may be used again by another attempt: take `&T` or an owned value, and return what changes",
            );
        } else if let Some(why) = self.owned.filter(|_| !is_static(reference.lifetime.as_ref())) {
            let message = format!("{why}, so its arguments are owned values: take `String` for `&str`, `T` for `&T`");
            self.errors.fatal_on(reference.and_token, message);
            return;
        }
        visit::visit_type_reference(self, reference);
    }

    fn visit_generic_argument(&mut self, argument: &'ast GenericArgument) {
        if let GenericArgument::Lifetime(lifetime) = argument
            && let Some(why) = self.owned
            && !is_static(Some(lifetime))
        {
            self.errors.fatal_on(lifetime, format!("{why}, so its arguments are owned values"));
        }
        visit::visit_generic_argument(self, argument);
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast syn::TypeImplTrait) {
        self.errors.fatal_on(ty.impl_token, "a step cannot be generic: name one type for this argument");
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if let Some(last) = path.segments.last()
            && last.ident == "HashSet"
        {
            self.errors.fatal_on(
                &last.ident,
                "a step's arguments are compared on replay, and a `HashSet` has another order each time: take a `BTreeSet`",
            );
        }
        visit::visit_path(self, path);
    }
}

pub(super) fn is_static(lifetime: Option<&Lifetime>) -> bool {
    lifetime.is_some_and(|lifetime| lifetime.ident == "static")
}

/// Writes out the elided lifetimes of a type as [`step_lifetime`].
struct NameLifetimes {
    found: bool,
}

impl VisitMut for NameLifetimes {
    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        if reference.lifetime.is_none() {
            reference.lifetime = Some(step_lifetime());
            self.found = true;
        }
        visit_mut::visit_type_reference_mut(self, reference);
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident == "_" {
            *lifetime = step_lifetime();
            self.found = true;
        }
    }

    // A function's own signature elides lifetimes of its own.
    fn visit_type_fn_ptr_mut(&mut self, _: &mut syn::TypeFnPtr) {}

    fn visit_parenthesized_generic_arguments_mut(&mut self, _: &mut syn::ParenthesizedGenericArguments) {}
}

/// The return type, when it can be a `Result` or an alias of one.
pub(super) fn checked_result(sig: &Signature, what: &str, errors: &mut Errors) -> Option<Type> {
    let ReturnType::Type(_, ty) = &sig.output else {
        errors.fatal_on(
            &sig.ident,
            format!("a {what} returns `Result<T, E>`: write `-> Result<(), E>` when there is nothing to return"),
        );
        return None;
    };
    let refused = match ungrouped(ty) {
        Type::Path(TypePath { path, .. }) => {
            path.segments.last().is_none_or(|last| NOT_RESULTS.iter().any(|name| last.ident == name))
        }
        Type::Macro(_) | Type::Verbatim(_) => false,
        _ => true,
    };
    if refused {
        errors.fatal_on(ty, format!("a {what} returns `Result<T, E>`: its value and its error are both recorded"));
        return None;
    }
    ResultType { errors, what }.visit_type(ty);
    Some((**ty).clone())
}

/// Types that are certainly no alias of `Result`.
const NOT_RESULTS: [&str; 28] = [
    "bool", "char", "str", "String", "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128",
    "isize", "f32", "f64", "Option", "Vec", "Box", "Rc", "Arc", "HashMap", "HashSet", "BTreeMap", "BTreeSet",
    "Duration",
];

/// Looks for what cannot be read back from a record, anywhere in a return type.
struct ResultType<'a> {
    errors: &'a mut Errors,
    what: &'a str,
}

impl<'ast> Visit<'ast> for ResultType<'_> {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        self.errors.fatal_on(
            reference.and_token,
            format!(
                "what a {} returns is read back from its record, so it cannot borrow: return an owned value",
                self.what
            ),
        );
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast syn::TypeImplTrait) {
        self.errors.fatal_on(
            ty.impl_token,
            format!("what a {} returns is read back from its record: name its type", self.what),
        );
    }

    fn visit_type_fn_ptr(&mut self, _: &'ast syn::TypeFnPtr) {}

    fn visit_parenthesized_generic_arguments(&mut self, _: &'ast syn::ParenthesizedGenericArguments) {}
}
