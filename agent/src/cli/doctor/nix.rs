//! Nix, its store, and the binary caches of the machine.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use hoist_certs::doctor::Finding;
use hoist_protocol::Text;
use serde::Deserialize;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long each call of Nix may take: far longer than it does even on a machine that is busy.
const ANSWER: Duration = Duration::from_secs(30);

/// How long Nix may take to connect to a cache, in seconds.
const CONNECT: &str = "5";

/// Most caches that are tried.
const MAX_CACHES: usize = 8;

/// What is found about Nix, and about its caches.
pub(super) async fn look() -> (Vec<Finding>, Vec<Finding>) {
    let version = match run(&[], &["--version"]).await {
        Ok(version) => version,
        Err(Failure::Missing) => {
            let path = std::env::var("PATH").unwrap_or_default();
            let finding = Finding::wrong("nix", format!("`nix` is in none of the folders of PATH ({path})")).advice(
                "install Nix (https://nixos.org/download), or add its `bin` folder to the PATH of the agent's service",
            );
            return (vec![finding], Vec::new());
        }
        Err(failure) => return (vec![wrong("nix", &failure)], Vec::new()),
    };
    let settings = settings().await;
    let caches = match &settings {
        Ok(settings) => settings.substituters.clone(),
        Err(_) => Vec::new(),
    };
    let (store, caches) = tokio::join!(store(settings.as_ref().ok()), caches_in_reach(caches));
    let mut findings = vec![Finding::ok("nix", version)];
    if let Err(failure) = &settings {
        findings.push(
            wrong("nix settings", failure).advice("`nix show-config` has to work: mend nix.conf"),
        );
    }
    findings.push(store);
    (findings, caches)
}

/// What of Nix's settings matters here.
#[derive(Debug, Default, Eq, PartialEq)]
struct NixSettings {
    substituters: Vec<String>,
    trusted_users: Vec<String>,
}

async fn settings() -> Result<NixSettings, Failure> {
    // The former is how newer versions of Nix call it, and the latter how those before 2.20 do.
    let newer = run(&[], &["config", "show", "--json"]).await;
    let json = match newer {
        Ok(json) => json,
        Err(_) => run(&[], &["show-config", "--json"]).await?,
    };
    read_settings(&json)
        .ok_or_else(|| Failure::Failed("what it prints is not the JSON of settings".to_owned()))
}

fn read_settings(json: &str) -> Option<NixSettings> {
    let json: serde_json::Value = serde_json::from_str(json).ok()?;
    let list = |key: &str| -> Option<Vec<String>> {
        let value = json.get(key)?.get("value")?;
        Vec::deserialize(value).ok()
    };
    Some(NixSettings {
        substituters: list("substituters")?,
        trusted_users: list("trusted-users")?,
    })
}

/// Whether the store can be used, and how.
async fn store(settings: Option<&NixSettings>) -> Finding {
    let said = match run(&[], &["store", "ping"]).await {
        Ok(said) => said,
        Err(failure) => {
            return wrong("store", &failure).advice(
                "start Nix's daemon (`systemctl start nix-daemon.socket`), or run the agent as who owns the store",
            );
        }
    };
    let value = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key));
        line.map(|text| text.trim_start_matches(':').trim().to_owned())
    };
    let url = value("Store URL").unwrap_or_else(|| "the store".to_owned());
    if url != "daemon" && !url.starts_with("unix:") {
        return Finding::ok("store", format!("{url}, used directly"));
    }
    let trusted = match value("Trusted").as_deref() {
        Some("1") => Some(true),
        Some("0") => Some(false),
        // Before 2.13 Nix does not tell.
        _ => settings.and_then(|settings| is_trusted(&settings.trusted_users, &Account::current())),
    };
    match trusted {
        Some(true) => Finding::ok("store", "its daemon answers and trusts this user"),
        None => Finding::note("store", "its daemon answers; whether it trusts this user is not known"),
        // As it is by default, and good where the machine's own settings name the fleet's cache.
        Some(false) => Finding::note(
            "store",
            "its daemon answers, and does not trust this user: it fetches from the machine's own caches alone, ignores \
             those that deployments bring along and their keys, and may believe for an hour that a path is missing",
        )
        .advice(
            "have the fleet's cache and its key in the machine's nix.conf (`substituters`, `trusted-public-keys`); \
             whoever is in `trusted-users` needs neither, and is as mighty as root",
        ),
    }
}

/// Who asks, as far as Nix's `trusted-users` goes.
struct Account {
    is_root: bool,
    user: String,
}

impl Account {
    fn current() -> Self {
        Self {
            is_root: rustix::process::geteuid().is_root(),
            user: std::env::var("USER").unwrap_or_default(),
        }
    }
}

/// Whether `trusted-users` names the account (`nix.conf(5)`). Groups are not looked up: where one is named and the
/// account is not, nobody knows.
fn is_trusted(users: &[String], account: &Account) -> Option<bool> {
    let name = if account.is_root {
        "root"
    } else {
        &account.user
    };
    if users.iter().any(|user| user == "*" || user == name) {
        return Some(true);
    }
    let has_groups = users.iter().any(|user| user.starts_with('@'));
    (!has_groups).then_some(false)
}

async fn caches_in_reach(urls: Vec<String>) -> Vec<Finding> {
    if urls.is_empty() {
        return vec![Finding::note(
            "caches",
            "Nix has no binary cache set; deployments have to bring theirs along",
        )];
    }
    let mut tries = JoinSet::new();
    for (index, url) in urls.into_iter().enumerate().take(MAX_CACHES) {
        tries.spawn(async move { (index, cache(url).await) });
    }
    let mut found = tries.join_all().await;
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, finding)| finding).collect()
}

/// Whether a cache answers, to Nix itself: with its proxies, certificates and passwords.
async fn cache(url: String) -> Finding {
    let shown = without_password(&url);
    // Nix remembers for a week that a cache was there.
    let fresh = match tempfile::tempdir() {
        Ok(fresh) => fresh,
        Err(error) => {
            return Finding::wrong("cache", format!("cannot make a temporary folder: {error}"));
        }
    };
    let fresh_cache = [
        ("XDG_CACHE_HOME", fresh.path().into()),
        ("NIX_CACHE_HOME", fresh.path().into()),
    ];
    let arguments = [
        "--option",
        "download-attempts",
        "1",
        "--option",
        "connect-timeout",
        CONNECT,
        "store",
        "ping",
        "--store",
        url.as_str(),
    ];
    match run(&fresh_cache, &arguments).await {
        Ok(_) => Finding::ok("cache", shown),
        Err(failure) => Finding::wrong("cache", format!("{shown} does not answer: {}", failure.say(&url, &shown)))
            .advice("deployments whose closure lies there cannot be fetched: is its address in nix.conf right, and is it up?"),
    }
}

/// A URL without what stands before an `@` in its host part.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Why Nix could not be asked.
#[derive(Debug)]
enum Failure {
    Missing,
    TimedOut,
    Failed(String),
}

impl Failure {
    /// In words; a URL with a password is replaced.
    fn say(&self, url: &str, shown: &str) -> String {
        match self {
            Self::Missing => "`nix` is not there".to_owned(),
            Self::TimedOut => format!("nothing within {} s", ANSWER.as_secs()),
            Self::Failed(why) => Text::<400>::lossy(&why.replace(url, shown)).to_string(),
        }
    }
}

fn wrong(check: &'static str, failure: &Failure) -> Finding {
    Finding::wrong(check, failure.say("\0", ""))
}

async fn run(more: &[(&str, OsString)], arguments: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new("nix");
    command
        .args(["--extra-experimental-features", "nix-command"])
        .args(arguments)
        .env_clear()
        .envs(crate::nix::clean_environment())
        .envs(more.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = match timeout(ANSWER, command.output()).await {
        Err(_) => return Err(Failure::TimedOut),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::Missing);
        }
        Ok(Err(error)) => return Err(Failure::Failed(error.to_string())),
        Ok(Ok(output)) => output,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() {
        // Some versions say on stderr what others say on stdout.
        return Ok(if out.is_empty() { said } else { out });
    }
    let why = said.lines().find_map(|line| line.strip_prefix("error: "));
    Err(Failure::Failed(why.unwrap_or(&said).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_that_matter_are_read() {
        let json = r#"{"substituters":{"value":["https://cache.nixos.org/"],"defaultValue":[]},
                       "trusted-users":{"value":["root","@wheel"]},"cores":{"value":0}}"#;
        let settings = read_settings(json).unwrap();
        assert_eq!(settings.substituters, ["https://cache.nixos.org/"]);
        assert_eq!(settings.trusted_users, ["root", "@wheel"]);
        assert_eq!(read_settings("{}"), None);
        assert_eq!(read_settings("nix 2.8"), None);
    }

    #[test]
    fn only_whom_nix_names_is_trusted() {
        let users = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let root = Account {
            is_root: true,
            user: "ann".to_owned(),
        };
        let ann = Account {
            is_root: false,
            user: "ann".to_owned(),
        };
        assert_eq!(is_trusted(&users(&["root"]), &root), Some(true));
        assert_eq!(is_trusted(&users(&["root"]), &ann), Some(false));
        assert_eq!(is_trusted(&users(&["@wheel", "ann"]), &ann), Some(true));
        assert_eq!(is_trusted(&users(&["*"]), &ann), Some(true));
        assert_eq!(is_trusted(&users(&["root", "@wheel"]), &ann), None);
    }

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        assert_eq!(
            without_password("https://u:p@cache/x@y"),
            "https://cache/x@y"
        );
        assert_eq!(without_password("https://cache"), "https://cache");
        assert_eq!(without_password("daemon"), "daemon");
        let failure = Failure::Failed("cannot get https://u:p@cache".to_owned());
        assert_eq!(
            failure.say("https://u:p@cache", "https://cache"),
            "cannot get https://cache"
        );
    }
}
