//! What the modules for NixOS, nix-darwin and home-manager write is what the programs read.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use camino::Utf8Path;
use hoist_tests::process;
use hoist_tests::world::{Options, scenario};

/// Evaluates `nix/tests/settings.nix`: the settings that the modules make, for each program.
fn settings_of_the_modules(logs: &Utf8Path) -> Result<serde_json::Value> {
    let file = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../nix/tests/settings.nix");
    let mut command = process::command(Utf8Path::new("nix-instantiate"));
    // Evaluated without any store: nothing is built, and none may be there yet.
    command.args(["--store", "dummy://", "--eval", "--strict", "--json"]);
    command.arg(&file);
    let finished = process::run("settings", command, logs)?.expect_code(0)?;
    serde_json::from_str(&finished.stdout).with_context(|| format!("{file} gave no JSON"))
}

#[test]
fn the_programs_read_every_setting_that_the_modules_write() {
    scenario(Options::default(), |world| {
        let site = world.site();
        let programs = site.programs();
        let settings = settings_of_the_modules(site.logs())?;
        for (name, program) in [
            ("hoist-agent", &programs.agent),
            ("hoist-broker", &programs.broker),
        ] {
            let modules = settings[name].as_object().context("modules by name")?;
            for (module, settings) in modules {
                let path = site.dir().join(format!("{name}-{module}.toml"));
                fs::write(&path, toml::to_string(settings)?)?;
                let mut command = process::command(program);
                command.args(["run", "--config", path.as_str()]);
                let finished = process::run(name, command, site.logs())?.expect_code(1)?;
                // All settings are read before the first file that they name, which is not there.
                ensure!(
                    finished.stderr.contains("/nonexistent/ca.pem"),
                    "{name} refused the settings of its module for {module}: {}",
                    finished.stderr
                );
            }
        }
        Ok(())
    });
}
