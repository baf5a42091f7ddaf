//! `hoist-demo`: a fleet on this computer, and what Hoist does with it.

fn main() -> std::process::ExitCode {
    hoist_tests::demo::main()
}
