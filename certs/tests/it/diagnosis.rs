//! What a real MQTT client is told when it cannot connect, over real sockets.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use hoist_certs::authority::{Authority, days};
use hoist_certs::mqtt::{ConnectFailure, FailureKind, client, diagnose, options};
use hoist_certs::{Credentials, Pem, Role};
use hoist_protocol::BrokerUrl;
use rustls::{ServerConnection, Stream};

use crate::{fleet, name};

fn authority() -> Authority {
    Authority::create(&fleet("prod"), days(400)).unwrap()
}

fn agent(authority: &Authority) -> Credentials {
    authority
        .issue(Role::Agent, &name("web-1"), &[], days(30))
        .unwrap()
        .credentials(authority.certificate_pem())
}

/// A broker's side that does the handshake, and nothing else.
fn serve(listener: TcpListener, authority: &Authority) {
    let hosts = ["127.0.0.1".parse().unwrap()];
    let broker = authority
        .issue(Role::Broker, &name("main"), &hosts, days(30))
        .unwrap();
    let tls = broker
        .credentials(authority.certificate_pem())
        .server()
        .unwrap();
    answer(listener, move |mut socket| {
        let mut server = ServerConnection::new(tls.config()).unwrap();
        // Whichever side refuses: the client is the one that is looked at.
        drop(Stream::new(&mut server, &mut socket).read(&mut [0; 64]));
        // Closing with bytes unread would reset the connection, and the alert could be lost.
        drop(socket.shutdown(Shutdown::Write));
        drop(socket.read_to_end(&mut Vec::new()));
    });
}

fn answer(listener: TcpListener, how: impl FnOnce(TcpStream) + Send + 'static) {
    thread::spawn(move || how(listener.accept().unwrap().0));
}

/// Connects once, to `port`, and gives what came of it.
fn connect(credentials: &Credentials, host: &str, port: u16) -> ConnectFailure {
    let url: BrokerUrl = format!("mqtts://{host}:{port}").parse().unwrap();
    let tls = credentials.client().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime.block_on(async {
        let (_client, mut events) = client(options(&url, "web-1", &tls), 10);
        events.poll().await.unwrap_err()
    });
    diagnose(&error, &url)
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn a_port_where_nothing_listens_is_named() {
    let (listener, port) = listener();
    drop(listener);
    let failure = connect(&agent(&authority()), "127.0.0.1", port);
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert_eq!(
        failure.to_string(),
        format!("mqtts://127.0.0.1:{port}: nothing listens on port {port}; is the broker running?")
    );
}

#[test]
fn a_name_that_has_no_address_is_named() {
    // The name is too long for any resolver, so that none is asked.
    let host = "a".repeat(64);
    let failure = connect(&agent(&authority()), &host, 8883);
    assert_eq!(failure.kind, FailureKind::Name, "{failure}");
    assert!(
        failure.to_string().contains("no address is known"),
        "{failure}"
    );
}

#[test]
fn a_broker_of_another_ca_is_told_from_a_ca_that_the_broker_does_not_know() {
    let (ours, other) = (authority(), authority());
    let (listening, port) = listener();
    serve(listening, &other);
    let failure = connect(&agent(&ours), "127.0.0.1", port);
    assert_eq!(failure.kind, FailureKind::Tls, "{failure}");
    let said = failure.to_string();
    assert!(
        said.contains("was not issued by the CA that is trusted here"),
        "{said}"
    );

    let (listening, port) = listener();
    serve(listening, &other);
    let stranger = Credentials {
        ca: Pem::from(other.certificate_pem().to_owned()),
        ..agent(&ours)
    };
    let failure = connect(&stranger, "127.0.0.1", port);
    assert_eq!(failure.kind, FailureKind::Tls, "{failure}");
    let said = failure.to_string();
    assert!(
        said.contains("does not trust the CA of our certificate"),
        "{said}"
    );
}

#[test]
fn a_server_that_speaks_no_tls_is_told() {
    let (listening, port) = listener();
    answer(listening, |mut socket| {
        socket.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        // Until the client has read it and gone.
        drop(socket.read_to_end(&mut Vec::new()));
    });
    let failure = connect(&agent(&authority()), "127.0.0.1", port);
    assert_eq!(failure.kind, FailureKind::Tls, "{failure}");
    assert!(
        failure.to_string().contains("does not speak TLS"),
        "{failure}"
    );
}

#[test]
fn a_server_that_hangs_up_is_told() {
    let (listening, port) = listener();
    answer(listening, drop);
    let failure = connect(&agent(&authority()), "127.0.0.1", port);
    assert_eq!(failure.kind, FailureKind::Lost, "{failure}");
    assert!(
        failure.to_string().contains("closed the connection"),
        "{failure}"
    );
}
