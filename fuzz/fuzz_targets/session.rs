//! A client that sends anything at all, to a session that does as if all was well with the broker.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hoist_broker::fuzzing::session(input));
