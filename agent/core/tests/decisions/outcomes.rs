//! How outcomes are told and kept.

use crate::support::*;

#[test]
fn an_outcome_is_told_until_it_is_acknowledged() {
    let published = |effects: Vec<Effect>| {
        effects
            .into_iter()
            .find_map(|effect| match effect {
                Effect::ReportHistory {
                    history,
                    undelivered,
                } => Some((history.entries.len(), undelivered)),
                _ => None,
            })
            .unwrap()
    };
    let mut agent = TestAgent::new();
    agent.input(deployment(1));
    let effects = agent.fetch_failed(1, Reason::MissingPath);
    assert_eq!(published(effects), (1, vec![told(1, State::Failed)]));
    let (mut agent, _) = TestAgent::from(agent.disk, trusted(), Vec::new());
    assert_eq!(
        published(agent.input(Input::Connected)),
        (1, vec![told(1, State::Failed)])
    );
    assert_eq!(
        deeds(&agent.input(Input::Delivered(vec![told(1, State::Failed)]))),
        ["persist"]
    );
    let (mut agent, _) = TestAgent::from(agent.disk, trusted(), Vec::new());
    assert_eq!(published(agent.input(Input::Connected)), (1, Vec::new()));
}

#[test]
fn the_ledger_does_not_grow_without_end() {
    let mut agent = TestAgent::new();
    for n in 1..200 {
        agent.succeed(n);
    }
    let Ledger { history, known, .. } = &agent.disk;
    assert_eq!((history.len(), known.len()), (HISTORY, KNOWN));
    assert_eq!((history[0].entry.id, known[0].id), (id(199), id(199)));
    assert!(serde_json::to_vec(&agent.disk).unwrap().len() < 64 * 1024);
}

#[test]
fn a_damaged_ledger_is_a_warning_until_the_next_outcome() {
    let ledger = Ledger {
        damage: Some(Text::lossy("the ledger was damaged")),
        ..Ledger::default()
    };
    let (mut agent, _) = TestAgent::from(ledger, trusted(), Vec::new());
    agent.moment.warnings = vec![Text::lossy("the certificate ends soon"); 20];
    let warnings = agent.status().warnings;
    assert_eq!(warnings[0].as_str(), "the ledger was damaged");
    assert_eq!(warnings.len(), hoist_protocol::limits::WARNINGS);
    agent.succeed(1);
    assert_eq!(
        agent.status().warnings[0].as_str(),
        "the certificate ends soon"
    );
    assert_eq!(agent.disk.damage, None);
}

#[test]
fn what_a_newer_version_wrote_into_the_history_is_left_out_and_the_rest_is_read() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.succeed(2);
    let mut json = serde_json::to_value(&agent.disk).unwrap();
    json["history"][0]["entry"]["state"] = "teleported".into();
    json["last"]["entry"]["state"] = "teleported".into();
    json["known"][0]["how"]["kind"] = "plan9".into();
    let read: Ledger = serde_json::from_value(json).unwrap();
    assert_eq!(read.history, agent.disk.history[1..]);
    assert_eq!(read.known, agent.disk.known[1..]);
    assert_eq!((read.last, read.floor), (None, agent.disk.floor));
}

#[test]
fn a_ledger_without_all_that_was_added_since_is_read() {
    let mut agent = TestAgent::new();
    agent.succeed(1);
    agent.input(deployment(2));
    let mut json = serde_json::to_value(&agent.disk).unwrap();
    let added = [
        "origin", "local", "cancels", "how", "action", "fetch", "changes", "staged", "hold",
        "damage",
    ];
    fn strip(json: &mut serde_json::Value, added: &[&str]) {
        match json {
            serde_json::Value::Object(fields) => {
                fields.retain(|name, _| !added.contains(&name.as_str()));
                fields.values_mut().for_each(|field| strip(field, added));
            }
            serde_json::Value::Array(items) => {
                items.iter_mut().for_each(|item| strip(item, added));
            }
            _ => {}
        }
    }
    strip(&mut json, &added);
    let read: Ledger = serde_json::from_value(json).unwrap();
    let (mut again, effects) = TestAgent::from(read, trusted(), Vec::new());
    assert_eq!(deeds(&effects), ["persist", "fetch"]);
    assert_eq!(again.outcome(1), Some(State::Succeeded));
    again.fetched(2);
    again.ended(2, State::Succeeded);
}

#[test]
fn what_may_be_needed_is_kept_from_the_garbage_collector_and_nothing_else() {
    let mut agent = TestAgent::new();
    for n in 1..=5 {
        agent.succeed(n);
    }
    // The same closure again, under another id.
    let mut again = parts(6);
    again.target = parts(5).target;
    agent.moment.facts = running("v5");
    agent.input(signed(again));
    agent.fetched(6);
    agent.hold();
    agent.input(deployment(7));
    assert_eq!(agent.disk.kept(3), [id(7), id(6), id(4), id(3)]);
}
