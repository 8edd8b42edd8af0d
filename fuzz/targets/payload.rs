//! Values of flows.
#![no_main]

use ergon_fuzz::paused;
use ergon_tests::outside;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    outside::watch_for_panics();
    paused(outside::payload(payload));
});
