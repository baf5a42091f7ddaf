use hoist_certs::authority::{Authority, CERTIFICATE_VALIDITY};
use hoist_protocol::SigningKey;
use hoist_protocol::{AgentName, KeyName};
use tempfile::TempDir;

use super::*;

/// A folder with a CA, a publisher's and a monitor's certificate, and a signing key.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let fleet = FleetName::new("prod").unwrap();
        let authority = Authority::create(&fleet, CERTIFICATE_VALIDITY * 2).unwrap();
        folder.write("ca.pem", authority.certificate_pem());
        for (role, name) in [(Role::Publisher, "ci"), (Role::Monitor, "eyes")] {
            let name = AgentName::new(name).unwrap();
            let issued = authority
                .issue(role, &name, &[], CERTIFICATE_VALIDITY)
                .unwrap();
            folder.write(&format!("{name}.pem"), &issued.certificate_pem);
            folder.write(&format!("{name}.key"), &issued.key_pem);
        }
        folder.write("ci.signing-key", &signing_key().to_text());
        folder
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.0.path()).unwrap().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn config(&self, text: &str) -> Flags {
        self.write("hoist.toml", text);
        Flags {
            config: Some(self.path("hoist.toml")),
            ..Flags::default()
        }
    }
}

const CONFIG: &str = "\
broker = 'mqtts://localhost:1'
ca = 'ca.pem'
certificate = 'ci.pem'
key = 'ci.key'
signing_key = 'ci.signing-key'
";

fn signing_key() -> SigningKey {
    crate::testing::key("ci")
}

fn nothing(_: &str) -> Option<String> {
    None
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[test]
fn a_configuration_file_names_files_beside_it() {
    let folder = Folder::new();
    let settings = Settings::load(folder.config(CONFIG), &nothing).unwrap();
    let caller = settings.caller("deploy", &[Role::Publisher]).unwrap();
    assert_eq!(caller.fleet.as_str(), "prod");
    let keys = settings.keys(&SigningFlags::default()).unwrap();
    assert_eq!(keys.signing[0].public(), signing_key().public());
}

#[test]
fn a_flag_comes_before_the_environment_and_that_before_the_file() {
    let folder = Folder::new();
    let broker = |flag: Option<&str>, variable: Option<&str>| {
        let mut flags = folder.config(CONFIG);
        flags.broker = flag.map(str::to_owned);
        let environment = |name: &str| {
            (name == "HOIST_BROKER")
                .then(|| variable.map(str::to_owned))
                .flatten()
        };
        let settings = Settings::load(flags, &environment).unwrap();
        let caller = settings.caller("deploy", &[Role::Publisher]).unwrap();
        caller.broker.port()
    };
    assert_eq!(broker(None, None), 1);
    assert_eq!(broker(None, Some("mqtts://localhost:2")), 2);
    assert_eq!(
        broker(Some("mqtts://localhost:3"), Some("mqtts://localhost:2")),
        3
    );
}

#[test]
fn secrets_can_be_given_as_text_in_the_environment_but_not_as_flags() {
    let folder = Folder::new();
    let read = |name: &str| std::fs::read_to_string(folder.path(name)).unwrap();
    let environment = |name: &str| match name {
        "HOIST_BROKER" => Some("mqtts://localhost:1".to_owned()),
        "HOIST_CA" => Some(read("ca.pem")),
        "HOIST_CERTIFICATE" => Some(read("ci.pem")),
        "HOIST_KEY" => Some(read("ci.key")),
        "HOIST_SIGNING_KEY" => Some(read("ci.signing-key")),
        _ => None,
    };
    let config = folder.config("");
    let settings = Settings::load(config.clone(), &environment).unwrap();
    settings.caller("deploy", &[Role::Publisher]).unwrap();
    settings.keys(&SigningFlags::default()).unwrap();

    let flags = Flags {
        key: Some(read("ci.key")),
        ..config
    };
    let settings = Settings::load(flags, &environment).unwrap();
    let error = settings.caller("deploy", &[Role::Publisher]).err().unwrap();
    assert!(
        matches!(error, SettingsError::SecretInFlag { .. }),
        "{error}"
    );
    let signing = SigningFlags {
        signing_key: vec![read("ci.signing-key")],
        ..SigningFlags::default()
    };
    let error = settings.keys(&signing).unwrap_err();
    assert!(
        matches!(error, SettingsError::SecretInFlag { .. }),
        "{error}"
    );
}

#[test]
fn a_bad_value_is_named_with_where_it_came_from() {
    let folder = Folder::new();
    let config = folder.config(&CONFIG.replace("mqtts://localhost:1", "localhost"));
    let error = Settings::load(config, &nothing)
        .unwrap()
        .caller("deploy", &[Role::Publisher])
        .err()
        .unwrap();
    let expected = format!(
        "`broker` in {} is not valid: `localhost` is no broker URL",
        folder.path("hoist.toml")
    );
    assert!(chain(&error).starts_with(&expected), "{}", chain(&error));
}

#[test]
fn a_missing_setting_names_the_three_places_for_it() {
    let folder = Folder::new();
    let config = folder.config(&CONFIG.replace("signing_key", "#"));
    let error = Settings::load(config, &nothing)
        .unwrap()
        .keys(&SigningFlags::default())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no signing key is given; use --signing-key, the environment variable HOIST_SIGNING_KEY, or \
             `signing_key` in {}",
            folder.path("hoist.toml")
        )
    );
}

#[test]
fn a_key_that_no_configuration_has_is_refused_with_the_nearest() {
    let folder = Folder::new();
    let error = Settings::load(folder.config("brokr = 'x'\n"), &nothing)
        .err()
        .unwrap();
    let message = chain(&error);
    assert!(
        message.contains("unknown key `brokr` (did you mean `broker`?)"),
        "{message}"
    );
}

#[test]
fn a_monitors_certificate_does_not_deploy() {
    let folder = Folder::new();
    let config = folder.config(
        &CONFIG
            .replace("ci.pem", "eyes.pem")
            .replace("ci.key", "eyes.key"),
    );
    let settings = Settings::load(config, &nothing).unwrap();
    let error = settings.caller("deploy", &[Role::Publisher]).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the certificate is that of the monitor `eyes`, which cannot deploy; use one that \
         `hoist-certs issue publisher NAME` made"
    );
    settings
        .caller("look", &[Role::Publisher, Role::Monitor])
        .unwrap();
}

#[test]
fn another_fleets_certificate_is_refused() {
    let folder = Folder::new();
    let config = folder.config(&format!("{CONFIG}fleet = 'test'\n"));
    let error = Settings::load(config, &nothing)
        .unwrap()
        .caller("deploy", &[Role::Publisher])
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .starts_with("the certificate is of the fleet `prod`, but `fleet` in "),
        "{error}"
    );
}

#[test]
fn one_list_of_trusted_keys_may_hold_ones_own() {
    let folder = Folder::new();
    let other = crate::testing::key("other").public();
    let own = SigningKey::from_seed(KeyName::new("alias").unwrap(), &[0; 32].into());
    let signing = SigningFlags {
        trusted_keys: vec![
            signing_key().public().to_string(),
            other.to_string(),
            own.public().to_string(),
        ],
        ..SigningFlags::default()
    };
    let settings = Settings::load(folder.config(CONFIG), &nothing).unwrap();
    assert_eq!(settings.keys(&signing).unwrap().trusted.keys().len(), 3);
}
