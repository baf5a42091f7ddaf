//! The files for CI systems: they hold together, and what they run deploys and is shown as it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{AgentName, StorePath};
use hoist_tests::closure::System;
use hoist_tests::github::GitHub;
use hoist_tests::process::{self, Finished, Process};
use hoist_tests::wait;
use hoist_tests::world::{Options, World, scenario};
use rustix::process::Signal;
use serde_json::Value;

use super::flakes::flake;

const TOKEN: &str = "ghs_0123456789abcdefghij";

fn checkout() -> Result<Utf8PathBuf> {
    let tests = Utf8Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(tests.parent().context("the checkout")?.to_owned())
}

fn read(name: &str) -> Result<String> {
    let path = checkout()?.join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

fn yaml(name: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(&read(name)?).with_context(|| format!("{name} is no YAML"))
}

/// The names that stand between `begin` and `end` in `text`.
fn named<'a>(text: &'a str, begin: &str, end: &str) -> BTreeSet<&'a str> {
    let parts = text.split(begin).skip(1);
    parts
        .filter_map(|part| part.split_once(end))
        .map(|(name, _)| name.trim())
        .collect()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().into_iter();
    object
        .flat_map(|object| object.keys().map(String::as_str))
        .collect()
}

#[test]
fn every_input_of_the_files_for_ci_is_declared_and_used() {
    let check = || -> Result<()> {
        let action = &yaml("action.yml")?[0];
        let text = read("action.yml")?;
        ensure!(named(&text, "${{ inputs.", "}}") == keys(&action["inputs"]));
        for input in keys(&action["inputs"]) {
            let input = &action["inputs"][input];
            ensure!(input["description"].is_string(), "{input}");
            ensure!(
                input["required"] == true || input["default"] == "",
                "{input}"
            );
        }
        let steps = action["runs"]["steps"].as_array().context("steps")?;
        let ids: Vec<&Value> = steps.iter().map(|step| &step["id"]).collect();
        for output in named(&text, "${{ steps.", "}}") {
            let (step, rest) = output.split_once('.').context("a step's output")?;
            ensure!(ids.contains(&&Value::from(step)), "{step}");
            let name = rest.trim_start_matches("outputs.");
            ensure!(
                read("ci/github.sh")?.contains(&format!("\"{name}=")),
                "{name}"
            );
        }
        for step in steps {
            // What an input says is never a part of a program.
            let run = step["run"].as_str().context("a script")?;
            ensure!(!run.contains("${{") && step["shell"] == "bash", "{step}");
        }

        let component = yaml("ci/gitlab.yml")?;
        ensure!(component.len() == 2);
        let text = read("ci/gitlab.yml")?;
        ensure!(named(&text, "$[[ inputs.", "]]") == keys(&component[0]["spec"]["inputs"]));
        Ok(())
    };
    check().expect("the files for CI hold together");
}

/// Two machines, the second of which fails, and their spec.
fn half_broken(world: &World) -> Result<Utf8PathBuf> {
    let mut agents: Vec<(AgentName, StorePath)> = Vec::new();
    for (name, system) in [
        ("web-1", System::new("web-1", "1")),
        ("web-2", System::new("web-2", "1").failing()),
    ] {
        agents.push((AgentName::new(name)?, world.system(&system)?));
    }
    let agents: Vec<_> = agents.iter().map(|(name, path)| (name, path)).collect();
    world.spec(&agents, None)
}

/// Runs the steps of `action.yml` as GitHub would, with these inputs and variables.
fn run_action(
    world: &World,
    inputs: &BTreeMap<&str, String>,
    variables: &[(&str, String)],
) -> Result<Finished> {
    let command = action(world, inputs, variables)?;
    process::run("action", command, world.site().logs())
}

fn action(
    world: &World,
    inputs: &BTreeMap<&str, String>,
    variables: &[(&str, String)],
) -> Result<Command> {
    let action = &yaml("action.yml")?[0];
    let value = |text: &str| {
        let mut text = text.to_owned();
        for name in keys(&action["inputs"]) {
            let default = action["inputs"][name]["default"].as_str().unwrap_or("");
            let given = inputs.get(name).map_or(default, String::as_str);
            text = text.replace(&format!("${{{{ inputs.{name} }}}}"), given);
        }
        text
    };
    let step = &action["runs"]["steps"][0];
    // A shell cannot trap what whoever started it ignores, as one that runs the tests in the background does.
    let mut command = process::command("env");
    command.args(["--default-signal=INT", "bash", "-e", "-c"]);
    command.arg(step["run"].as_str().context("a script")?);
    for (name, text) in step["env"].as_object().context("its variables")? {
        command.env(name, value(text.as_str().context("a text")?));
    }
    command
        .env("GITHUB_ACTION_PATH", checkout()?)
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_REPOSITORY", "me/fleet")
        .env("GITHUB_SHA", "8f0e6d1c5b7a4f3e2d1c0b9a8f7e6d5c4b3a2f1e")
        .env("GITHUB_SERVER_URL", "https://github.example.org")
        .env("GITHUB_RUN_ID", "7")
        .env("RUNNER_TEMP", world.site().dir())
        .env("GITHUB_OUTPUT", world.site().dir().join("output"))
        .env("GITHUB_STEP_SUMMARY", world.site().dir().join("summary.md"))
        .envs(variables.iter().map(|(name, value)| (*name, value)));
    Ok(command)
}

/// The inputs that say where and who.
fn settings(world: &World) -> Result<BTreeMap<&'static str, String>> {
    let publisher = &world.publisher;
    Ok(BTreeMap::from([
        ("hoist", world.site().programs().publisher.to_string()),
        ("broker", world.broker.url()),
        ("ca", fs::read_to_string(&publisher.ca)?),
        ("certificate", fs::read_to_string(&publisher.certificate)?),
        ("key", fs::read_to_string(&publisher.key)?),
        ("signing-key", fs::read_to_string(&world.signing_key.path)?),
    ]))
}

#[test]
fn the_github_action_deploys_and_shows_what_became_of_it() {
    scenario(Options::default(), |world| {
        let spec = half_broken(world)?;
        let _machines = [world.running("web-1")?, world.running("web-2")?];
        let github = GitHub::start(201)?;
        let mut inputs = settings(world)?;
        inputs.insert("spec", spec.to_string());
        inputs.insert("environment", "production".to_owned());
        inputs.insert("token", TOKEN.to_owned());
        inputs.insert("args", "--no-digest\n".to_owned());
        let api = [("GITHUB_API_URL", github.url()?)];
        let done = run_action(world, &inputs, &api)?.expect_code(3)?;

        // GitHub's commands are off but for ours, and what belongs together can be folded.
        let lines: Vec<&str> = done.stderr.lines().collect();
        let off = lines[0]
            .strip_prefix("::stop-commands::")
            .context("off first")?;
        let on = format!("::{off}::");
        let mut is_on = false;
        let mut ours = Vec::new();
        for line in &lines {
            if *line == on {
                is_on = true;
            } else if line.starts_with("::stop-commands::") {
                is_on = false;
            } else if is_on {
                ours.push(*line);
            }
        }
        ensure!(is_on, "later steps have their commands: {}", done.stderr);
        ensure!(
            ours.len() == 3 && ours[0] == "::group::Deploying to 2 machines",
            "{ours:?}"
        );
        ensure!(ours[1] == "::endgroup::", "{ours:?}");
        ensure!(
            ours[2].starts_with("::error title=web-2 failed::"),
            "{ours:?}"
        );
        ensure!(
            done.stdout.is_empty() && done.stderr.contains("MACHINE"),
            "the table is among our marks, whose order another stream does not keep: {}",
            done.stdout
        );

        let output = fs::read_to_string(world.site().dir().join("output"))?;
        ensure!(output.starts_with("exit-code=3\nreport="), "{output}");
        let report = output.trim().rsplit_once('=').context("a file")?.1;
        let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
        ensure!(report["exit_code"] == 3 && report["machines"][0]["outcome"] == "succeeded");
        let summary = fs::read_to_string(world.site().dir().join("summary.md"))?;
        ensure!(summary.contains("1 succeeded, 1 failed"), "{summary}");
        ensure!(
            summary.contains("<td>web-2</td><td>failed</td>"),
            "{summary}"
        );

        let asked = github.asked();
        let paths: Vec<&str> = asked.iter().map(|asked| asked.path.as_str()).collect();
        let statuses = "/repos/me/fleet/deployments/41/statuses";
        ensure!(
            paths == ["/repos/me/fleet/deployments", statuses, statuses],
            "{paths:?}"
        );
        let first = &asked[0].body;
        ensure!(first["environment"] == "production", "{first}");
        ensure!(
            first["ref"] == "8f0e6d1c5b7a4f3e2d1c0b9a8f7e6d5c4b3a2f1e",
            "{first}"
        );
        ensure!(asked[1].body["state"] == "in_progress" && asked[2].body["state"] == "failure");
        let log_url = "https://github.example.org/me/fleet/actions/runs/7";
        ensure!(asked[2].body["log_url"] == log_url, "{asked:?}");
        for one in &asked {
            ensure!(one.authorization == format!("Bearer {TOKEN}"));
        }
        ensure!(
            !(done.stdout + &done.stderr).contains(TOKEN),
            "the token is in the log"
        );
        Ok(())
    });
}

#[test]
fn a_deployment_that_github_does_not_show_is_a_deployment_all_the_same() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let mut inputs = settings(world)?;
        inputs.insert("environment", "production".to_owned());
        let refusing = GitHub::start(403)?;
        let gone = {
            let github = GitHub::start(500)?;
            github.url()?
        };
        let said = [
            (refusing.url()?, TOKEN, "deployments: write"),
            (gone, TOKEN, "cannot be asked"),
            ("http://github.example.org".to_owned(), TOKEN, "no https"),
            (refusing.url()?, "", "GITHUB_TOKEN is not set"),
        ];
        for (version, (api, token, word)) in said.into_iter().enumerate() {
            let path = world.system(&System::new("web-1", &version.to_string()))?;
            let spec = world.spec(&[(machine.name(), &path)], None)?;
            inputs.insert("spec", spec.to_string());
            inputs.insert("token", token.to_owned());
            let done = run_action(world, &inputs, &[("GITHUB_API_URL", api)])?.expect_code(0)?;
            ensure!(
                done.stderr.contains("warning: GitHub does not show"),
                "{}",
                done.stderr
            );
            ensure!(
                done.stderr.contains(word),
                "`{word}` is not in {}",
                done.stderr
            );
            ensure!(!done.stderr.contains(TOKEN), "the token is in the log");
            ensure!(machine.current_system()? == Some(path));
        }
        Ok(())
    });
}

#[test]
fn a_github_job_claims_no_success_before_it_is_known_and_leaves_its_files_in_a_dry_run_too() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let path = world.system(&System::new("web-1", "1"))?;
        let mut inputs = settings(world)?;
        let spec = world.spec(&[(machine.name(), &path)], None)?;
        inputs.insert("spec", spec.to_string());
        inputs.insert("args", "--no-digest\n--dry-run\n".to_owned());
        run_action(world, &inputs, &[])?.expect_code(0)?;
        let output = fs::read_to_string(world.site().dir().join("output"))?;
        let report = output.trim().rsplit_once('=').context("a file")?.1;
        let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
        ensure!(report["dry_run"] == true, "{report}");
        let summary = fs::read_to_string(world.site().dir().join("summary.md"))?;
        ensure!(summary.contains("nothing was published"), "{summary}");

        let github = GitHub::start(201)?;
        inputs.insert("environment", "production".to_owned());
        inputs.insert("token", TOKEN.to_owned());
        inputs.insert("args", "--no-digest\n--async\n".to_owned());
        let api = [("GITHUB_API_URL", github.url()?)];
        run_action(world, &inputs, &api)?.expect_code(0)?;
        let asked = github.asked();
        let states: Vec<&Value> = asked[1..].iter().map(|one| &one.body["state"]).collect();
        ensure!(states == ["in_progress"; 2], "{asked:?}");
        Ok(())
    });
}

#[test]
fn a_github_job_that_is_cancelled_ends_hoist_and_has_its_report() {
    scenario(Options::default(), |world| {
        let machine = world.running("web-1")?;
        let mut inputs = settings(world)?;
        inputs.insert("args", "--no-digest\n".to_owned());
        // GitHub sends the one, and after a while the other.
        for (version, signal) in [("1", Signal::INT), ("2", Signal::TERM)] {
            let path = world.system(&System::new("web-1", version))?;
            let gate = machine.gate(version, "test")?;
            let spec = world.spec(&[(machine.name(), &path)], None)?;
            inputs.insert("spec", spec.to_string());
            let output = world.site().dir().join("output");
            let before = if output.exists() {
                fs::read_to_string(&output)?
            } else {
                String::new()
            };
            let command = action(world, &inputs, &[])?;
            let mut job = Process::start("cancelled", command, world.site().logs())?;
            gate.wait_reached()?;
            job.signal(signal)?;
            let done = Finished::wait(job)?.expect_code(130)?;
            ensure!(
                done.stderr.contains("go on by themselves"),
                "{}",
                done.stderr
            );
            let all = fs::read_to_string(&output)?;
            let output = all.strip_prefix(&before).context("what was there")?;
            ensure!(output.starts_with("exit-code=130\n"), "{output}");
            let report = output.trim().rsplit_once('=').context("a file")?.1;
            let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
            ensure!(report["interrupted"] == true, "{report}");
            gate.open()?;
            wait::until_true("the machine goes on by itself", || {
                Ok(machine.current_system()?.as_ref() == Some(&path))
            })?;
        }
        Ok(())
    });
}

#[test]
fn the_github_action_says_what_is_missing() {
    scenario(Options::default(), |world| {
        let inputs = settings(world)?;
        let done = run_action(world, &inputs, &[])?.expect_code(2)?;
        ensure!(
            done.stdout.contains("neither the input flake nor spec"),
            "{}",
            done.stdout
        );
        let mut inputs = settings(world)?;
        inputs.insert("spec", "/none.json".to_owned());
        let done = run_action(world, &inputs, &[])?.expect_code(2)?;
        ensure!(
            done.stderr
                .contains("::error title=Hoist::cannot read the spec"),
            "{}",
            done.stderr
        );
        Ok(())
    });
}

#[test]
fn the_gitlab_component_deploys_in_sections_and_leaves_a_summary() {
    scenario(Options::default(), |world| {
        let spec = half_broken(world)?;
        let _machines = [world.running("web-1")?, world.running("web-2")?];
        let component = yaml("ci/gitlab.yml")?;
        let given = BTreeMap::from([
            ("image", "with-hoist".to_owned()),
            ("spec", spec.to_string()),
            ("broker", world.broker.url()),
            ("agents", "web-*".to_owned()),
            ("args", "--no-digest --wait=online".to_owned()),
        ]);
        let inputs = &component[0]["spec"]["inputs"];
        let value = |text: &str| {
            let mut text = text.to_owned();
            for name in keys(inputs) {
                let default = inputs[name]["default"].as_str().unwrap_or("");
                let given = given.get(name).map_or(default, String::as_str);
                text = text.replace(&format!("$[[ inputs.{name} ]]"), given);
            }
            text
        };
        let job = &component[1]["$[[ inputs.job ]]"];
        let folder = world.site().dir().join("job");
        fs::create_dir(&folder)?;
        let mut command = process::command("sh");
        command.args(["-ec", job["script"][0].as_str().context("a script")?]);
        for (name, text) in job["variables"].as_object().context("its variables")? {
            command.env(name, value(text.as_str().context("a text")?));
        }
        let hoist = Utf8Path::new(&world.site().programs().publisher);
        let programs = hoist.parent().context("a folder")?;
        command
            .current_dir(&folder)
            .env("PATH", format!("{programs}:/usr/bin:/bin"))
            .env("GITLAB_CI", "true")
            .env("HOIST_CONFIG", world.publisher_config());
        let done = process::run("gitlab", command, world.site().logs())?.expect_code(3)?;
        let begin = done
            .stderr
            .find("\u{1b}[0Ksection_start:")
            .context("a section")?;
        let end = done
            .stderr
            .find("\u{1b}[0Ksection_end:")
            .context("its end")?;
        ensure!(begin < end, "{}", done.stderr);
        ensure!(
            !done.stderr.contains("::"),
            "GitHub's commands: {}",
            done.stderr
        );
        let artifact = job["artifacts"]["paths"][0].as_str().context("a path")?;
        let summary = fs::read_to_string(folder.join(artifact))?;
        ensure!(summary.contains("1 succeeded, 1 failed"), "{summary}");
        Ok(())
    });
}

#[test]
fn the_plain_script_builds_pushes_and_deploys() {
    scenario(Options::default(), |world| {
        let dir = flake(world)?;
        let machine = world.running("web-1")?;
        let script = checkout()?.join("ci/deploy.sh");
        let mut command = world.builder.command(script.as_str());
        command
            .args([format!("{dir}#good").as_str(), "--no-skip"])
            .env("HOIST", &world.site().programs().publisher)
            .env("HOIST_CONFIG", world.publisher_config())
            .env("HOIST_CACHE", world.cache.push_url());
        process::run("plain", command, world.site().logs())?.expect_code(0)?;
        ensure!(machine.current_system()?.is_some());
        Ok(())
    });
}
