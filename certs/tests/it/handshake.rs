//! Who talks to whom.

use std::sync::Arc;

use hoist_certs::authority::{Authority, Host, Issued, Validity, days};
use hoist_certs::program::now;
use hoist_certs::{Credentials, Identity, Pem, Role, TlsError, explain_tls};
use hoist_protocol::Timestamp;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, Error, HandshakeKind, ServerConfig, ServerConnection,
};

use crate::{fleet, name};

const HOST: &str = "broker.example.org";

fn authority() -> Authority {
    Authority::create(&fleet("prod"), days(400)).unwrap()
}

fn host() -> [Host; 1] {
    [HOST.parse().unwrap()]
}

fn agent(authority: &Authority) -> Issued {
    authority
        .issue(Role::Agent, &name("web-1"), &[], days(1))
        .unwrap()
}

fn broker(authority: &Authority) -> Issued {
    authority
        .issue(Role::Broker, &name("main"), &host(), days(1))
        .unwrap()
}

fn client_config(authority: &Authority) -> Arc<ClientConfig> {
    let credentials = agent(authority).credentials(authority.certificate_pem());
    credentials.client().unwrap().config()
}

fn server_config(authority: &Authority) -> Arc<ServerConfig> {
    let credentials = broker(authority).credentials(authority.certificate_pem());
    credentials.server().unwrap().config()
}

/// A server that asks nobody for a certificate and shows `certificate`, whatever that is.
fn careless_server(certificate: &str, key: &str) -> Arc<ServerConfig> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    Arc::new(config)
}

#[derive(Debug)]
enum Refused {
    /// The client ended it, or heard why the server did.
    Client(Error),
    /// The server ended it; what the client heard of it.
    Server { heard: Option<Error> },
}

impl Refused {
    fn by_client(self) -> String {
        match self {
            Self::Client(error) => explain_tls(&error),
            Self::Server { .. } => panic!("the client should have refused: {self:?}"),
        }
    }
}

/// Hands the bytes of both sides to each other until neither has any.
fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    host: &str,
) -> Result<(ClientConnection, ServerConnection), Refused> {
    let name = host.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        let served = server.process_new_packets();
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            match client.process_new_packets() {
                Ok(_) => {}
                Err(error) if served.is_err() => {
                    return Err(Refused::Server { heard: Some(error) });
                }
                Err(error) => return Err(Refused::Client(error)),
            }
        }
        if served.is_err() {
            return Err(Refused::Server { heard: None });
        }
    }
    Ok((client, server))
}

#[test]
fn an_agent_and_its_broker_talk_and_know_each_other() {
    let authority = authority();
    let (client, server) =
        shake(client_config(&authority), server_config(&authority), HOST).unwrap();
    let seen_by_server = Identity::from_certificate(&server.peer_certificates().unwrap()[0]);
    assert_eq!(
        seen_by_server.unwrap().to_string(),
        "agent web-1 of fleet prod"
    );
    let seen_by_client = Identity::from_certificate(&client.peer_certificates().unwrap()[0]);
    assert_eq!(seen_by_client.unwrap().role(), Role::Broker);
}

#[test]
fn nothing_of_a_connection_is_resumed_in_the_next() {
    let authority = authority();
    let (client, server) = (client_config(&authority), server_config(&authority));
    for _ in 0..2 {
        let (client, server) = shake(client.clone(), server.clone(), HOST).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_broker_of_another_authority_is_refused() {
    let said = shake(
        client_config(&authority()),
        server_config(&authority()),
        HOST,
    )
    .unwrap_err()
    .by_client();
    assert!(
        said.contains("not issued by the CA that is trusted here"),
        "{said}"
    );
}

#[test]
fn a_broker_under_another_host_name_is_refused() {
    let authority = authority();
    let said = shake(
        client_config(&authority),
        server_config(&authority),
        "other.example.org",
    )
    .unwrap_err()
    .by_client();
    assert!(
        said.contains(HOST) && said.contains("not for `other.example.org`"),
        "{said}"
    );
}

#[test]
fn an_agent_cannot_play_the_broker() {
    let authority = authority();
    let agent = agent(&authority);
    let server = careless_server(&agent.certificate_pem, &agent.key_pem);
    let said = shake(client_config(&authority), server, HOST)
        .unwrap_err()
        .by_client();
    // An agent's certificate is for clients only, which is found first.
    assert!(
        said.contains("the server's certificate is not a broker's"),
        "{said}"
    );
}

#[test]
fn whoever_has_a_server_certificate_but_not_the_role_is_no_broker() {
    let authority = authority();
    let key = KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(authority.certificate_pem(), key).unwrap();
    let mut params = CertificateParams::new([HOST.to_owned()]).unwrap();
    for (kind, text) in [
        (DnType::CommonName, "web-1"),
        (DnType::OrganizationalUnitName, "agent"),
        (DnType::OrganizationName, "prod"),
    ] {
        params.distinguished_name.remove(kind.clone());
        params.distinguished_name.push(kind, text);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();

    let server = careless_server(&certificate.pem(), &key.serialize_pem());
    let said = shake(client_config(&authority), server, HOST)
        .unwrap_err()
        .by_client();
    assert!(
        said.contains("not a broker's but that of agent web-1 of fleet prod"),
        "{said}"
    );
}

#[test]
fn a_broker_whose_certificate_has_expired_is_refused_with_the_date() {
    let authority = authority();
    let over = Validity::between(
        Timestamp::from_ms(1_600_000_000_000),
        Timestamp::from_ms(1_700_000_000_000),
    );
    let expired = authority
        .issue(Role::Broker, &name("old"), &host(), over)
        .unwrap();
    let server = careless_server(&expired.certificate_pem, &expired.key_pem);
    let said = shake(client_config(&authority), server, HOST)
        .unwrap_err()
        .by_client();
    assert!(
        said.contains("expired on 2023-11-14T22:13:20.000Z"),
        "{said}"
    );
}

#[test]
fn a_machine_whose_clock_is_behind_hears_what_it_says() {
    let authority = authority();
    // Certificates know whole seconds.
    let start = (now().as_ms() / 1000 + 3600) * 1000;
    let (start, end) = (
        Timestamp::from_ms(start),
        Timestamp::from_ms(start + 3_600_000),
    );
    let later = Validity::between(start, end);
    let early = authority
        .issue(Role::Broker, &name("new"), &host(), later)
        .unwrap();
    let server = careless_server(&early.certificate_pem, &early.key_pem);
    let said = shake(client_config(&authority), server, HOST)
        .unwrap_err()
        .by_client();
    for part in [
        &*format!("not valid before {start}"),
        "this machine's clock says 20",
        "set the clock right",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_client_of_another_authority_is_refused_and_hears_why() {
    let (ours, other) = (authority(), authority());
    let stranger = Credentials {
        ca: Pem::from(ours.certificate_pem().to_owned()),
        ..agent(&other).credentials("")
    };
    let client = stranger.client().unwrap().config();
    let refused = shake(client, server_config(&ours), HOST).unwrap_err();
    let Refused::Server { heard: Some(heard) } = refused else {
        panic!("the server should have refused and said why: {refused:?}");
    };
    let said = explain_tls(&heard);
    assert!(
        said.contains("does not trust the CA of our certificate"),
        "{said}"
    );
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let authority = authority();
    let mut config = (*client_config(&authority)).clone();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let refused = shake(Arc::new(config), server_config(&authority), HOST).unwrap_err();
    let Refused::Server { heard: Some(heard) } = refused else {
        panic!("the server should have refused and said why: {refused:?}");
    };
    assert!(explain_tls(&heard).contains("asks for a certificate and got none"));
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_broker_cannot_be_a_client_of_a_broker() {
    let authority = authority();
    let credentials = broker(&authority).credentials(authority.certificate_pem());
    let client = credentials.client().unwrap().config();
    let refused = shake(client, server_config(&authority), HOST).unwrap_err();
    assert!(matches!(refused, Refused::Server { .. }), "{refused:?}");
}

#[test]
fn only_a_broker_serves() {
    let authority = authority();
    let credentials = agent(&authority).credentials(authority.certificate_pem());
    let error = credentials.server().unwrap_err();
    assert!(matches!(error, TlsError::NotABroker { .. }), "{error}");
}

#[test]
fn no_certificate_outlives_its_authority() {
    let authority = Authority::create(&fleet("prod"), days(10)).unwrap();
    let late = Validity::between(now(), now().plus(days(11)));
    assert!(
        authority
            .issue(Role::Agent, &name("web-1"), &[], late)
            .is_err()
    );
    assert!(
        authority
            .issue(Role::Agent, &name("web-1"), &[], days(9))
            .is_ok()
    );
}
