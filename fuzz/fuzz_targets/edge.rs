//! Bytes of a connection, cut anywhere, as packets.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hoist_broker::fuzzing::edge(input));
