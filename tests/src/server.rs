//! A binary cache over HTTP that can misbehave.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use camino::{Utf8Path, Utf8PathBuf};
use tiny_http::{Request, Response, Server};

/// Requests answered at the same time.
const WORKERS: usize = 8;

/// How the cache answers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// As it should.
    #[default]
    Serving,
    /// It has lost everything: 404.
    Empty,
    /// It is broken: 500.
    Broken,
    /// It knows every path, but hands none out until the mode changes.
    Holding,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    ended: bool,
    requests: Vec<String>,
    /// Requests that wait for the mode to change.
    held: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    folder: Utf8PathBuf,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: Request) {
        let path = request.url().trim_start_matches('/').to_owned();
        let mode = {
            let mut state = self.state();
            state.requests.push(path.clone());
            if path.starts_with("nar/") {
                state.held += 1;
                while state.mode == Mode::Holding && !state.ended {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                state.held -= 1;
            }
            state.mode
        };
        let file = File::open(self.folder.join(&path));
        let answered = match (mode, file) {
            (Mode::Broken, _) => request.respond(Response::empty(500)),
            // What every cache has, also an empty one.
            (Mode::Empty, Ok(file)) if path == "nix-cache-info" => {
                request.respond(Response::from_file(file))
            }
            (Mode::Serving | Mode::Holding, Ok(file)) if !path.contains("..") => {
                request.respond(Response::from_file(file))
            }
            _ => request.respond(Response::empty(404)),
        };
        // A client that was killed meanwhile does not read the answer: its own affair.
        drop(answered);
    }
}

/// A running server; stopped when dropped.
pub struct CacheServer {
    shared: Arc<Shared>,
    server: Arc<Server>,
    workers: Vec<JoinHandle<()>>,
}

impl CacheServer {
    /// Serves `folder` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(folder: &Utf8Path) -> Result<Self> {
        let server =
            Server::http("127.0.0.1:0").map_err(|e| anyhow!("cannot serve {folder}: {e}"))?;
        let server = Arc::new(server);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            folder: folder.to_owned(),
        });
        let worker = || {
            let (server, shared) = (server.clone(), shared.clone());
            thread::spawn(move || {
                while !shared.state().ended {
                    // An error is how a worker is woken up to end.
                    if let Ok(request) = server.recv() {
                        shared.answer(request);
                    }
                }
            })
        };
        let workers = (0..WORKERS).map(|_| worker()).collect();
        Ok(Self {
            shared,
            server,
            workers,
        })
    }

    /// Where it is.
    ///
    /// # Errors
    /// Never on TCP.
    pub fn url(&self) -> Result<String> {
        let address = self
            .server
            .server_addr()
            .to_ip()
            .ok_or_else(|| anyhow!("a TCP listener has an IP address"))?;
        Ok(format!("http://{address}"))
    }

    /// Changes how it answers from now on.
    pub fn set(&self, mode: Mode) {
        self.shared.state().mode = mode;
        self.shared.changed.notify_all();
    }

    /// How it answers now.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.shared.state().mode
    }

    /// How many requests wait for [`Mode::Holding`] to end.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.state().held
    }

    /// Every path that was asked for, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// How many archives of store paths were asked for.
    #[must_use]
    pub fn archives(&self) -> usize {
        let requests = self.requests();
        let archives = requests.iter().filter(|path| path.starts_with("nar/"));
        archives.count()
    }
}

impl Drop for CacheServer {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        for _ in &self.workers {
            self.server.unblock();
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                eprintln!("a worker of the cache server panicked");
            }
        }
    }
}
