//! The network between one machine and the broker: a TCP proxy that the machine's own files cut.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;

use crate::wait::POLL;

struct Shared {
    /// While this file exists there is no connection.
    cut: Utf8PathBuf,
    /// While this file exists connections stay open, and nothing passes.
    stalled: Utf8PathBuf,
    broker: u16,
    /// Nothing passes, whatever the machine's own files say.
    black_hole: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn swallows(&self) -> bool {
        self.black_hole.load(Ordering::Relaxed) || self.stalled.exists()
    }

    fn close_all(&self) {
        for stream in self.open().drain(..) {
            // Closed already: what it should be.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

/// A running proxy; stopped when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 for the broker on `broker`, another port there.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(broker: u16, cut: Utf8PathBuf, stalled: Utf8PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for the proxy")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            cut,
            stalled,
            broker,
            black_hole: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let acceptor = {
            let shared = shared.clone();
            thread::spawn(move || accept(&listener, &shared))
        };
        Ok(Self {
            shared,
            address,
            acceptor: Some(acceptor),
        })
    }

    /// The port it listens on.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// A fault outside of the machine, which nothing that it does to its own network repairs: connections stay
    /// open, and nothing passes until it is over.
    pub fn set_black_hole(&self, swallows: bool) {
        self.shared.black_hole.store(swallows, Ordering::Relaxed);
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.open().len() / 2
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if self
            .acceptor
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            eprintln!("the proxy panicked");
        }
        self.shared.close_all();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.ended() {
        if shared.cut.exists() {
            shared.close_all();
        }
        match listener.accept() {
            // Dropped at once: a connection that is refused.
            Ok(_) if shared.cut.exists() => {}
            Ok((client, _)) => connect(client, shared),
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(POLL),
            Err(error) => {
                eprintln!("the proxy cannot accept: {error}");
                sleep(POLL);
            }
        }
    }
}

/// Connects `client` with the broker; when the broker is not there the client's connection ends at once.
fn connect(client: TcpStream, shared: &Arc<Shared>) {
    let Ok(broker) = TcpStream::connect(("127.0.0.1", shared.broker)) else {
        return;
    };
    let pairs = [
        client.set_nonblocking(false),
        client.set_nodelay(true),
        broker.set_nodelay(true),
    ];
    let (Ok(client2), Ok(broker2), true) = (
        client.try_clone(),
        broker.try_clone(),
        pairs.iter().all(Result::is_ok),
    ) else {
        return;
    };
    for (from, to) in [(client, broker2), (broker, client2)] {
        let Ok(handle) = from.try_clone() else { return };
        shared.open().push(handle);
        let shared = shared.clone();
        thread::spawn(move || copy(from, to, &shared));
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        while shared.swallows() && !shared.ended() {
            sleep(POLL);
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    for stream in [&from, &to] {
        // Closed already: what it should be.
        drop(stream.shutdown(Shutdown::Both));
    }
    let ours = from.peer_addr().ok();
    shared.open().retain(|stream| {
        stream
            .peer_addr()
            .ok()
            .is_some_and(|peer| Some(peer) != ours)
    });
}
