//! Measures Hoist beside mosquitto and prints tables: `make bench`.

use std::process::ExitCode;

use clap::Parser as _;
use hoist_tests::bench::{Options, run};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", hoist_certs::program::report(&error));
            ExitCode::FAILURE
        }
    }
}
