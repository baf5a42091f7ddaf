//! What stands before the session: packets out of bytes, topics and filters, deployments, certificates.

use hoist_certs::trust::Denylist;
use hoist_certs::{CertificateInfo, Identity, Role};
use hoist_protocol::{KeyName, Machine, SigningKey, Topic};
use rustls::pki_types::CertificateDer;

use super::{fleet, name};
use crate::deploys::Deploys;
use crate::frame::Frames;
use crate::guard::{Access, Pattern, Peer, Rules, admit_client_id, admit_publication};
use crate::settings::{Fleet, FleetOptions, Fleets};

/// Bytes of a connection, as packets: however they are cut, the same comes of them, and never more than the limit
/// is kept of one that is not complete. The first byte says whose they are, the second how they are cut.
///
/// # Panics
/// When something does not hold that must hold.
pub fn edge(input: &[u8]) {
    let &[role, cut, ref bytes @ ..] = input else {
        return;
    };
    let role = Role::ALL[usize::from(role) % Role::ALL.len()];
    let whole = packets(role, bytes, bytes.len().max(1));
    let pieces = packets(role, bytes, usize::from(cut % 16) + 1);
    assert_eq!(whole, pieces, "it depends on how the bytes are cut");
}

/// What comes of bytes that arrive in pieces, in words.
fn packets(role: Role, bytes: &[u8], piece: usize) -> Vec<String> {
    let mut frames = Frames::new(role);
    let mut said = Vec::new();
    for mut piece in bytes.chunks(piece) {
        while !piece.is_empty() {
            let before = piece.len();
            match frames.receive(&mut piece) {
                Ok(Some(packet)) => said.push(format!("{packet:?}")),
                Ok(None) => assert!(piece.is_empty(), "bytes are left without a packet"),
                Err(error) => {
                    said.push(error.to_string());
                    return said;
                }
            }
            assert!(piece.len() < before, "nothing was taken");
        }
    }
    said
}

/// Filters, topics, payloads and client ids of everybody: what is let in is of one's own fleet, and allowed. The
/// input is a filter, a topic and a client id, a line each, and a payload.
///
/// # Panics
/// When something does not hold that must hold.
pub fn guard(input: &[u8]) {
    let mut parts = input.splitn(4, |byte| *byte == b'\n');
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (filter, topic, id) = (text(), text(), text());
    let payload = parts.next().unwrap_or_default();
    let rules = Rules::default();
    let pattern = Pattern::parse(&filter, &fleet()).ok().flatten();
    if let (Some(pattern), Ok(topic)) = (&pattern, Topic::parse(&topic)) {
        let matched = topic.machine.fleet == fleet() && pattern.matches(&topic);
        let expected = topic.machine.fleet == fleet() && matches(&filter, &topic.to_string());
        assert_eq!(matched, expected, "{filter} {topic}");
    }
    for role in Role::ALL {
        let peer = Peer {
            name: name("web-1"),
            role,
            fleet: fleet(),
        };
        for retain in [false, true] {
            if let Ok(admitted) = admit_publication(rules, &peer, &topic, payload, retain) {
                assert_eq!(admitted.to_string(), topic);
                assert_eq!(admitted.machine.fleet, fleet());
                let clears = payload.is_empty() && admitted.channel.is_retained();
                let access = if clears { Access::Clear } else { Access::Write };
                assert!(rules.allow(&peer, access, &admitted));
                assert!(payload.len() <= admitted.channel.max_len());
            }
        }
        if let Ok(admitted) = admit_client_id(&peer, &id, 7) {
            let is_own = match role {
                Role::Agent => admitted == "web-1",
                _ => admitted.starts_with("web-1."),
            };
            assert!(is_own, "{role}: {admitted}");
        }
    }
}

/// MQTT, section 4.7, over levels, as simply as it can be said.
fn matches(filter: &str, topic: &str) -> bool {
    fn levels(filter: &[&str], topic: &[&str]) -> bool {
        match (filter.split_first(), topic.split_first()) {
            (Some((&"#", _)), _) | (None, None) => true,
            (Some((&"+", filter)), Some((_, topic))) => levels(filter, topic),
            (Some((f, filter)), Some((t, topic))) => f == t && levels(filter, topic),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
    let (filter, topic): (Vec<&str>, Vec<&str>) =
        (filter.split('/').collect(), topic.split('/').collect());
    levels(&filter, &topic)
}

/// Deployments under a key that has signed none of them: nothing verifies.
///
/// # Panics
/// When something verifies.
pub fn deploys(input: &[u8]) {
    let key = KeyName::new("fuzz").expect("a name");
    let key = SigningKey::from_seed(key, &[7; 32].into()).public();
    let options = FleetOptions {
        trusted_keys: Some(vec![key]),
        ..FleetOptions::default()
    };
    let fleet_settings: Fleet = options.try_into().expect("one key is enough");
    let deploys = Deploys::new(Fleets::Any(Box::new(fleet_settings)).into());
    let machine = Machine::new(fleet(), name("web-1"));
    assert!(deploys.verify_one(&machine, input).is_err());
    let twice = deploys.verify(&machine.fleet, &[(&machine, input); 2]);
    assert!(twice.len() == 2 && twice.iter().all(Result::is_err));
}

/// Certificates and denylists: what is read is the same in all views of it.
///
/// # Panics
/// When something does not hold that must hold.
pub fn certificates(input: &[u8]) {
    let der = CertificateDer::from(input);
    let identity = Identity::from_certificate(&der);
    if let Ok(info) = CertificateInfo::parse(&der) {
        assert_eq!(info.identity, identity);
        assert!(!info.subject.chars().any(char::is_control));
        assert_eq!(info.serial.to_string().parse(), Ok(info.serial));
    } else {
        assert!(identity.is_err());
    }
    if let Ok(text) = std::str::from_utf8(input) {
        // Whoever it denies, it says so without a panic.
        Denylist::parse(text).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Runs every input of a folder of `fuzz/corpus`.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let inputs: Vec<_> = std::fs::read_dir(folder.join(target)).unwrap().collect();
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for input in inputs {
            run(&std::fs::read(input.unwrap().path()).unwrap());
        }
    }

    #[test]
    fn what_fuzzing_has_found_worth_keeping_still_holds() {
        replay("edge", super::edge);
        replay("guard", super::guard);
        replay("deploys", super::deploys);
        replay("certificates", super::certificates);
        replay("session", super::super::session);
    }
}
