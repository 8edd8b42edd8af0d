//! Addresses of servers.
#![no_main]

use ergon_tests::outside;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|url: &str| {
    outside::watch_for_panics();
    outside::server(url);
});
