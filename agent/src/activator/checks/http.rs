//! Whether a URL answers with success.

use std::sync::Arc;
use std::time::Duration;

use hoist_protocol::HttpUrl;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// Asks for the URL within `limit`: any status but 200 to 299 fails, and redirections are not followed.
///
/// A server's certificate is checked against the machine's own authorities.
pub(super) fn probe(url: &HttpUrl, limit: Duration) -> Result<(), String> {
    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        // A proxy answers for the machine itself as for others: the check is about this machine.
        .proxy(None)
        .user_agent(concat!("hoist-agent/", env!("CARGO_PKG_VERSION")));
    if url.as_str().starts_with("https:") {
        config = config.tls_config(tls()?);
    }
    let answer = ureq::Agent::new_with_config(config.build())
        .get(url.as_str())
        .call()
        .map_err(|error| error.to_string())?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(format!("it answers {status}"))
}

fn tls() -> Result<TlsConfig, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map(ToString::to_string);
        return Err(format!(
            "this machine has no certificate authorities: {}",
            why.unwrap_or_else(|| "there is no such file".to_owned())
        ));
    }
    let authorities = found
        .certs
        .iter()
        .map(|der| Certificate::from_der(der).to_owned());
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(authorities.collect())))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A server that gives this answer to one request.
    fn answers(answer: &'static str) -> HttpUrl {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/health", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = BufReader::new(stream.try_clone().unwrap());
            let end = request
                .lines()
                .find(|line| line.as_ref().unwrap().is_empty());
            assert!(end.is_some());
            stream.write_all(answer.as_bytes()).unwrap();
        });
        HttpUrl::new(url).unwrap()
    }

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
}
