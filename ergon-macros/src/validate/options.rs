//! What the values of options may be.

use super::{
    Error, Errors, Ident, JITTER, LitInt, LitStr, MULTIPLIER, NAME_BYTES_MAX, Number, RetryArg, RetryArgs, RetryModel,
    RetryOptions, duration,
};

pub(super) fn checked_name(name: &LitStr) -> syn::Result<String> {
    let text = name.value();
    let problem = if text.is_empty() {
        "a name cannot be empty".to_owned()
    } else if text.len() > NAME_BYTES_MAX {
        format!("a name has at most {NAME_BYTES_MAX} bytes; this one has {}", text.len())
    } else if text.chars().any(char::is_control) {
        "a name cannot hold control characters".to_owned()
    } else {
        return Ok(text);
    };
    Err(Error::new(name.span(), problem))
}

pub(super) fn checked_version(version: &LitInt) -> syn::Result<u32> {
    at_least_one(version, "version")
}

pub(super) fn at_least_one(literal: &LitInt, option: &str) -> syn::Result<u32> {
    match literal.base10_parse::<u32>() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err(Error::new(literal.span(), format!("`{option}` is a whole number from 1 to {}", u32::MAX))),
    }
}

pub(super) fn checked_retry(retry: RetryArg, errors: &mut Errors) -> RetryModel {
    match retry {
        RetryArg::Named(name) => {
            let constant = name.to_string().to_uppercase();
            RetryModel::Named(Ident::new(&constant, name.span()))
        }
        RetryArg::Policy(policy) => RetryModel::Policy(policy),
        RetryArg::Options(options) => RetryModel::Options(checked_retry_options(*options, errors)),
    }
}

pub(super) fn checked_retry_options(args: RetryArgs, errors: &mut Errors) -> RetryOptions {
    let max_attempts = args.max_attempts.and_then(|count| errors.ok(at_least_one(&count, "max_attempts")));
    let backoff = args.backoff.and_then(|backoff| errors.ok(duration::parse_range(&backoff)));
    let (backoff, range_end) = backoff.map_or((None, None), |(first, last)| (Some(first), last));
    let max = args.max.and_then(|(name, max)| {
        if range_end.is_some() {
            errors.push_on(name, "`backoff` already ends in its longest duration: remove `max`");
            return None;
        }
        let longest = errors.ok(duration::parse(&max))?;
        if backoff.is_some_and(|first| longest < first) {
            errors.push_on(&max, "`max` is shorter than the first `backoff`");
            return None;
        }
        Some(longest)
    });
    RetryOptions {
        max_attempts,
        backoff,
        backoff_max: range_end.or(max),
        multiplier: args.multiplier.and_then(|number| errors.ok(within(number, &MULTIPLIER, "multiplier"))),
        jitter: args.jitter.and_then(|number| errors.ok(within(number, &JITTER, "jitter"))),
    }
}

pub(super) fn within(number: Number, range: &std::ops::RangeInclusive<f64>, option: &str) -> syn::Result<f64> {
    if range.contains(&number.value) {
        return Ok(number.value);
    }
    let (first, last) = (range.start(), range.end());
    Err(Error::new(number.span, format!("`{option}` is a number from {first:?} to {last:?}")))
}
