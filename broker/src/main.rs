//! `hoist-broker`: the broker between publishers and agents.

mod cli;
mod service;

fn main() -> std::process::ExitCode {
    cli::main()
}
