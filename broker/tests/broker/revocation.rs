//! Who is taken back, or over, is out: at once, for good, and nobody else with it.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use hoist_broker::Options;
use hoist_certs::authority::{
    Authority, Issued, RevocationReason, RevokedCertificate, Validity, days,
};
use hoist_certs::program::now;
use hoist_certs::trust::Lapse;
use hoist_certs::{Role, Serial};
use hoist_protocol::{FleetName, Timestamp};
use rumqttc::{Connect, ConnectReturnCode, Packet};
use rustls::client::Resumption;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::support::{Broker, Client, PATIENCE, World, name, topic, with_will};
use crate::v5::will_after;
use crate::v5_client::{self, Client5};

/// How long to wait between two looks at something that will have changed.
const PAUSE: Duration = Duration::from_millis(50);

/// A broker's world in files, which can be changed under it.
struct Files {
    world: World,
    dir: TempDir,
    number: u64,
}

impl Files {
    fn new() -> Self {
        Self::with(Options::default())
    }

    /// With a list of nobody.
    fn with(options: Options) -> Self {
        let dir = TempDir::new().unwrap();
        let path = |file: &str| Utf8PathBuf::try_from(dir.path().join(file)).unwrap();
        let world = World::with(options.or(Options {
            ca: Some(path("ca.pem").into()),
            certificate: Some(path("broker.pem").into()),
            key: Some(path("broker.key").into()),
            crl: Some(vec![path("crl.pem")]),
            denylist: Some(path("deny")),
            // For counters.
            metrics_listen: Some("0".to_owned()),
            // These tests come again and again with one identity.
            takeover_rate: Some("1000/s".parse().unwrap()),
            ..Options::default()
        }));
        let mut files = Self {
            world,
            dir,
            number: 1,
        };
        files.write("ca.pem", files.world.authority.certificate_pem());
        files.write("deny", "");
        files.serve(&files.broker("main"));
        files.revoke(&[]);
        files
    }

    /// Writes a file as a whole: what reads it finds the old one or the new one.
    fn write(&self, file: &str, text: &str) {
        let path = self.dir.path().join(file);
        let staged = path.with_extension("staged");
        std::fs::write(&staged, text).unwrap();
        std::fs::rename(staged, path).unwrap();
    }

    fn broker(&self, who: &str) -> Issued {
        let host = ["localhost".parse().unwrap()];
        let authority = &self.world.authority;
        authority
            .issue(Role::Broker, &name(who), &host, days(1))
            .unwrap()
    }

    fn serve(&self, broker: &Issued) {
        self.write("broker.key", &broker.key_pem);
        self.write("broker.pem", &broker.certificate_pem);
    }

    /// Writes a list of these, newer than all before.
    fn revoke(&mut self, revoked: &[&Issued]) {
        self.write("crl.pem", &self.list(now().plus(days(1)), revoked));
        self.number += 1;
    }

    fn list(&self, next_update: Timestamp, revoked: &[&Issued]) -> String {
        let entry = |issued: &&Issued| RevokedCertificate {
            serial: issued.serial.clone(),
            since: now(),
            reason: RevocationReason::Unspecified,
        };
        let revoked: Vec<_> = revoked.iter().map(entry).collect();
        let number = Serial::from_be_bytes(&self.number.to_be_bytes());
        let begin = Timestamp::from_ms(1_600_000_000_000);
        let authority = &self.world.authority;
        authority
            .revocation_list(&number, begin, next_update, &revoked)
            .unwrap()
    }

    fn agent(&self, who: &str) -> Issued {
        self.agent_until(who, days(1))
    }

    fn agent_until(&self, who: &str, valid_for: impl Into<Validity>) -> Issued {
        let authority = &self.world.authority;
        authority
            .issue(Role::Agent, &name(who), &[], valid_for)
            .unwrap()
    }

    fn config(&self, issued: &Issued) -> Arc<rustls::ClientConfig> {
        let credentials = issued.credentials(self.world.authority.certificate_pem());
        credentials.client().unwrap().config()
    }

    /// A connected agent whose will is `offline`.
    async fn connect(&self, broker: &Broker, issued: &Issued, who: &str) -> Client {
        let mut client = Client::tls(broker, self.config(issued)).await;
        let will = with_will(who, &topic(who, "presence"), "offline");
        assert_eq!(client.connect(will).await, ConnectReturnCode::Success);
        client
    }

    /// Whether somebody with this configuration gets a CONNACK.
    async fn gets_in(
        &self,
        broker: &Broker,
        config: &Arc<rustls::ClientConfig>,
        who: &str,
    ) -> bool {
        let Ok(mut client) = Client::try_tls(broker, Arc::clone(config)).await else {
            return false;
        };
        client.send(Packet::Connect(Connect::new(who))).await;
        matches!(client.next().await, Some(Packet::ConnAck(_)))
    }
}

/// How often the broker could not use what it has read.
async fn reload_failures(broker: &Broker) -> u64 {
    let (_, text) = crate::seen::get(broker.metrics.unwrap(), "/metrics").await;
    let name = "hoist_broker_certificate_reload_failures_total ";
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().parse().unwrap()
}

/// Waits until `condition` holds; the test ends when it never does.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let looks = PATIENCE.as_millis() / PAUSE.as_millis();
    for _ in 0..looks {
        if condition().await {
            return;
        }
        sleep(PAUSE).await;
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_session_is_closed_leaves_its_will_and_does_not_come_back() {
    let mut files = Files::new();
    let broker = files.world.start().await;
    let (bad, good) = (files.agent("web-1"), files.agent("web-2"));
    let mut revoked = files.connect(&broker, &bad, "web-1").await;
    let mut other = files.connect(&broker, &good, "web-2").await;
    let mut monitor = files.world.monitor(&broker).await;
    assert!(revoked.retain(&topic("web-1", "presence"), "online").await);
    monitor.subscribe(&[&topic("web-1", "presence")]).await;
    assert_eq!(monitor.message().await.payload, "online");
    files.revoke(&[&bad]);
    revoked.expect_closed().await;
    assert_eq!(monitor.message().await.payload, "offline");
    for _ in 0..3 {
        assert!(!files.gets_in(&broker, &files.config(&bad), "web-1").await);
    }
    // Nobody else was dropped, and a new certificate for the same name is good.
    other.expect_nothing().await;
    let renewed = files.agent("web-1");
    assert!(
        files
            .gets_in(&broker, &files.config(&renewed), "web-1")
            .await
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_on_the_denylist_is_out_by_name_or_by_serial_number() {
    let files = Files::new();
    let broker = files.world.start().await;
    let (one, two, good) = (
        files.agent("web-1"),
        files.agent("web-2"),
        files.agent("web-3"),
    );
    let mut by_name = files.connect(&broker, &one, "web-1").await;
    let mut by_serial = files.connect(&broker, &two, "web-2").await;
    let mut other = files.connect(&broker, &good, "web-3").await;
    files.write("deny", &format!("web-1 # stolen\n{}\n", two.serial));
    by_name.expect_closed().await;
    by_serial.expect_closed().await;
    assert!(!files.gets_in(&broker, &files.config(&one), "web-1").await);
    // By its name also with another certificate, by its serial number only with that one.
    let (again_one, again_two) = (files.agent("web-1"), files.agent("web-2"));
    assert!(
        !files
            .gets_in(&broker, &files.config(&again_one), "web-1")
            .await
    );
    assert!(
        files
            .gets_in(&broker, &files.config(&again_two), "web-2")
            .await
    );
    other.expect_nothing().await;
    // Taken off, it is good again.
    files.write("deny", "");
    let config = files.config(&one);
    eventually("it stays denied", async || {
        files.gets_in(&broker, &config, "web-1").await
    })
    .await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_tls_session_does_not_resume() {
    let mut files = Files::new();
    let broker = files.world.start().await;
    let issued = files.agent("web-1");
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut config = versions_of(&[version], &issued, &files);
        // A client that keeps whatever it can get.
        config.resumption = Resumption::in_memory_sessions(64);
        let config = Arc::new(config);
        for _ in 0..3 {
            let mut client = Client::tls(&broker, Arc::clone(&config)).await;
            let code = client.connect(Connect::new("web-1")).await;
            assert_eq!(code, ConnectReturnCode::Success);
            client.expect_nothing().await;
            let tls = client.connection();
            assert_eq!(tls.protocol_version(), Some(version.version));
            assert_eq!(tls.handshake_kind(), Some(rustls::HandshakeKind::Full));
            assert_eq!(tls.tls13_tickets_received(), 0);
            client.disconnect().await;
        }
        kept_sessions_are_of_no_use(&mut files, &broker, &config).await;
    }
    broker.stop().await;
}

/// Revokes the agent, and sees that what it has kept from before does not let it in; then takes that back.
async fn kept_sessions_are_of_no_use(
    files: &mut Files,
    broker: &Broker,
    config: &Arc<rustls::ClientConfig>,
) {
    files.write("deny", "web-1\n");
    eventually("it is let in", async || {
        !files.gets_in(broker, config, "web-1").await
    })
    .await;
    for _ in 0..3 {
        assert!(!files.gets_in(broker, config, "web-1").await);
    }
    files.write("deny", "");
    eventually("it stays out", async || {
        files.gets_in(broker, config, "web-1").await
    })
    .await;
}

/// A configuration with these versions of TLS, which does not ask whether the certificate still holds.
fn versions_of(
    versions: &[&'static rustls::SupportedProtocolVersion],
    issued: &Issued,
    files: &Files,
) -> rustls::ClientConfig {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(certificate(files.world.authority.certificate_pem()))
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate(&issued.certificate_pem)], key)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_certificate_and_leaves_its_will() {
    let files = Files::new();
    let broker = files.world.start().await;
    let mut monitor = files.world.monitor(&broker).await;
    monitor.subscribe(&[&topic("web-1", "presence")]).await;
    let mut other = files.world.agent(&broker, "web-2").await;
    // A second more until it gets in, on a machine that is slow.
    for seconds in 3.. {
        let ends = now().plus(Duration::from_secs(seconds));
        let begins = Timestamp::from_ms(now().as_ms() - 60_000);
        let short = files.agent_until("web-1", Validity::between(begins, ends));
        // Made while it holds, since a client does not take one that has ended.
        let config = Arc::new(versions_of(rustls::ALL_VERSIONS, &short, &files));
        let Ok(mut client) = Client::try_tls(&broker, Arc::clone(&config)).await else {
            continue;
        };
        let will = with_will("web-1", &topic("web-1", "presence"), "offline");
        client.send(Packet::Connect(will)).await;
        if client.next().await.is_none() {
            continue;
        }
        client.expect_closed().await;
        assert!(now() > short.not_after, "it was closed before its end");
        assert_eq!(monitor.message().await.payload, "offline");
        assert!(!files.gets_in(&broker, &config, "web-1").await);
        break;
    }
    other.expect_nothing().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_and_a_new_ca_are_taken_and_nobody_is_dropped_for_it() {
    let files = Files::new();
    let broker = files.world.start().await;
    let issued = files.agent("web-1");
    let mut stays = files.connect(&broker, &issued, "web-1").await;
    let shown = async || {
        let client = Client::tls(&broker, files.config(&issued)).await;
        client.certificate()
    };
    let first = shown().await;
    files.serve(&files.broker("main"));
    eventually("the old certificate is still shown", async || {
        shown().await != first
    })
    .await;
    stays.expect_nothing().await;
    // Another CA beside the first, then alone.
    let (old, new) = (&files.world.authority, other_ca());
    let theirs = new.issue(Role::Agent, &name("db-1"), &[], days(1)).unwrap();
    let trusting_us = theirs.credentials(old.certificate_pem()).client().unwrap();
    let config = trusting_us.config();
    assert!(!files.gets_in(&broker, &config, "db-1").await);
    files.write(
        "ca.pem",
        &format!("{}{}", old.certificate_pem(), new.certificate_pem()),
    );
    files.write(
        "crl.pem",
        &format!(
            "{}{}",
            files.list(now().plus(days(1)), &[]),
            empty_list(&new)
        ),
    );
    eventually("the new CA is not taken", async || {
        files.gets_in(&broker, &config, "db-1").await
    })
    .await;
    stays.expect_nothing().await;
    files.write("crl.pem", &empty_list(&new));
    files.write("ca.pem", new.certificate_pem());
    // The one whose CA counts no more is out.
    stays.expect_closed().await;
    assert!(files.gets_in(&broker, &config, "db-1").await);
    broker.stop().await;
}

fn other_ca() -> Authority {
    Authority::create(&FleetName::new("prod").unwrap(), days(2)).unwrap()
}

fn empty_list(authority: &Authority) -> String {
    let number = Serial::from_be_bytes(&[1]);
    let (begin, end) = (Timestamp::from_ms(1_600_000_000_000), now().plus(days(1)));
    authority.revocation_list(&number, begin, end, &[]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_changes_nothing() {
    let mut files = Files::new();
    let broker = files.world.start().await;
    let (bad, good) = (files.agent("web-1"), files.agent("web-2"));
    files.revoke(&[&bad]);
    let (out, stays_in) = (files.config(&bad), files.config(&good));
    eventually("it is not revoked", async || {
        !files.gets_in(&broker, &out, "web-1").await
    })
    .await;
    let mut stays = files.connect(&broker, &good, "web-2").await;
    // Damaged, an old one put back, and gone; a key that is not the certificate's; a line that denies nobody.
    let stranger = other_ca();
    let old = Serial::from_be_bytes(&[0]);
    let (begin, end) = (Timestamp::from_ms(1_600_000_000_000), now().plus(days(1)));
    let authority = &files.world.authority;
    let old = authority.revocation_list(&old, begin, end, &[]).unwrap();
    for (file, text) in [
        ("crl.pem", "nothing"),
        ("crl.pem", old.as_str()),
        ("crl.pem", &empty_list(&stranger)),
        ("broker.key", &files.broker("other").key_pem),
        ("ca.pem", ""),
        ("deny", "web 1\n"),
    ] {
        let path = files.dir.path().join(file);
        let before = std::fs::read_to_string(&path).unwrap();
        files.write(file, text);
        let failures = reload_failures(&broker).await;
        eventually(file, async || reload_failures(&broker).await > failures).await;
        assert!(!files.gets_in(&broker, &out, "web-1").await, "{file}");
        assert!(files.gets_in(&broker, &stays_in, "web-2").await, "{file}");
        files.write(file, &before);
        stays = files.connect(&broker, &good, "web-2").await;
        stays.expect_nothing().await;
    }
    drop(stays);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_list_refuses_everybody_only_when_that_was_asked_for() {
    for (lapse, gets_in) in [(Lapse::Accept, true), (Lapse::Refuse, false)] {
        let files = Files::with(Options {
            expired_crl: Some(lapse),
            ..Options::default()
        });
        let past = Timestamp::from_ms(1_700_000_000_000);
        let (bad, good) = (files.agent("web-1"), files.agent("web-2"));
        files.write("crl.pem", &files.list(past, &[&bad]));
        let broker = files.world.start().await;
        let config = files.config(&good);
        assert_eq!(files.gets_in(&broker, &config, "web-2").await, gets_in);
        // What it revokes stays revoked.
        assert!(!files.gets_in(&broker, &files.config(&bad), "web-1").await);
        broker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_not_there_yet_is_taken_when_it_comes() {
    let mut files = Files::new();
    std::fs::remove_file(files.dir.path().join("crl.pem")).unwrap();
    let broker = files.world.start().await;
    let config = files.config(&files.agent("web-1"));
    assert!(!files.gets_in(&broker, &config, "web-1").await);
    files.revoke(&[]);
    eventually("the list is not taken", async || {
        files.gets_in(&broker, &config, "web-1").await
    })
    .await;
    broker.stop().await;
}

/// Waits until so many sessions of agents are kept for clients that are away.
async fn kept(broker: &Broker, count: &str) {
    let series = "hoist_broker_sessions_away{role=\"agent\"}";
    crate::seen::wait_for_value(broker.metrics.unwrap(), series, count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_leaves_no_last_word_but_that_it_is_gone() {
    let mut files = Files::new();
    let broker = files.world.start().await;
    let (deploy, status) = (topic("web-1", "deploy"), topic("web-1", "status"));
    // One that is connected, and one that is away and whose session is kept.
    let authority = &files.world.authority;
    let ci = authority.issue(Role::Publisher, &name("ci"), &[], days(1));
    let (ci, agent) = (ci.unwrap(), files.agent("web-1"));
    let mut publisher = Client::tls(&broker, files.config(&ci)).await;
    let will = with_will("ci.1", &deploy, "x");
    assert_eq!(publisher.connect(will).await, ConnectReturnCode::Success);
    let mut away = Client5::over(Client::tls(&broker, files.config(&agent)).await);
    let will = will_after(3600, &status, "{}");
    away.open(v5_client::returning("web-1"), Some(will)).await;
    drop(away);
    kept(&broker, "1").await;
    files.revoke(&[&ci, &agent]);
    publisher.expect_closed().await;
    kept(&broker, "0").await;
    let mut other = files.world.client(&broker, Role::Publisher, "ci2").await;
    other.subscribe(&[&deploy, &status]).await;
    other.expect_nothing().await;
    broker.stop().await;
}
