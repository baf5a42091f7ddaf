//! Binary caches for tests: folders, and a server for them that can fail in the ways that servers fail.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{CacheKey, StorePath, SubstituterUrl};

use crate::machine::{Machine, run};

/// A binary cache in a folder, signed with a key of its own.
pub(crate) struct Cache {
    pub(crate) dir: Utf8PathBuf,
    pub(crate) url: SubstituterUrl,
    pub(crate) key: CacheKey,
    secret: Utf8PathBuf,
}

impl Cache {
    pub(crate) fn new(machine: &Machine, name: &str) -> Self {
        let secret = machine.dir().join(format!("{name}.secret"));
        let public = machine.dir().join(format!("{name}.public"));
        run(
            "nix-store",
            &[
                "--generate-binary-cache-key",
                name,
                secret.as_str(),
                public.as_str(),
            ],
        );
        let key = fs::read_to_string(&public).unwrap();
        let dir = machine.dir().join(name);
        Self {
            url: SubstituterUrl::new(format!("file://{dir}")).unwrap(),
            dir,
            key: CacheKey::new(key.trim()).unwrap(),
            secret,
        }
    }

    /// Pushes a path with all it refers to.
    pub(crate) fn push(&self, path: &StorePath) {
        let (secret, url) = (self.secret.as_str(), self.url.as_str());
        run("nix", &["store", "sign", "-r", "-k", secret, path.as_str()]);
        run("nix", &["copy", "--to", url, path.as_str()]);
    }

    /// Pushes a path and takes all that has no root out of the machine's own store.
    pub(crate) fn take(&self, path: &StorePath) {
        self.push(path);
        run("nix-store", &["--gc"]);
        assert!(!fs::exists(path.as_str()).unwrap());
    }

    /// The contents of all paths.
    pub(crate) fn contents(&self) -> Vec<Utf8PathBuf> {
        let files = self.dir.join("nar").read_dir_utf8().unwrap();
        files.map(|file| file.unwrap().path().to_owned()).collect()
    }
}

/// What a server does when it is asked for contents.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// It sends them.
    None,
    /// It sends half of them, and then nothing.
    Stalls,
    /// It sends half of them and closes the connection.
    Dies,
    /// It answers with an error.
    Fails,
    /// It closes every connection at once, whatever it is asked for.
    Down,
}

/// A server on a port of its own, for as long as the test runs.
pub(crate) struct Server {
    pub(crate) url: SubstituterUrl,
    fault: Arc<Mutex<Fault>>,
}

impl Server {
    pub(crate) fn of(cache: &Cache) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fault = Arc::new(Mutex::new(Fault::None));
        let (dir, set) = (cache.dir.clone(), Arc::clone(&fault));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (dir, fault) = (dir.clone(), *set.lock().unwrap());
                std::thread::spawn(move || answer(&dir, fault, &stream).ok());
            }
        });
        Self {
            url: SubstituterUrl::new(url).unwrap(),
            fault,
        }
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

/// An address where nobody listens.
pub(crate) fn nobody() -> SubstituterUrl {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SubstituterUrl::new(format!("http://{}", listener.local_addr().unwrap())).unwrap()
}

/// Answers one request, and closes the connection.
fn answer(dir: &Utf8Path, fault: Fault, mut stream: &TcpStream) -> std::io::Result<()> {
    if fault == Fault::Down {
        return Ok(());
    }
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let is_content = path.starts_with("/nar/");
    let Ok(body) = fs::read(dir.join(path.trim_start_matches('/'))) else {
        return head(stream, "404 Not Found", 0);
    };
    match fault {
        Fault::Fails if is_content => head(stream, "500 Internal Server Error", 0),
        Fault::Stalls | Fault::Dies if is_content => {
            head(stream, "200 OK", body.len())?;
            stream.write_all(&body[..body.len() / 2])?;
            if fault == Fault::Stalls {
                // Until the other side gives up.
                BufReader::new(stream).lines().next();
            }
            Ok(())
        }
        _ => {
            head(stream, "200 OK", body.len())?;
            stream.write_all(&body)
        }
    }
}

fn head(mut stream: &TcpStream, status: &str, length: usize) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}
