//! Durations in attributes: strings such as `"10s"` or `"1h 30m"`, read at compile time.

use std::time::Duration;

use syn::{Error, LitStr, Result};

/// The longest duration an option takes: ten years, as whole days.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// Reads one duration, longer than zero and no longer than [`DURATION_MAX`].
pub(crate) fn parse(literal: &LitStr) -> Result<Duration> {
    parse_text(&literal.value()).map_err(|message| Error::new(literal.span(), message))
}

/// Reads `"1s"`, or `"1s..30s"` with the second duration no shorter than the first.
pub(crate) fn parse_range(literal: &LitStr) -> Result<(Duration, Option<Duration>)> {
    let text = literal.value();
    let refuse = |message: String| Error::new(literal.span(), message);
    let Some((first, last)) = text.split_once("..") else {
        return Ok((parse_text(&text).map_err(refuse)?, None));
    };
    // A range of backoffs includes its end, so both ways to write one mean the same.
    let last = last.strip_prefix('=').unwrap_or(last);
    let first = parse_text(first).map_err(refuse)?;
    let last = parse_text(last).map_err(refuse)?;
    if last < first {
        return Err(refuse(format!("the range ends before it begins: `{text}`; write the shortest backoff first")));
    }
    Ok((first, Some(last)))
}

fn parse_text(text: &str) -> std::result::Result<Duration, String> {
    let text = text.trim();
    let duration = humantime::parse_duration(text).map_err(|error| {
        format!("`{text}` is not a duration ({error}): write for example \"10s\", \"500ms\" or \"1h 30m\"")
    })?;
    if duration.is_zero() {
        return Err(format!("`{text}` is no time at all: a duration here is longer than zero"));
    }
    if duration > DURATION_MAX {
        return Err(format!("`{text}` is too long: a duration here is at most 3650 days"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use proc_macro2::Span;

    use super::*;

    fn literal(text: &str) -> LitStr {
        LitStr::new(text, Span::call_site())
    }

    #[test]
    fn durations_are_read() {
        let check = |text: &str, expect: Duration| {
            assert_eq!(parse(&literal(text)).unwrap(), expect, "{text}");
        };
        check("10s", Duration::from_secs(10));
        check(" 500ms ", Duration::from_millis(500));
        check("1h 30m", Duration::from_secs(5400));
        check("1.5s", Duration::from_millis(1500));
        check("1ns", Duration::from_nanos(1));
        check("3650days", DURATION_MAX);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        let check = |text: &str, expect: &str| {
            let message = parse(&literal(text)).unwrap_err().to_string();
            assert!(message.contains(expect), "{text}: {message}");
        };
        check("", "not a duration");
        check("10", "not a duration");
        check("-1s", "not a duration");
        check("10 parsecs", "not a duration");
        check("0s", "longer than zero");
        check("0ms", "longer than zero");
        check("3651days", "at most 3650 days");
        check("99999999999999999999y", "not a duration");
        check("1s..2s", "not a duration");
    }

    #[test]
    fn ranges_are_read() {
        let second = Duration::from_secs;
        let read = |text: &str| parse_range(&literal(text)).unwrap();
        assert_eq!(read("1s"), (second(1), None));
        assert_eq!(read("1s..30s"), (second(1), Some(second(30))));
        assert_eq!(read("1s..=30s"), (second(1), Some(second(30))));
        assert_eq!(read("1s .. 1m"), (second(1), Some(second(60))));
        assert_eq!(read("1s..1s"), (second(1), Some(second(1))));
    }

    #[test]
    fn broken_ranges_are_refused() {
        let check = |text: &str, expect: &str| {
            let message = parse_range(&literal(text)).unwrap_err().to_string();
            assert!(message.contains(expect), "{text}: {message}");
        };
        check("30s..1s", "ends before it begins");
        check("1s..", "not a duration");
        check("..30s", "not a duration");
        check("0s..1s", "longer than zero");
        check("1s..2s..3s", "not a duration");
    }
}
