//! `hoist`: deploys fleets of Nix machines.

fn main() -> std::process::ExitCode {
    hoist_publisher::main()
}
