//! Names of calls and of flows.
#![no_main]

use ergon_tests::outside;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    outside::watch_for_panics();
    outside::name(text);
});
