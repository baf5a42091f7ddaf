//! Certificates and denylists.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hoist_broker::fuzzing::certificates(input));
