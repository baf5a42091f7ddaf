//! A fleet of which always the same is to be seen: times are told in ways that do not change within the hour, ids and
//! keys are given.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::Result;
use camino::{Utf8Path, Utf8PathBuf};
use hoist_certs::files::{Overwrite, write_private};
use hoist_protocol::{
    Action, Changes, Channel, DeploymentId, FetchProgress, FleetName, History, HistoryEntry,
    KeyName, Machine, PackageChange, Presence, PublicKey, Reason, RebootReason, SigningKey, State,
    Status, StorePath, System, Tag, Text, Timestamp, TrustedKeys,
};
use hoist_tests::authority::{Authority, Identity};
use hoist_tests::broker::Broker;
use hoist_tests::foreign::Client;
use hoist_tests::forge::{Forge, now};
use hoist_tests::programs::Programs;
use hoist_tests::stand_in::{Cast, Fortune, Part};
use hoist_tests::world::FLEET;
use serde_json::{Value, json};

/// What `web-1` ran before, runs, and is to run.
pub(super) const SYSTEMS: [&str; 3] = [
    "/nix/store/0c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-24.11.20241126.5083ec8",
    "/nix/store/1c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-25.05.20250601.a9b2c1d",
    "/nix/store/2c5b8w3k3fxjhk5hd1zkjb1m5vq0l2ga-nixos-system-web-1-25.11.20251201.77d0f3e",
];

/// Who has a certificate, and as what.
const CAST: [(&str, &str); 7] = [
    ("agent", "web-1"),
    ("agent", "web-2"),
    ("agent", "db-1"),
    ("agent", "laptop"),
    ("agent", "nas"),
    ("publisher", "ci"),
    ("admin", "root"),
];

/// The certificates and keys, which all copies of the fleet share.
pub(super) struct Papers {
    authority: Authority,
    broker: Identity,
    key: SigningKey,
}

/// One copy of the fleet: a folder for `hoist` to run in, with a broker and machines of its own.
pub(super) struct Fleet {
    // Ended first: the machines before the broker.
    _cast: Cast,
    broker: Broker,
    dir: Utf8PathBuf,
}

/// The key with this name, always the same.
fn key(name: &str) -> Result<SigningKey> {
    let mut seed = [7; 32];
    seed[..name.len()].copy_from_slice(name.as_bytes());
    Ok(SigningKey::from_seed(KeyName::new(name)?, &seed.into()))
}

impl Papers {
    pub(super) fn make(dir: &Utf8Path, programs: &Programs, logs: &Utf8Path) -> Result<Self> {
        let authority = Authority::create(&dir.join("certs"), FLEET, programs, logs)?;
        for (role, name) in CAST {
            authority.issue(role, name, &[])?;
        }
        for name in ["ci", "release"] {
            let file = authority.dir().join(format!("{name}.signing-key"));
            write_private(&file, key(name)?.to_text().as_bytes(), Overwrite::No)?;
        }
        Ok(Self {
            broker: authority.issue("broker", "main", &["--host", "127.0.0.1"])?,
            authority,
            key: key("ci")?,
        })
    }
}

impl Fleet {
    /// Starts it in `dir`.
    pub(super) fn start(dir: &Utf8Path, papers: &Papers, programs: &Programs) -> Result<Self> {
        let logs = dir.join("logs");
        fs::create_dir_all(&logs)?;
        let public = papers.key.public();
        let trusted = format!("trusted_keys = [{:?}]\n", public.to_string());
        let broker = Broker::start(
            &dir.join("broker"),
            &papers.broker,
            &trusted,
            programs,
            &logs,
        )?;
        let parts = parts()?;
        let publisher = papers.authority.identity("publisher", "ci");
        let client = Client::new(publisher, "ci.seed", broker.port(), &logs);
        for part in &parts {
            if let Some(bytes) = standing(part, &papers.key)? {
                let topic = part.machine.topic(Channel::Deploy).to_string();
                client.publish(&topic, &bytes, true)?.success()?;
            }
        }
        let identity = |part: Part| {
            let name = part.machine.agent.to_string();
            (part, papers.authority.identity("agent", &name))
        };
        let cast = parts.into_iter().map(identity).collect();
        let trusted = TrustedKeys::new(vec![public.clone()])?;
        let fleet = Self {
            _cast: Cast::enter(cast, broker.port(), &trusted)?,
            broker,
            dir: dir.to_owned(),
        };
        fleet.furnish(&key("release")?.public())?;
        Ok(fleet)
    }

    pub(super) fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    /// What differs from run to run, and what stands for it.
    pub(super) fn stands_for(&self) -> (String, String) {
        (self.broker.port().to_string(), self.dir.to_string())
    }

    /// Writes what `hoist` finds in its folder.
    fn furnish(&self, other: &PublicKey) -> Result<()> {
        let settings = |role: &str, name: &str, rest: &str| {
            format!(
                "broker = {:?}\nca = '../certs/ca.pem'\ncertificate = '../certs/{role}-{name}.pem'\n\
                 key = '../certs/{role}-{name}.key'\n{rest}",
                self.broker.url()
            )
        };
        let signs = format!(
            "signing_key = '../certs/ci.signing-key'\ntrusted_keys = [{:?}, {:?}]\n",
            key("ci")?.public().to_string(),
            other.to_string()
        );
        let [before, runs, new] = SYSTEMS;
        let agents = json!({ "web-1": new, "web-2": new, "laptop": new });
        for (name, text) in [
            ("hoist.toml", settings("publisher", "ci", &signs)),
            ("admin.toml", settings("admin", "root", "")),
            ("spec.json", json!({ "agents": agents }).to_string()),
            (
                "web-1.json",
                json!({ "agents": { "web-1": new } }).to_string(),
            ),
            (
                "laptop.json",
                json!({ "agents": { "laptop": new } }).to_string(),
            ),
            (
                "bad.json",
                json!({ "agents": { "web-1": "result" } }).to_string(),
            ),
        ] {
            write_private(&self.dir.join(name), text.as_bytes(), Overwrite::No)?;
        }
        let package = |hash: &str, name: &str, size: u64| {
            let path = format!("/nix/store/{}-{name}", hash.repeat(32));
            path_info(&path, size, &[])
        };
        let (old, newer) = (
            package("0", "openssl-3.0.1", 10 << 20),
            package("1", "openssl-3.0.2", 12 << 20),
        );
        let infos = json!([
            path_info(before, 1 << 20, &[&old]),
            path_info(runs, 1 << 20, &[&newer]),
            path_info(new, 1 << 20, &[&newer]),
            old,
            newer,
        ]);
        let entry = json!({ "json": json!(new).to_string(), "needs": {} });
        let bin = self.dir.join("bin");
        fs::create_dir(&bin)?;
        let nix = NIX
            .replace("INFOS", &infos.to_string())
            .replace("ENTRY", &entry.to_string());
        for (name, script) in [("nix", nix), ("nix-store", "#!/bin/sh\n".to_owned())] {
            fs::write(bin.join(name), script)?;
            fs::set_permissions(bin.join(name), Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}

/// A Nix that has all of it, and one flake.
const NIX: &str = r##"#!/bin/sh
case "$*" in
    path-info*) set -- ;;
esac
case "$*" in
    --version) echo 'nix (Nix) 2.26.3' ;;
    flake*) echo '{ "url": "/fleet" }' ;;
    *path-info* | "") echo 'INFOS' ;;
    eval*'#nixosConfigurations') echo '["web-1"]' ;;
    eval*'#nixosConfigurations."web-1"') echo 'ENTRY' ;;
    eval*) echo "error: the flake does not provide attribute 'x'" >&2; exit 1 ;;
    copy*bad*) echo 'error: cannot open connection to remote store' >&2; exit 1 ;;
esac
"##;

fn path_info(path: &str, size: u64, references: &[&Value]) -> Value {
    let references: Vec<&Value> = references.iter().map(|info| &info["path"]).collect();
    json!({
        "path": path,
        "narHash": "sha256-EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=",
        "narSize": size,
        "references": references,
    })
}

/// What lies on the topic of a machine: the deployment that it speaks of.
fn standing(part: &Part, key: &SigningKey) -> Result<Option<Vec<u8>>> {
    let Some(status) = &part.status else {
        return Ok(None);
    };
    let (Some(order), Some(path)) = (status.order(), &status.path) else {
        return Ok(None);
    };
    let mut forge = Forge::new(FLEET, &part.machine.agent, path)?;
    forge.order = order;
    forge.valid = Duration::from_secs(90 * 86_400);
    Ok(Some(forge.sign(SigningKey::parse(&key.to_text())?)?))
}

/// So long ago.
fn ago(days: u64, minutes: u64) -> Timestamp {
    let ago = Duration::from_secs(days * 86_400 + minutes * 60);
    Timestamp::from_ms(now().as_ms() - u64::try_from(ago.as_millis()).unwrap_or_default())
}

fn id(number: u128) -> DeploymentId {
    DeploymentId::new(uuid::Uuid::from_u128(
        0x7000_8000_0000_0000_0000 + 0xa000 + number,
    ))
}

fn part(name: &str, fortune: Fortune) -> Result<Part> {
    Ok(Part {
        machine: Machine::new(FleetName::new(FLEET)?, name.parse()?),
        presence: match fortune {
            Fortune::Silent => Presence::Offline,
            Fortune::Succeeds | Fortune::RollsBack => Presence::Online,
        },
        status: None,
        history: None,
        fortune,
    })
}

fn parts() -> Result<Vec<Part>> {
    let mut web_1 = part("web-1", Fortune::Succeeds)?;
    let mut status = status(&web_1.machine, 3, State::Succeeded, SYSTEMS[1])?;
    // The word of a machine whose clock is a little ahead is as good as new, for an hour.
    status.ts = now().plus(Duration::from_secs(3600));
    status.tags = vec![Tag::new("web")?];
    status.changes = Some(changes());
    status.closure_size = Some(13 << 20);
    status.log_lines = Some(2);
    status.log_tail = vec![
        Text::lossy("setting up /etc..."),
        Text::lossy("restarting nginx"),
    ];
    status.reboot_reasons = vec![RebootReason::Kernel];
    web_1.history = Some(History {
        agent: web_1.machine.agent.clone(),
        fleet: web_1.machine.fleet.clone(),
        entries: vec![
            entry(3, State::Succeeded, SYSTEMS[1])?,
            HistoryEntry {
                reason: Some(Reason::UnitsFailed),
                message: Text::lossy("these units failed: nginx.service"),
                ..entry(2, State::RolledBack, SYSTEMS[2])?
            },
            entry(1, State::Succeeded, SYSTEMS[0])?,
        ],
    });
    web_1.status = Some(status);

    let mut web_2 = part("web-2", Fortune::RollsBack)?;
    let mut status = self::status(&web_2.machine, 5, State::RolledBack, SYSTEMS[1])?;
    status.tags = vec![Tag::new("web")?, Tag::new("canary")?];
    status.current_path = Some(SYSTEMS[0].parse()?);
    status.reason = Some(Reason::UnitsFailed);
    status.message =
        Text::lossy("these units failed: nginx.service, php-fpm.service; they had run before");
    status.log_lines = Some(40);
    status.log_tail = vec![
        Text::lossy("restarting the following units: nginx.service, php-fpm.service"),
        Text::lossy(
            "Job for nginx.service failed because the control process exited with error code.",
        ),
    ];
    web_2.status = Some(status);

    let mut db_1 = part("db-1", Fortune::Succeeds)?;
    let mut status = self::status(&db_1.machine, 6, State::Fetching, SYSTEMS[1])?;
    status.current_path = Some(SYSTEMS[0].parse()?);
    status.progress = Some(41);
    status.fetch = Some(FetchProgress {
        fetched_bytes: 510 << 20,
        fetch_bytes: 1_240 << 20,
        fetched_paths: 120,
        fetch_paths: 340,
    });
    db_1.status = Some(status);

    let mut laptop = part("laptop", Fortune::Silent)?;
    let mut status = self::status(&laptop.machine, 7, State::Succeeded, SYSTEMS[1])?;
    status.warnings = vec![Text::lossy("the certificate ends in 12 days")];
    laptop.status = Some(status);

    Ok(vec![
        web_1,
        web_2,
        db_1,
        laptop,
        part("nas", Fortune::Silent)?,
    ])
}

fn status(machine: &Machine, number: u64, state: State, path: &str) -> Result<Status> {
    let path: StorePath = path.parse()?;
    // Half an hour from where the words for it change.
    let ts = ago(2, 210);
    Ok(Status {
        state,
        id: Some(id(number.into())),
        epoch: Some(0),
        sequence: Some(ts.as_ms()),
        floor: ts.as_ms(),
        path: Some(path.clone()),
        previous_path: Some(SYSTEMS[0].parse()?),
        current_path: Some(path),
        kind: Some(Text::lossy("nixos")),
        action: Some(Action::Switch),
        attempts: 1,
        trusted_keys: vec![KeyName::new("ci")?],
        ..Status::idle(
            machine,
            System::new("x86_64-linux")?,
            Text::lossy("0.1.0"),
            Text::lossy("1"),
            ts,
        )
    })
}

fn entry(number: u64, state: State, path: &str) -> Result<HistoryEntry> {
    // The newest has the lowest age.
    let ended_at = ago(8 - 2 * number, 210);
    Ok(HistoryEntry {
        id: id(number.into()),
        epoch: 0,
        sequence: ended_at.as_ms(),
        local: false,
        state,
        reason: None,
        message: Text::default(),
        path: Some(path.parse()?),
        previous_path: Some(SYSTEMS[0].parse()?),
        started_at: Timestamp::from_ms(ended_at.as_ms() - 42_000),
        ended_at,
        closure_size: Some(13 << 20),
        fetched_bytes: None,
        changes: Some(changes()),
    })
}

fn changes() -> Changes {
    Changes {
        packages_changed: 1,
        size_difference: 2 << 20,
        packages: vec![PackageChange {
            name: Text::lossy("openssl"),
            from: Some(Text::lossy("3.0.1")),
            to: Some(Text::lossy("3.0.2")),
        }],
        ..Changes::default()
    }
}
