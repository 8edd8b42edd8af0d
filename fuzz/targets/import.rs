//! Lines to be imported, and what a worker then does with their histories.
#![no_main]

use ergon_fuzz::paused;
use ergon_tests::outside;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    outside::watch_for_panics();
    paused(outside::import(line));
});
