//! Deploys a thousand times to one agent and looks at what is left: `make soak`.

use std::process::ExitCode;

use clap::Parser as _;
use hoist_tests::soak::{Options, run};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", hoist_certs::program::report(&error));
            ExitCode::FAILURE
        }
    }
}
