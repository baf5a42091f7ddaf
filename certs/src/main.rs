//! `hoist-certs`: makes the certificates and keys of a fleet.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
