//! The closures that scenarios deploy, and how they behave on a machine.

use serde::Serialize;

/// What Nix shall build; see `closures.nix`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Closure {
    /// A NixOS system.
    Nixos {
        /// The machine it is made for.
        name: String,
        /// What tells it apart from others, also in the notes of its activation.
        version: String,
        /// `switch-to-configuration`.
        script: String,
    },
    /// A package: nothing to activate.
    Profile {
        /// The package.
        name: String,
        /// Its version.
        version: String,
    },
    /// An executable file of the store.
    Program {
        /// Its name.
        name: String,
        /// What tells it apart from others.
        version: String,
        /// What it runs, with its `#!` line.
        script: String,
    },
}

impl Closure {
    /// A package for plain profiles.
    #[must_use]
    pub fn profile(name: &str, version: &str) -> Self {
        Self::Profile {
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }

    /// A health check that runs `script` in `/bin/sh`.
    #[must_use]
    pub fn health_check(script: &str) -> Self {
        Self::Program {
            name: "health-check".to_owned(),
            version: "1".to_owned(),
            script: format!("#!/bin/sh\n{script}\n"),
        }
    }
}

/// How a NixOS system behaves when it is activated. A new one does everything right.
#[derive(Clone, Debug, Default)]
pub struct System {
    name: String,
    version: String,
    test: String,
    after_test: String,
    boot: String,
    network: Option<&'static str>,
}

/// The file in a machine whose presence cuts its connection to the broker.
pub const NETWORK_CUT: &str = "/run/network-cut";

/// The file in a machine whose presence lets its connection hang: open, and silent.
pub const NETWORK_STALLED: &str = "/run/network-stalled";

impl System {
    /// Version `version` of the system of the machine `name`.
    #[must_use]
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            ..Self::default()
        }
    }

    /// Its activation fails with exit code 1 before it has changed anything.
    #[must_use]
    pub fn failing(mut self) -> Self {
        "echo 'error: cannot activate: no such unit' >&2; exit 1".clone_into(&mut self.test);
        self
    }

    /// Its activation runs, and then exits with `code`, as NixOS's does when units fail.
    #[must_use]
    pub fn failing_after(mut self, code: u8) -> Self {
        self.after_test =
            format!("echo 'warning: the following units failed: web.service' >&2; exit {code}");
        self
    }

    /// Its activation never ends.
    #[must_use]
    pub fn hanging(mut self) -> Self {
        "while :; do sleep 1; done".clone_into(&mut self.after_test);
        self
    }

    /// The boot loader cannot be set.
    #[must_use]
    pub fn failing_to_boot(mut self) -> Self {
        "echo 'error: no space left on /boot' >&2; exit 1".clone_into(&mut self.boot);
        self
    }

    /// Its network configuration keeps the machine from the broker.
    #[must_use]
    pub const fn without_network(mut self) -> Self {
        self.network = Some(NETWORK_CUT);
        self
    }

    /// Its network configuration swallows every packet, which nobody is told of.
    #[must_use]
    pub const fn with_silent_network(mut self) -> Self {
        self.network = Some(NETWORK_STALLED);
        self
    }

    /// What Nix builds it from.
    #[must_use]
    pub fn closure(&self) -> Closure {
        let network = match self.network {
            None => format!("rm -f {NETWORK_CUT} {NETWORK_STALLED}"),
            Some(file) => format!("touch {file}"),
        };
        let script = include_str!("switch-to-configuration.sh")
            .replace("@test@", or_nothing(&self.test))
            .replace("@after_test@", or_nothing(&self.after_test))
            .replace("@boot@", or_nothing(&self.boot))
            .replace("@network@", &network);
        Closure::Nixos {
            name: self.name.clone(),
            version: self.version.clone(),
            script,
        }
    }
}

fn or_nothing(script: &str) -> &str {
    if script.is_empty() { ":" } else { script }
}
