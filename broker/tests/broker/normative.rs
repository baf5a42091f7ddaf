//! The normative statements of the standards, with the tests that check them: `tests/normative`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use hoist_certs::Role;
use rumqttc::{
    Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, Subscribe, SubscribeFilter,
    SubscribeReasonCode, UnsubAck, Unsubscribe,
};

use crate::sessions::returning;
use crate::support::{World, topic};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Statements of one table, with what checks them.
fn rows(table: &str) -> Vec<(String, String)> {
    let path = root().join("tests/normative").join(table);
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| MQTT-"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [statement, asks, checked] = cells[..] else {
            panic!("{line}");
        };
        assert!(!asks.is_empty(), "{line}");
        (statement.to_owned(), checked.to_owned())
    })
    .collect()
}

/// The text between backticks that names a test.
fn named_tests(checked: &str) -> Vec<&str> {
    let quoted = checked.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains("::")).collect()
}

/// Whether a test of that name exists: `file::test`, the file in `tests/broker` or in `src`.
fn exists(name: &str) -> bool {
    let (module, test) = name.rsplit_once("::").unwrap();
    let file = module.replace("::", "/");
    let (parent, last) = file.rsplit_once('/').unwrap_or(("", &file));
    let files = [
        format!("tests/broker/{file}.rs"),
        format!("src/{file}.rs"),
        format!("src/{file}/tests.rs"),
        format!("src/{parent}/tests.rs"),
        format!("src/{parent}/tests/{last}.rs"),
    ];
    let signature = format!("fn {test}(");
    files.iter().any(|file| {
        let Ok(text) = fs::read_to_string(root().join(file)) else {
            return false;
        };
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        lines.iter().enumerate().any(|(at, line)| {
            let line = line.strip_prefix("async ").unwrap_or(line);
            line.starts_with(&signature)
                && lines[..at]
                    .iter()
                    .rev()
                    .take(3)
                    .any(|above| above.starts_with("#[test]") || above.starts_with("#[tokio::test"))
        })
    })
}

#[test]
fn every_statement_is_checked_by_a_test_that_exists_or_has_a_reason() {
    for (table, statements) in [("mqtt-3.1.1.md", 137), ("mqtt-5.md", 162)] {
        let rows = rows(table);
        let mut missing = Vec::new();
        for (statement, checked) in &rows {
            let tests = named_tests(checked);
            if tests.is_empty() && !checked.starts_with('–') {
                missing.push(format!("{statement}: neither a test nor a reason"));
            }
            for test in tests {
                if !exists(test) {
                    missing.push(format!("{statement}: there is no test {test}"));
                }
            }
        }
        assert!(missing.is_empty(), "{table}:\n{}", missing.join("\n"));
        assert_eq!(rows.len(), statements, "{table}: a row was added or lost");
    }
}

/// In each section the numbers count from 1.
#[test]
fn no_statement_of_mqtt_3_1_1_is_left_out() {
    let mut sections: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (statement, _) in rows("mqtt-3.1.1.md") {
        let (section, number) = statement.rsplit_once('-').unwrap();
        let numbers = sections.entry(section.to_owned()).or_default();
        numbers.push(number.parse().unwrap());
    }
    for (section, numbers) in sections {
        let counted: Vec<u32> = (1..=numbers.len()).map(|n| n as u32).collect();
        assert_eq!(numbers, counted, "{section}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_is_part_of_a_name() {
    let world = World::new();
    let broker = world.start().await;
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    let code = agent.connect(Connect::new("\u{feff}web-1")).await;
    assert_eq!(code, ConnectReturnCode::BadClientId);
    broker.stop().await;
}

#[tokio::test]
async fn nothing_after_a_refused_connect_counts() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut agent = world.tls(&broker, Role::Agent, "web-1").await;
    let mut publish = Publish::new(&status, QoS::AtMostOnce, "x");
    publish.retain = true;
    let mut bytes = bytes::BytesMut::new();
    Packet::Connect(Connect::new("web-2"))
        .write(&mut bytes, usize::MAX)
        .unwrap();
    Packet::Publish(publish)
        .write(&mut bytes, usize::MAX)
        .unwrap();
    agent.send_bytes(&bytes).await;
    assert!(matches!(agent.next().await, Some(Packet::ConnAck(_))));
    agent.expect_closed().await;
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&status]).await;
    monitor.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test]
async fn a_repeated_publish_is_passed_on_as_a_first_one() {
    let world = World::new();
    let broker = world.start().await;
    let status = topic("web-1", "status");
    let mut monitor = world.monitor(&broker).await;
    monitor.subscribe(&[&status]).await;
    let mut agent = world.agent(&broker, "web-1").await;
    let mut publish = Publish::new(&status, QoS::AtLeastOnce, "x");
    (publish.pkid, publish.retain, publish.dup) = (1, true, true);
    agent.send(Packet::Publish(publish)).await;
    match monitor.next().await {
        Some(Packet::Publish(publish)) => assert!(!publish.dup),
        other => panic!("{other:?}"),
    }
    broker.stop().await;
}

#[tokio::test]
async fn requests_are_answered_filter_by_filter_with_their_id() {
    let world = World::new();
    let broker = world.start().await;
    let mut monitor = world.monitor(&broker).await;
    let filters = [
        ("hoist/v1/prod/+/status", QoS::AtMostOnce),
        ("hoist/v1/prod/+/deploy", QoS::AtLeastOnce),
        ("hoist/v1/prod/+/history", QoS::ExactlyOnce),
        ("elsewhere", QoS::AtLeastOnce),
        ("#", QoS::AtLeastOnce),
    ];
    let filters = filters.map(|(path, qos)| SubscribeFilter::new(path.to_owned(), qos));
    let mut subscribe = Subscribe::new_many(filters);
    subscribe.pkid = 4711;
    monitor.send(Packet::Subscribe(subscribe)).await;
    let granted = SubscribeReasonCode::Success;
    match monitor.next().await {
        Some(Packet::SubAck(ack)) => {
            assert_eq!(ack.pkid, 4711);
            assert_eq!(
                ack.return_codes,
                [
                    granted(QoS::AtMostOnce),
                    SubscribeReasonCode::Failure,
                    granted(QoS::ExactlyOnce),
                    SubscribeReasonCode::Failure,
                    granted(QoS::AtLeastOnce),
                ]
            );
        }
        other => panic!("{other:?}"),
    }
    broker.stop().await;
}

#[tokio::test]
async fn an_unsubscribe_ends_what_it_names_and_nothing_else() {
    let world = World::new();
    let broker = world.start().await;
    let (status, history) = (topic("web-1", "status"), topic("web-1", "history"));
    let mut agent = world.agent(&broker, "web-1").await;
    let mut monitor = world.tls(&broker, Role::Monitor, "mon").await;
    monitor.open(returning("mon.1")).await;
    monitor.subscribe(&[&status, &history]).await;
    agent.retain(&status, "begun").await;
    let Some(Packet::Publish(begun)) = monitor.next().await else {
        panic!("no message");
    };
    let other_case = status.to_uppercase();
    for filters in [
        vec![other_case.as_str(), "never/there"],
        vec![status.as_str()],
    ] {
        let mut unsubscribe = Unsubscribe::new(filters[0]);
        unsubscribe.topics = filters.into_iter().map(str::to_owned).collect();
        unsubscribe.pkid = 12;
        monitor.send(Packet::Unsubscribe(unsubscribe)).await;
        let answer = Some(Packet::UnsubAck(UnsubAck::new(12)));
        assert_eq!(monitor.next().await, answer);
    }
    agent.retain(&status, "unheard").await;
    agent.retain(&history, "heard").await;
    assert_eq!(monitor.message().await.payload, "heard");
    // What had begun is still owed.
    drop(monitor);
    let mut monitor = world.tls(&broker, Role::Monitor, "mon").await;
    assert!(monitor.open(returning("mon.1")).await);
    match monitor.next().await {
        Some(Packet::Publish(again)) => {
            assert_eq!(
                (again.pkid, again.dup, &again.payload),
                (begun.pkid, true, &begun.payload)
            );
        }
        other => panic!("{other:?}"),
    }
    monitor.send(Packet::PubAck(PubAck::new(begun.pkid))).await;
    monitor.expect_nothing().await;
    broker.stop().await;
}
