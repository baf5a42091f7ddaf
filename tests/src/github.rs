//! A stand-in for the part of GitHub's API that shows deployments.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tiny_http::{Request, Response, Server};

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The path, from the first `/`.
    pub path: String,
    /// The header `Authorization`.
    pub authorization: String,
    /// The body.
    pub body: Value,
}

/// The stand-in; stopped when dropped.
pub struct GitHub {
    server: Arc<Server>,
    asked: Arc<Mutex<Vec<Asked>>>,
    worker: Option<JoinHandle<()>>,
}

impl GitHub {
    /// Answers every request with `status`, on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(status: u16) -> Result<Self> {
        let server = Server::http("127.0.0.1:0").map_err(|e| anyhow!("cannot listen: {e}"))?;
        let server = Arc::new(server);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let worker = {
            let (server, asked) = (Arc::clone(&server), Arc::clone(&asked));
            // An error is how it is woken up to end.
            thread::spawn(move || {
                while let Ok(request) = server.recv() {
                    answer(request, status, &asked);
                }
            })
        };
        Ok(Self {
            server,
            asked,
            worker: Some(worker),
        })
    }

    /// Where it is.
    ///
    /// # Errors
    /// Never on TCP.
    pub fn url(&self) -> Result<String> {
        let address = self.server.server_addr().to_ip();
        let address = address.ok_or_else(|| anyhow!("a TCP listener has an IP address"))?;
        Ok(format!("http://{address}"))
    }

    /// Everything that was asked, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }
}

fn lock(asked: &Mutex<Vec<Asked>>) -> MutexGuard<'_, Vec<Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut request: Request, status: u16, asked: &Mutex<Vec<Asked>>) {
    let header = (request.headers().iter()).find(|header| header.field.equiv("Authorization"));
    let authorization = header.map_or(String::new(), |header| header.value.to_string());
    let path = request.url().to_owned();
    let body = serde_json::from_reader(request.as_reader()).unwrap_or(Value::Null);
    let mut all = lock(asked);
    all.push(Asked {
        path,
        authorization,
        body,
    });
    let text = json!({ "id": 40 + all.len() }).to_string();
    drop(all);
    let answered = request.respond(Response::from_string(text).with_status_code(status));
    if let Err(error) = answered {
        eprintln!("nobody waits for GitHub's answer: {error}");
    }
}

impl Drop for GitHub {
    fn drop(&mut self) {
        self.server.unblock();
        if self
            .worker
            .take()
            .is_some_and(|worker| worker.join().is_err())
        {
            eprintln!("the stand-in for GitHub panicked");
        }
    }
}
