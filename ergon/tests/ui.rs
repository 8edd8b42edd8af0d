//! What the macros accept, and what they say about each mistake.
//!
//! After a change to a message: `TRYBUILD=overwrite cargo test -p ergon --test ui`, then read the
//! difference.

#[test]
fn ui() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass_*.rs");
    for mistakes in ["type", "impl", "flow", "step", "option", "bound"] {
        cases.compile_fail(format!("tests/ui/{mistakes}_*.rs"));
    }
}
