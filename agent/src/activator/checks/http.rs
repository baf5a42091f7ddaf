//! Whether a URL answers with success.

use std::time::Duration;

use hoist_protocol::HttpUrl;

use super::https::{self, Authorities};

/// Asks for the URL within `limit`: any status but 200 to 299 fails, and redirections are not followed.
///
/// A server's certificate is checked against the machine's own authorities.
pub(super) fn probe(url: &HttpUrl, limit: Duration) -> Result<(), String> {
    let trusted = match url.as_str().starts_with("https:") {
        true => Some(https::authorities()?),
        false => None,
    };
    ask(url, limit, trusted)
}

fn ask(url: &HttpUrl, limit: Duration, trusted: Option<Authorities>) -> Result<(), String> {
    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        // A proxy answers for the machine itself as for others: the check is about this machine.
        .proxy(None)
        .user_agent(concat!("hoist-agent/", env!("CARGO_PKG_VERSION")));
    if let Some(trusted) = trusted {
        config = config.tls_config(https::trusting(trusted));
    }
    let answer = ureq::Agent::new_with_config(config.build())
        .get(url.as_str())
        .call()
        .map_err(|error| https::refusal(&error).unwrap_or_else(|| error.to_string()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(format!("it answers {status}"))
}

#[cfg(test)]
mod tests {
    use std::io::{self, BufRead as _, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;

    use hoist_certs::Role;
    use hoist_certs::authority::{Authority, Host, Validity};
    use hoist_protocol::{AgentName, FleetName, Timestamp};
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use ureq::tls::Certificate;

    use super::*;

    /// A server that gives this answer to one request.
    fn answers(answer: &'static str) -> HttpUrl {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/health", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            serve(stream, answer).unwrap();
        });
        HttpUrl::new(url).unwrap()
    }

    /// Reads a request to its end and answers it.
    fn serve(mut stream: impl Read + Write, answer: &str) -> io::Result<()> {
        for line in BufReader::new(&mut stream).lines() {
            if line?.is_empty() {
                return stream.write_all(answer.as_bytes());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn authority() -> Authority {
        Authority::create(&FleetName::new("prod").unwrap(), YEAR).unwrap()
    }

    fn trusting(authority: &Authority) -> Authorities {
        let der = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
        vec![Certificate::from_der(&der).to_owned()]
    }

    /// The same as [`answers`] over TLS, with a certificate for `host`.
    fn answers_over_tls(authority: &Authority, host: &str, valid: Validity) -> HttpUrl {
        let name = AgentName::new("web").unwrap();
        let hosts = [host.parse::<Host>().unwrap()];
        let issued = authority.issue(Role::Broker, &name, &hosts, valid).unwrap();
        let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes());
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.unwrap()], key.unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/health", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            // Whoever does not believe the certificate goes away before it has asked.
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            drop(serve(rustls::StreamOwned::new(connection, stream), answer));
        });
        HttpUrl::new(url).unwrap()
    }

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    const HOUR: Duration = Duration::from_secs(3600);
    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn success_holds_and_all_else_fails() {
        let good = answers("HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(probe(&good, LIMIT), Ok(()));
        let error = answers("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        assert!(probe(&error, LIMIT).unwrap_err().contains("503"));
        let moved = answers(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        );
        assert!(probe(&moved, LIMIT).unwrap_err().contains("302"));
    }

    #[test]
    fn a_server_that_says_nothing_fails_when_the_time_is_over() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let why = probe(&HttpUrl::new(url).unwrap(), Duration::from_millis(100)).unwrap_err();
        assert!(why.contains("timeout"), "{why}");
    }

    #[test]
    fn a_server_without_tls_fails_for_https() {
        let plain = answers("HTTP/1.1 200 OK\r\n\r\n");
        let url = plain.as_str().replacen("http:", "https:", 1);
        let listener = HttpUrl::new(url).unwrap();
        assert!(probe(&listener, Duration::from_secs(5)).is_err());
    }

    #[test]
    fn a_server_is_believed_whose_certificate_a_trusted_authority_has_issued() {
        let authority = authority();
        let url = answers_over_tls(&authority, "127.0.0.1", HOUR.into());
        assert_eq!(ask(&url, LIMIT, Some(trusting(&authority))), Ok(()));
    }

    #[test]
    fn a_server_that_is_not_believed_is_told_why() {
        let day = |year: u64| Timestamp::from_ms((year - 1970) * 31_557_600_000);
        let (ours, other) = (authority(), authority());
        let over = Validity::between(day(2001), day(2002));
        for (url, why) in [
            (
                answers_over_tls(&other, "127.0.0.1", HOUR.into()),
                "no certificate authority that this machine trusts",
            ),
            (
                answers_over_tls(&ours, "127.0.0.1", over),
                "its certificate expired on 2002-01-",
            ),
            (
                answers_over_tls(&ours, "web.example.org", HOUR.into()),
                "is for web.example.org, not for `127.0.0.1`",
            ),
        ] {
            let said = ask(&url, LIMIT, Some(trusting(&ours))).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
