//! Filters, topics, client ids and payloads of everybody.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hoist_broker::fuzzing::guard(input));
