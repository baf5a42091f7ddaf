//! `hoist whoami`: as whom `hoist` speaks, with which keys it signs, and whether the broker lets it in.

use clap::Args;
use hoist_certs::program::{now, report};
use hoist_certs::{ClientTls, Role};
use hoist_protocol::{BrokerUrl, PublicKey, Timestamp};
use tokio::time::Instant;

use super::{CommandError, unless_interrupted};
use crate::console::print;
use crate::duration;
use crate::link::Link;
use crate::outcome::Exit;
use crate::report::{SCHEMA, document};
use crate::settings::{Flags, Settings, SettingsError, SigningFlags, process_environment};
use crate::signer::Signer;

/// `hoist whoami`
#[derive(Debug, Args)]
pub struct WhoamiArgs {
    /// Write JSON: {"schema": 1, "command": "whoami", "name", "role", "fleet", "not_after", "broker", "reached",
    /// "problem", "signs_with": [public keys], "trusts": [public keys]}
    #[arg(long)]
    pub json: bool,
    /// The keys
    #[command(flatten)]
    pub signing: SigningFlags,
}

/// What was found.
struct Who {
    tls: ClientTls,
    broker: BrokerUrl,
    /// How long it took to be let in, in milliseconds, or why we were not.
    reached: Result<u64, String>,
    signs_with: Vec<PublicKey>,
    trusts: Vec<PublicKey>,
}

/// Runs the command: [`Exit::Error`] when the broker does not let us in.
///
/// # Errors
/// [`CommandError`]
pub async fn run(args: &WhoamiArgs, flags: Flags) -> Result<Exit, CommandError> {
    let settings = Settings::load(flags, &process_environment)?;
    let caller = settings.caller("connect", &[])?;
    let keys = match settings.trusted(&args.signing) {
        Ok(keys) => Some(keys),
        // Whoever only looks has none.
        Err(SettingsError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let begin = Instant::now();
    let reach = async {
        Ok(match Link::open(&caller).await {
            Ok(link) => {
                let took = begin.elapsed();
                link.close().await;
                Ok(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
            }
            Err(error) => Err(report(&error.into())),
        })
    };
    let Some(reached) = unless_interrupted(reach).await? else {
        return Ok(Exit::Interrupted);
    };
    let exit = if reached.is_ok() {
        Exit::Ok
    } else {
        Exit::Error
    };
    let signs_with: Vec<PublicKey> = (keys.iter())
        .flat_map(|keys| keys.signing.iter().map(Signer::public))
        .collect();
    let trusts = keys.iter().flat_map(|keys| keys.trusted.keys());
    let who = Who {
        tls: caller.tls,
        broker: caller.broker,
        reached,
        trusts: trusts
            .filter(|key| !signs_with.contains(key))
            .cloned()
            .collect(),
        signs_with,
    };
    let text = if args.json {
        json(&who)
    } else {
        text(&who, now())
    };
    print(&text).map_err(CommandError::Output)?;
    Ok(exit)
}

/// What the broker lets this role do.
const fn may(role: Role) -> &'static str {
    match role {
        Role::Publisher => "deploy, and read the fleet",
        Role::Monitor => "read the fleet",
        Role::Admin => "read the fleet, and forget machines",
        Role::Agent => "be a machine; `hoist` has no use for it",
        Role::Broker => "be a broker; `hoist` has no use for it",
    }
}

fn text(who: &Who, now: Timestamp) -> String {
    let identity = who.tls.identity();
    let (role, end) = (identity.role(), who.tls.not_after());
    let left = match end.since(now) {
        left if left.is_zero() => "it has ended".to_owned(),
        left => format!("{} left", duration::show(left)),
    };
    let broker = match &who.reached {
        Ok(ms) => format!("{}, connected in {ms} ms", who.broker),
        Err(why) => format!("not reached: {why}"),
    };
    let keys =
        |keys: &[PublicKey]| -> Vec<String> { keys.iter().map(ToString::to_string).collect() };
    let mut signs = keys(&who.signs_with);
    if signs.is_empty() {
        signs.push("nothing: no signing key is given".to_owned());
    }
    let mut lines = vec![
        ("name", identity.name().to_string()),
        ("role", format!("{role}: may {}", may(role))),
        ("fleet", identity.fleet().to_string()),
        ("certificate", format!("ends at {end}, {left}")),
        ("broker", broker),
    ];
    lines.extend(signs.into_iter().map(|key| ("signs with", key)));
    lines.extend(keys(&who.trusts).into_iter().map(|key| ("trusts", key)));
    let lines = lines
        .iter()
        .map(|(name, text)| format!("{name:<13}{text}\n"));
    lines.collect()
}

fn json(who: &Who) -> String {
    let identity = who.tls.identity();
    let keys =
        |keys: &[PublicKey]| -> Vec<String> { keys.iter().map(ToString::to_string).collect() };
    document(&serde_json::json!({
        "schema": SCHEMA,
        "command": "whoami",
        "name": identity.name(),
        "role": identity.role().to_string(),
        "fleet": identity.fleet(),
        "not_after": who.tls.not_after().to_string(),
        "broker": who.broker.to_string(),
        "reached": who.reached.is_ok(),
        "problem": who.reached.as_ref().err(),
        "signs_with": keys(&who.signs_with),
        "trusts": keys(&who.trusts),
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hoist_certs::authority::{Authority, CERTIFICATE_VALIDITY};
    use hoist_protocol::AgentName;

    use super::*;
    use crate::testing::{key, machine};

    fn who(role: Role, reached: Result<u64, String>) -> Who {
        let authority = Authority::create(&machine("x").fleet, CERTIFICATE_VALIDITY * 2).unwrap();
        let name = AgentName::new("ci").unwrap();
        let issued = authority
            .issue(role, &name, &[], CERTIFICATE_VALIDITY)
            .unwrap();
        Who {
            tls: issued
                .credentials(authority.certificate_pem())
                .client()
                .unwrap(),
            broker: "mqtts://broker.example.org".parse().unwrap(),
            reached,
            signs_with: vec![key("ci").public()],
            trusts: vec![key("release").public()],
        }
    }

    #[test]
    fn everything_about_us_is_a_line() {
        let who = who(Role::Publisher, Ok(12));
        let end = who.tls.not_after();
        let now =
            Timestamp::from_ms(end.as_ms() - Duration::from_secs(3 * 86_400).as_secs() * 1_000);
        let (ci, release) = (key("ci").public(), key("release").public());
        assert_eq!(
            text(&who, now),
            format!(
                "name         ci\n\
                 role         publisher: may deploy, and read the fleet\n\
                 fleet        prod\n\
                 certificate  ends at {end}, 3d left\n\
                 broker       mqtts://broker.example.org:8883, connected in 12 ms\n\
                 signs with   {ci}\n\
                 trusts       {release}\n"
            )
        );
    }

    #[test]
    fn who_has_no_key_and_no_broker_is_told_so() {
        let mut who = who(Role::Monitor, Err("nothing listens there".to_owned()));
        who.signs_with.clear();
        let text = text(&who, now());
        assert!(
            text.contains("\nbroker       not reached: nothing listens there\n"),
            "{text}"
        );
        assert!(
            text.contains("\nsigns with   nothing: no signing key is given\n"),
            "{text}"
        );
    }

    #[test]
    fn the_json_has_the_fields_that_the_manual_names() {
        let who = who(Role::Publisher, Err("why".to_owned()));
        crate::manual::assert_names("whoami", &serde_json::from_str(&json(&who)).unwrap());
    }
}
