//! Whether something accepts TCP connections.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hoist_protocol::Endpoint;

/// Connects to the first of its addresses that accepts, within `limit` for all of them.
pub(super) fn probe(endpoint: &Endpoint, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let addresses = addresses(endpoint, limit)?;
    let mut why = "its name has no address".to_owned();
    for address in addresses {
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(format!("{why}; and there was no time left"));
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(_) => return Ok(()),
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Err(why)
}

/// Looks the name up on a thread of its own: the resolver knows no time limit but its own.
fn addresses(endpoint: &Endpoint, limit: Duration) -> Result<Vec<SocketAddr>, String> {
    let (sender, found) = mpsc::channel();
    let name = endpoint.as_str().to_owned();
    std::thread::Builder::new()
        .name("resolver".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            let addresses = name.to_socket_addrs().map(Iterator::collect);
            // Nobody listens any more when it took too long.
            sender.send(addresses).ok();
        })
        .map_err(|error| format!("its name cannot be looked up: {error}"))?;
    match found.recv_timeout(limit) {
        Ok(addresses) => {
            addresses.map_err(|error| format!("its name cannot be looked up: {error}"))
        }
        Err(_) => Err("looking up its name took too long".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_listens_holds_and_what_does_not_fails() {
        let limit = Duration::from_secs(10);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::new(listener.local_addr().unwrap().to_string()).unwrap();
        assert_eq!(probe(&endpoint, limit), Ok(()));
        drop(listener);
        assert!(probe(&endpoint, limit).unwrap_err().contains("refused"));
    }

    #[test]
    fn a_name_without_an_address_says_so() {
        let endpoint = Endpoint::new("nowhere.invalid:80").unwrap();
        let why = probe(&endpoint, Duration::from_secs(30)).unwrap_err();
        assert!(why.contains("name"), "{why}");
    }
}
