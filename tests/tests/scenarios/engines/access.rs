//! Who may do what, cell by cell, on Hoist's own broker and on the others: docs/brokers.md has the tables.

use anyhow::{Context as _, Result};
use hoist_tests::authority::Authority;
use hoist_tests::broker::Broker;
use hoist_tests::engines::access::{Cast, Decisions, Differences, Stage, Table, compare};
use hoist_tests::engines::{Engine, Kind};
use hoist_tests::world::{FLEET, Site};

/// Tries all cells on the broker that `start` starts, and compares what was decided with `expected`.
fn tried(
    name: &str,
    expected: &Decisions,
    start: impl FnOnce(&Site, &Authority) -> Result<Broker>,
) {
    let site = Site::create(name).expect("the folder can be made");
    let run = || {
        let dir = site.dir().join("certs");
        let authority = Authority::create(&dir, FLEET, site.programs(), site.logs())?;
        let cast = Cast::issue(&authority)?;
        let broker = start(&site, &authority)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let seen = runtime.block_on(async {
            let stage = Stage::open(broker.port(), &cast).await?;
            stage.try_all(expected).await
        })?;
        compare(expected, &seen)
    };
    if let Err(error) = run() {
        println!("{}", site.story().expect("the logs can be read"));
        panic!("{error:#}");
    }
}

/// What the engine that docs/brokers.md calls `engine` should decide.
fn elsewhere(engine: &str) -> Result<Decisions> {
    let here = Table::read()?.decisions()?;
    Differences::read(engine)?
        .apply(&here)
        .context(engine.to_owned())
}

#[test]
fn every_role_does_what_the_table_says_and_nothing_else() {
    let expected = Table::read().unwrap().decisions().unwrap();
    tried("access-hoist", &expected, |site, authority| {
        let identity = authority.issue("broker", "main", &["--host", "127.0.0.1"])?;
        let (programs, logs) = (site.programs(), site.logs());
        Broker::start(&site.dir().join("broker"), &identity, "", programs, logs)
    });
}

#[test]
fn mosquitto_decides_the_same_but_for_what_is_documented() {
    let expected = elsewhere("mosquitto").unwrap();
    tried("access-mosquitto", &expected, |site, authority| {
        let (programs, logs) = (site.programs(), site.logs());
        let dir = site.dir().join("broker");
        Ok(Engine::start(Kind::Mosquitto, &dir, authority, programs, logs)?.into())
    });
}

#[test]
fn nats_decides_the_same_but_for_what_is_documented() {
    let expected = elsewhere("NATS").unwrap();
    tried("access-nats", &expected, |site, authority| {
        let (programs, logs) = (site.programs(), site.logs());
        let dir = site.dir().join("broker");
        Ok(Engine::start(Kind::Nats, &dir, authority, programs, logs)?.into())
    });
}
