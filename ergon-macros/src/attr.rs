//! The arguments of our attributes, with the span of every token kept.
//!
//! This module knows which options exist and what kind of value each one takes. Whether a value
//! makes sense is decided in [`validate`](crate::validate).

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Error, Expr, ExprLit, Lit, LitFloat, LitInt, LitStr, Result, Token, UnOp,
    ext::IdentExt,
    parse::{ParseStream, Parser},
    spanned::Spanned,
};

use crate::errors::Errors;

/// `#[flow_type(name = "order", version = 2)]`
#[derive(Default)]
pub(crate) struct FlowTypeArgs {
    pub(crate) name: Option<LitStr>,
    pub(crate) version: Option<LitInt>,
}

/// `#[flow(name = "order", version = 2, timeout = "1h", retention = "30d", affinity(prefer = "5s"), allow(nondeterminism))]`
#[derive(Default)]
pub(crate) struct FlowArgs {
    pub(crate) name: Option<LitStr>,
    pub(crate) version: Option<LitInt>,
    pub(crate) timeout: Option<LitStr>,
    pub(crate) retention: Option<LitStr>,
    pub(crate) affinity: Option<AffinityArg>,
    pub(crate) allow_nondeterminism: bool,
}

/// `#[step(retry(…), timeout = "10s", heartbeat_timeout = "5s", name = "charge-card", blocking, transaction, at_most_once)]`
#[derive(Default)]
pub(crate) struct StepArgs {
    pub(crate) name: Option<LitStr>,
    pub(crate) retry: Option<RetryArg>,
    pub(crate) timeout: Option<LitStr>,
    pub(crate) heartbeat_timeout: Option<LitStr>,
    pub(crate) blocking: Option<Ident>,
    pub(crate) transaction: Option<Ident>,
    pub(crate) at_most_once: Option<Ident>,
}

/// How `affinity` was written.
pub(crate) enum AffinityArg {
    /// `affinity(prefer = "5s")`
    Prefer(LitStr),
    /// `affinity(require)`, or `affinity(require = "2m")`, or `"never"`
    Require(Option<LitStr>),
}

/// How `retry` was written.
pub(crate) enum RetryArg {
    /// `retry = standard`: one of [`POLICIES`].
    Named(Ident),
    /// `retry = SOME_POLICY`: an expression of type `RetryPolicy`.
    Policy(Expr),
    /// `retry(max_attempts = 5, …)`
    Options(Box<RetryArgs>),
}

/// `retry(max_attempts = 5, backoff = "1s..30s", multiplier = 2.0, max = "1m", jitter = 0.2)`
#[derive(Default)]
pub(crate) struct RetryArgs {
    pub(crate) max_attempts: Option<LitInt>,
    pub(crate) backoff: Option<LitStr>,
    pub(crate) multiplier: Option<Number>,
    /// The option's name as written, for a refusal of the whole option, and its value.
    pub(crate) max: Option<(Ident, LitStr)>,
    pub(crate) jitter: Option<Number>,
}

/// A number with or without a decimal point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number {
    pub(crate) value: f64,
    pub(crate) span: Span,
}

/// The policies that have a short name.
pub(crate) const POLICIES: [&str; 3] = ["none", "standard", "persistent"];

impl FlowTypeArgs {
    pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Self {
        let mut parsed = Self::default();
        for arg in arguments(tokens, "flow_type", &["name", "version"], errors) {
            match arg.name.to_string().as_str() {
                "name" => parsed.name = errors.ok(arg.string("\"order\"")),
                "version" => parsed.version = errors.ok(arg.integer("2")),
                _ => {}
            }
        }
        parsed
    }
}

impl FlowArgs {
    pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Self {
        const ACCEPTED: &[&str] = &["name", "version", "timeout", "retention", "affinity", "allow"];
        let mut parsed = Self::default();
        for arg in arguments(tokens, "flow", ACCEPTED, errors) {
            match arg.name.to_string().as_str() {
                "name" => parsed.name = errors.ok(arg.string("\"order\"")),
                "version" => parsed.version = errors.ok(arg.integer("2")),
                "timeout" => parsed.timeout = errors.ok(arg.duration("\"1h\"")),
                "retention" => parsed.retention = errors.ok(arg.duration("\"30d\"")),
                "affinity" => parsed.affinity = AffinityArg::read(arg, errors),
                "allow" => {
                    let Some(list) = errors.ok(arg.list("nondeterminism")) else {
                        continue;
                    };
                    for allowed in arguments(list, "allow", &["nondeterminism"], errors) {
                        parsed.allow_nondeterminism |= errors.ok(allowed.flag()).is_some();
                    }
                }
                _ => {}
            }
        }
        parsed
    }
}

impl AffinityArg {
    fn read(arg: Argument, errors: &mut Errors) -> Option<Self> {
        const FORMS: &str = "prefer = \"5s\"), affinity(require) or affinity(require = \"2m\"";
        let name = arg.name.clone();
        let list = errors.ok(arg.list(FORMS))?;
        let mut found = arguments(list, "affinity", &["prefer", "require"], errors);
        let arg = found.pop()?;
        if let Some(other) = found.pop() {
            errors
                .push_on(name, format!("a flow prefers or requires its worker, not both: leave out `{}`", other.name));
            return None;
        }
        match (arg.name == "require", &arg.value) {
            (true, Value::None) => Some(Self::Require(None)),
            (true, _) => errors.ok(arg.duration("\"2m\"")).map(|takeover| Self::Require(Some(takeover))),
            (false, _) => errors.ok(arg.duration("\"5s\"")).map(Self::Prefer),
        }
    }
}

impl StepArgs {
    pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Self {
        const ACCEPTED: &[&str] =
            &["retry", "timeout", "heartbeat_timeout", "name", "blocking", "transaction", "at_most_once"];
        let mut parsed = Self::default();
        for arg in arguments(tokens, "step", ACCEPTED, errors) {
            match arg.name.to_string().as_str() {
                "name" => parsed.name = errors.ok(arg.string("\"charge-card\"")),
                "timeout" => parsed.timeout = errors.ok(arg.duration("\"10s\"")),
                "heartbeat_timeout" => parsed.heartbeat_timeout = errors.ok(arg.duration("\"5s\"")),
                "blocking" => parsed.blocking = errors.ok(arg.flag()),
                "transaction" => parsed.transaction = errors.ok(arg.flag()),
                "at_most_once" => parsed.at_most_once = errors.ok(arg.flag()),
                "retry" => parsed.retry = RetryArg::read(arg, errors),
                _ => {}
            }
        }
        parsed
    }
}

impl RetryArg {
    fn read(arg: Argument, errors: &mut Errors) -> Option<Self> {
        match arg.value {
            Value::List(group) if !group.stream().is_empty() => {
                Some(Self::Options(Box::new(RetryArgs::parse(group.stream(), errors))))
            }
            Value::Expr(Expr::Lit(literal)) => {
                let text = match &literal.lit {
                    Lit::Int(count) => {
                        format!("a number alone is not a retry policy: write `retry(max_attempts = {count})`")
                    }
                    _ => format!("a literal is not a retry policy: write {RETRY_FORMS}"),
                };
                errors.push_on(literal, text);
                None
            }
            Value::Expr(Expr::Path(path)) => match path.path.get_ident() {
                Some(name) if POLICIES.contains(&name.to_string().as_str()) => Some(Self::Named(name.clone())),
                // A constant is upper case, so this was meant to be one of the short names.
                Some(name) if name.to_string().starts_with(|c: char| c.is_lowercase()) => {
                    let nearest = suggestion(name, &POLICIES);
                    errors.push_on(name, format!("unknown retry policy `{name}`{nearest}; write {RETRY_FORMS}"));
                    None
                }
                _ => Some(Self::Policy(Expr::Path(path))),
            },
            Value::Expr(policy) => Some(Self::Policy(policy)),
            Value::List(_) | Value::None => {
                errors.push_on(arg.name, format!("`retry` needs a policy: write {RETRY_FORMS}"));
                None
            }
        }
    }
}

const RETRY_FORMS: &str = "`retry = none`, `retry = standard`, `retry = persistent`, \
    `retry = A_CONSTANT` or `retry(max_attempts = 5, backoff = \"1s..30s\")`";

impl RetryArgs {
    fn parse(tokens: TokenStream, errors: &mut Errors) -> Self {
        const ACCEPTED: &[&str] = &["max_attempts", "backoff", "multiplier", "max", "jitter"];
        let mut parsed = Self::default();
        for arg in arguments(tokens, "retry", ACCEPTED, errors) {
            match arg.name.to_string().as_str() {
                "max_attempts" => parsed.max_attempts = errors.ok(arg.integer("5")),
                "backoff" => parsed.backoff = errors.ok(arg.duration("\"1s..30s\"")),
                "multiplier" => parsed.multiplier = errors.ok(arg.number("2.0")),
                "max" => {
                    let name = arg.name.clone();
                    parsed.max = errors.ok(arg.duration("\"1m\"")).map(|max| (name, max));
                }
                "jitter" => parsed.jitter = errors.ok(arg.number("0.2")),
                _ => {}
            }
        }
        parsed
    }
}

/// One argument: `name`, `name = value` or `name(list)`.
struct Argument {
    name: Ident,
    value: Value,
}

enum Value {
    None,
    Expr(Expr),
    List(Group),
}

impl Argument {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error("expected an option"));
        }
        let name = input.call(Ident::parse_any)?;
        let value = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            if input.is_empty() || input.peek(Token![,]) {
                return Err(Error::new(name.span(), format!("`{name} =` has no value")));
            }
            Value::Expr(ungroup(input.parse()?))
        } else if input.peek(syn::token::Paren) {
            Value::List(input.parse()?)
        } else {
            Value::None
        };
        Ok(Self { name, value })
    }

    fn string(self, example: &str) -> Result<LitStr> {
        match self.value {
            Value::Expr(Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) => Ok(text),
            _ => Err(self.takes("a string", example)),
        }
    }

    fn duration(self, example: &str) -> Result<LitStr> {
        match self.value {
            Value::Expr(Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) => Ok(text),
            _ => Err(self.takes("a duration in a string", example)),
        }
    }

    fn integer(self, example: &str) -> Result<LitInt> {
        match self.value {
            Value::Expr(Expr::Lit(ExprLit { lit: Lit::Int(number), .. })) => Ok(number),
            _ => Err(self.takes("a whole number", example)),
        }
    }

    fn number(self, example: &str) -> Result<Number> {
        let Value::Expr(expr) = &self.value else {
            return Err(self.takes("a number", example));
        };
        let (sign, literal) = match expr {
            Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => (-1.0, &*unary.expr),
            other => (1.0, other),
        };
        let value = match literal {
            Expr::Lit(ExprLit { lit: Lit::Float(number), .. }) => LitFloat::base10_parse::<f64>(number)?,
            Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_parse::<f64>()?,
            _ => return Err(self.takes("a number", example)),
        };
        Ok(Number { value: sign * value, span: literal.span() })
    }

    fn flag(self) -> Result<Ident> {
        match self.value {
            Value::None => Ok(self.name),
            Value::Expr(value) => Err(Error::new_spanned(value, format!("`{}` takes no value", self.name))),
            Value::List(list) => Err(Error::new_spanned(list, format!("`{}` takes no arguments", self.name))),
        }
    }

    fn list(self, example: &str) -> Result<TokenStream> {
        match self.value {
            Value::List(group) if !group.stream().is_empty() => Ok(group.stream()),
            _ => Err(Error::new_spanned(&self.name, format!("write `{}({example})`", self.name))),
        }
    }

    fn takes(&self, kind: &str, example: &str) -> Error {
        let message = format!("`{0}` takes {kind}: `{0} = {example}`", self.name);
        match &self.value {
            Value::Expr(value) => Error::new_spanned(value, message),
            Value::None | Value::List(_) => Error::new_spanned(&self.name, message),
        }
    }
}

/// The readable arguments among `tokens`, none of them unknown or twice.
///
/// What is wrong with the others is recorded, and reading goes on behind the next comma.
fn arguments(tokens: TokenStream, owner: &str, accepted: &[&str], errors: &mut Errors) -> Vec<Argument> {
    let mut found: Vec<Argument> = Vec::new();
    let read = |input: ParseStream<'_>| {
        while !input.is_empty() {
            match Argument::parse(input) {
                Ok(arg) if !accepted.contains(&arg.name.to_string().as_str()) => {
                    errors.push_on(&arg.name, unknown(&arg.name, owner, accepted));
                }
                Ok(arg) if found.iter().any(|other| other.name == arg.name) => {
                    errors.push_on(&arg.name, format!("`{}` is given twice", arg.name));
                }
                Ok(arg) => found.push(arg),
                Err(error) => {
                    let accepted = enumeration(accepted);
                    errors.push(Error::new(error.span(), format!("{error}; `{owner}` takes {accepted}")));
                    skip_to_comma(input)?;
                }
            }
            if !input.is_empty() && !input.peek(Token![,]) {
                errors.push(input.error("expected `,`"));
                skip_to_comma(input)?;
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(())
    };
    if let Err(error) = read.parse2(tokens) {
        errors.push(error);
    }
    found
}

fn skip_to_comma(input: ParseStream<'_>) -> Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<TokenTree>()?;
    }
    Ok(())
}

fn unknown(name: &Ident, owner: &str, accepted: &[&str]) -> String {
    let nearest = suggestion(name, accepted);
    let accepted = enumeration(accepted);
    format!("unknown option `{name}`{nearest}; `{owner}` takes {accepted}")
}

/// `` `a`, `b` and `c` ``
fn enumeration(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} and {last}", first.join(", ")),
        None => String::new(),
    }
}

/// `, did you mean …?` for a word that is probably misspelled, else nothing.
fn suggestion(name: &Ident, accepted: &[&str]) -> String {
    let name = name.to_string();
    accepted
        .iter()
        .map(|word| (distance(&name, word), word))
        .min()
        .filter(|(distance, word)| *distance <= word.len().div_ceil(3))
        .map(|(_, word)| format!(", did you mean `{word}`?"))
        .unwrap_or_default()
}

/// The number of single-character edits between two words.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in right.iter().enumerate() {
            let edited = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = edited.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// The expression inside the invisible delimiters of a `macro_rules!` fragment.
fn ungroup(expr: Expr) -> Expr {
    match expr {
        Expr::Group(group) => ungroup(*group.expr),
        other => other,
    }
}

/// The tokens between an attribute's parentheses, if any.
///
/// # Errors
///
/// For `#[step = …]` and for brackets or braces in place of parentheses.
pub(crate) fn attribute_tokens(attribute: &syn::Attribute) -> Result<TokenStream> {
    match &attribute.meta {
        syn::Meta::Path(_) => Ok(TokenStream::new()),
        syn::Meta::List(list) if matches!(list.delimiter, syn::MacroDelimiter::Paren(_)) => Ok(list.tokens.clone()),
        other => {
            let name = other.path().to_token_stream();
            Err(Error::new_spanned(other, format!("options go in parentheses: `#[{name}(…)]`")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> (StepArgs, Vec<String>) {
        let mut errors = Errors::default();
        let args = StepArgs::parse(text.parse().unwrap(), &mut errors);
        (args, errors.messages())
    }

    #[test]
    fn every_option_is_read() {
        let (args, mistakes) = step(
            r#"retry(max_attempts = 5, backoff = "1s..30s", multiplier = 2, max = "1m", jitter = 0.2),
               timeout = "10s", heartbeat_timeout = "5s", name = "charge-card", blocking, at_most_once,"#,
        );
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(args.name.unwrap().value(), "charge-card");
        assert_eq!(args.timeout.unwrap().value(), "10s");
        assert_eq!(args.heartbeat_timeout.unwrap().value(), "5s");
        assert_eq!(args.blocking.unwrap(), "blocking");
        assert_eq!(args.at_most_once.unwrap(), "at_most_once");
        let Some(RetryArg::Options(retry)) = args.retry else {
            panic!("retry options");
        };
        assert_eq!(retry.max_attempts.unwrap().to_string(), "5");
        assert_eq!(retry.backoff.unwrap().value(), "1s..30s");
        assert!((retry.multiplier.unwrap().value - 2.0).abs() < f64::EPSILON);
        assert_eq!(retry.max.unwrap().1.value(), "1m");
        assert!((retry.jitter.unwrap().value - 0.2).abs() < f64::EPSILON);
    }

    #[test]
    fn retry_has_several_forms() {
        let read = |text: &str| match step(text).0.retry.unwrap() {
            RetryArg::Named(name) => format!("named {name}"),
            RetryArg::Policy(policy) => format!("policy {}", policy.to_token_stream()),
            RetryArg::Options(_) => "options".to_owned(),
        };
        assert_eq!(read("retry = none"), "named none");
        assert_eq!(read("retry = persistent"), "named persistent");
        assert_eq!(read("retry = MINE"), "policy MINE");
        assert_eq!(read("retry = policies::bank"), "policy policies :: bank");
        assert_eq!(read("retry = RetryPolicy::NONE"), "policy RetryPolicy :: NONE");
        assert_eq!(read("retry = RetryPolicy::new().jitter(0.0)"), "policy RetryPolicy :: new () . jitter (0.0)");
        assert_eq!(read("retry(max_attempts = 2)"), "options");
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, expect: &str| {
            let mistakes = step(text).1;
            assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
            assert!(mistakes[0].contains(expect), "{text}: {mistakes:?}");
        };
        check(
            "timeot = \"1s\"",
            "did you mean `timeout`?; `step` takes `retry`, `timeout`, `heartbeat_timeout`, `name`, `blocking`, `transaction` and `at_most_once`",
        );
        check(
            "heartbeat_timeout = 5",
            "`heartbeat_timeout` takes a duration in a string: `heartbeat_timeout = \"5s\"`",
        );
        check("colour = 1", "unknown option `colour`; `step` takes");
        check("blocking, blocking", "`blocking` is given twice");
        check("timeout = 10", "`timeout` takes a duration in a string: `timeout = \"10s\"`");
        check("timeout", "`timeout` takes a duration in a string");
        check("timeout = , blocking", "`timeout =` has no value");
        check("name = charge", "`name` takes a string");
        check("name(\"charge\")", "`name` takes a string");
        check("blocking = true", "`blocking` takes no value");
        check("\"charge\"", "expected an option; `step` takes `retry`");
        check("blocking name = \"a\"", "expected `,`");
        check("retry", "`retry` needs a policy");
        check("retry()", "`retry` needs a policy");
        check("retry = 5", "write `retry(max_attempts = 5)`");
        check("retry = \"5\"", "a literal is not a retry policy");
        check("retry = persistant", "did you mean `persistent`?");
        check("retry(max_attempts = 2.5)", "`max_attempts` takes a whole number");
        check("retry(max_attempts = \"3\")", "`max_attempts` takes a whole number");
        check("retry(attempts = 2)", "`retry` takes `max_attempts`, `backoff`");
        check("retry(jitter = \"0.2\")", "`jitter` takes a number");
    }

    #[test]
    fn all_mistakes_are_found_at_once() {
        let (args, mistakes) = step(r#"timeot = "1s", retry(tries = 2, jitter = x), name = 1, blocking"#);
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
        assert!(args.blocking.is_some());
    }

    #[test]
    fn flow_options_are_read() {
        let flow = |text: &str| {
            let mut errors = Errors::default();
            let args = FlowArgs::parse(text.parse().unwrap(), &mut errors);
            (args, errors.messages())
        };
        let (args, mistakes) =
            flow(r#"name = "a", version = 3, timeout = "1h", retention = "30d", allow(nondeterminism)"#);
        assert_eq!(mistakes, Vec::<String>::new());
        assert_eq!(args.retention.unwrap().value(), "30d");
        assert!(args.allow_nondeterminism);
        assert_eq!(args.version.unwrap().to_string(), "3");
        let check = |text: &str, expect: &str| {
            let mistakes = flow(text).1;
            assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
            assert!(mistakes[0].contains(expect), "{text}: {mistakes:?}");
        };
        check("allow", "write `allow(nondeterminism)`");
        check("allow()", "write `allow(nondeterminism)`");
        check("allow(nondeterminsm)", "did you mean `nondeterminism`?");
        check("version = \"3\"", "`version` takes a whole number");
        check("retry = none", "`flow` takes `name`, `version`, `timeout`, `retention`, `affinity` and `allow`");
        check("affinity", "write `affinity(prefer = \"5s\"), affinity(require) or affinity(require = \"2m\")`");
        check("affinity(prefer)", "`prefer` takes a duration in a string");
        check("affinity(wish)", "`affinity` takes `prefer` and `require`");
        check("affinity(prefer = \"5s\", require)", "not both");
        check("retention = 30", "`retention` takes a duration in a string: `retention = \"30d\"`");
    }
}
