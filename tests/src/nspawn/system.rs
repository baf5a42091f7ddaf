//! NixOS systems for booted machines: units, an agent, and scripts that do to units what NixOS's own do.

use std::collections::BTreeMap;

use anyhow::Result;
use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::StorePath;
use serde::Serialize;
use serde_json::{Value, json};

use crate::builder::Builder;

/// The agent of a system.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AgentPackage {
    /// The program that is copied into the package.
    pub(super) program: String,
    /// Tells packages of the same program apart.
    pub(super) revision: String,
    /// `services.hoist-agent` of the configuration.
    pub(super) settings: Value,
}

/// A unit besides the agent's.
#[derive(Clone, Debug, Serialize)]
struct Unit {
    text: String,
    #[serde(rename = "wantedBy")]
    wanted_by: Vec<String>,
}

/// What `system.nix` makes a system of.
#[derive(Clone, Debug, Serialize)]
struct Spec<'a> {
    name: &'a str,
    version: &'a str,
    kernel: &'a str,
    agent: Option<&'a AgentPackage>,
    #[serde(rename = "agentUnit")]
    agent_unit: Value,
    units: &'a BTreeMap<String, Unit>,
    activate: String,
    init: &'a str,
    switch: String,
}

/// Deployments follow each other faster here than systemd lets a service start.
const STARTS: &str = "StartLimitIntervalSec=0\n";

/// A NixOS system with the agent, and `web.service`, which says its version and runs.
#[derive(Clone, Debug)]
pub struct BootedSystem {
    name: String,
    version: String,
    kernel: String,
    agent: Option<AgentPackage>,
    restarts_agent: bool,
    units: BTreeMap<String, Unit>,
    cut_off: bool,
    script: String,
    inhibit: String,
    after: String,
}

impl BootedSystem {
    pub(super) fn new(name: &str, version: &str, agent: AgentPackage) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            kernel: "6.1".to_owned(),
            agent: Some(agent),
            restarts_agent: true,
            units: BTreeMap::new(),
            cut_off: false,
            script: String::new(),
            inhibit: String::new(),
            after: String::new(),
        }
        .unit(
            "web.service",
            &format!(
                "[Unit]\nDescription=Web server\n{STARTS}[Service]\nEnvironment=VERSION={version}\n\
                 ExecStart=/bin/sleep infinity\n"
            ),
        )
    }

    /// The unit `name`, wanted by `multi-user.target`; in the place of the one that has the name.
    #[must_use]
    pub fn unit(mut self, name: &str, text: &str) -> Self {
        let unit = Unit {
            text: text.to_owned(),
            wanted_by: vec!["multi-user.target".to_owned()],
        };
        self.units.insert(name.to_owned(), unit);
        self
    }

    /// Nix's daemon, through which everybody but root uses the store.
    #[must_use]
    pub(super) fn with_nix_daemon(mut self) -> Self {
        for (name, text, wanted_by) in [
            ("nix-daemon.socket", NIX_SOCKET, Some("sockets.target")),
            ("nix-daemon.service", NIX_DAEMON, None),
        ] {
            let unit = Unit {
                text: text.to_owned(),
                wanted_by: wanted_by.map(str::to_owned).into_iter().collect(),
            };
            self.units.insert(name.to_owned(), unit);
        }
        self
    }

    /// No agent, as of somebody who forgot the module.
    #[must_use]
    pub fn without_agent(mut self) -> Self {
        self.agent = None;
        self
    }

    /// The agent with another setting of `services.hoist-agent.settings`.
    #[must_use]
    pub fn agent_setting(mut self, key: &str, value: &str) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.settings["settings"][key] = value.into();
        }
        self
    }

    /// A switch does not restart the agent when its unit has changed: `restartIfChanged = false`.
    #[must_use]
    pub const fn leaving_agent(mut self) -> Self {
        self.restarts_agent = false;
        self
    }

    /// The agent from another package: another store path.
    #[must_use]
    pub fn agent_revision(mut self, revision: &str) -> Self {
        if let Some(agent) = &mut self.agent {
            revision.clone_into(&mut agent.revision);
        }
        self
    }

    /// Its network configuration keeps the machine from the broker.
    #[must_use]
    pub const fn without_network(mut self) -> Self {
        self.cut_off = true;
        self
    }

    /// `script` is a part of its activation script, before `/run/current-system` is set.
    #[must_use]
    pub fn activation(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// `script` runs in `switch-to-configuration` after the boot loader was set, before anything is activated.
    #[must_use]
    pub fn inhibiting(mut self, script: &str) -> Self {
        script.clone_into(&mut self.inhibit);
        self
    }

    /// `script` runs in `switch-to-configuration` when all is done; `$code` is its exit code.
    #[must_use]
    pub fn after_switch(mut self, script: &str) -> Self {
        script.clone_into(&mut self.after);
        self
    }

    /// Another kernel, which only a boot starts.
    #[must_use]
    pub fn kernel(mut self, version: &str) -> Self {
        version.clone_into(&mut self.kernel);
        self
    }

    /// Builds it; it lies in no cache yet.
    pub(super) fn build(&self, builder: &Builder) -> Result<StorePath> {
        let spec = Spec {
            name: &self.name,
            version: &self.version,
            kernel: &self.kernel,
            agent: self.agent.as_ref(),
            agent_unit: match self.restarts_agent {
                true => json!({}),
                false => json!({ "restartIfChanged": false }),
            },
            units: &self.units,
            activate: activation(include_str!("activate.sh"), self.cut_off, &self.script),
            init: include_str!("init.sh"),
            switch: include_str!("switch-to-configuration.sh")
                .replace("@inhibit@", &self.inhibit)
                .replace("@after@", &self.after),
        };
        build(builder, "system.nix", include_str!("system.nix"), &spec)
    }
}

/// An activation script made of `template`: it cuts the machine off from the broker or not, and runs `script`.
pub(super) fn activation(template: &str, cuts_off: bool, script: &str) -> String {
    let network = if cuts_off { "touch" } else { "rm -f" };
    template
        .replace("@network@", &format!("{network} $notes/{NETWORK_CUT}"))
        .replace("@script@", script)
}

/// Builds the closure that the Nix expression called `name` makes of `spec`.
pub(super) fn build(
    builder: &Builder,
    name: &str,
    expression: &str,
    spec: &impl Serialize,
) -> Result<StorePath> {
    let repository = repository()?;
    let given = [
        ("spec", serde_json::to_string(spec)?),
        ("repository", repository.to_string()),
    ];
    let given = given
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    builder.build_expression(name, expression, &given)
}

/// The file in the notes of a machine whose presence cuts its connection to the broker.
pub(super) const NETWORK_CUT: &str = "network-cut";

/// As the units that come with Nix.
const NIX_SOCKET: &str = "[Unit]
Description=Nix daemon socket
Before=multi-user.target
RequiresMountsFor=/nix/store
[Socket]
ListenStream=/nix/var/nix/daemon-socket/socket
";

const NIX_DAEMON: &str = "[Unit]
Description=Nix daemon
Requires=nix-daemon.socket
[Service]
ExecStart=@/usr/bin/nix-daemon nix-daemon --daemon
KillMode=process
";

/// The folder of this project, whose modules make the agent's units.
fn repository() -> Result<Utf8PathBuf> {
    let tests = Utf8Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(tests.join("..").canonicalize_utf8()?)
}
