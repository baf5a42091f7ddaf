//! `hoist-agent`: see [`hoist_agent::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    hoist_agent::cli::main()
}
