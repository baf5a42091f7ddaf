//! The broker's control socket in its state folder: hands out a backup to its own user and to root.
//!
//! A request is one line, `backup`; the answer is a closed store, which tells by itself whether it is complete.

use std::io::{self, BufWriter, Write as _};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::store::Store;

const SOCKET: &str = "control";
const REQUEST: &[u8] = b"backup\n";

/// How long a request may take, and how long a client may take nothing of the answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Backups at once.
const AT_ONCE: usize = 2;

/// How long to wait when there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening socket; its file is removed when this is dropped.
pub(crate) struct Control {
    listener: UnixListener,
    path: Utf8PathBuf,
}

impl Control {
    /// Listens in the state folder, whose lock has to be held.
    pub(crate) fn bind(state: &Utf8Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = state.join(SOCKET);
        // One that is there was left by a broker that was killed: the lock is ours.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Answers for ever.
    pub(crate) async fn serve(self, store: Store) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let store = store.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, store).await {
                            warn!(%error, "a backup was not handed out");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection on the control socket");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The next start removes it otherwise.
        std::fs::remove_file(&self.path).ok();
    }
}

async fn answer(mut stream: UnixStream, store: Store) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it was asked for by another user",
        ));
    }
    let mut request = [0; REQUEST.len()];
    timeout(PATIENCE, stream.read_exact(&mut request)).await??;
    if request != REQUEST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the request is none",
        ));
    }
    let stream = stream.into_std()?;
    let written = tokio::task::spawn_blocking(move || hand_out(&stream, store)).await;
    let messages = written.map_err(io::Error::other)??;
    info!(messages, "handed out a backup");
    Ok(())
}

fn hand_out(stream: &StdStream, store: Store) -> io::Result<usize> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let all = store.durable();
    // A broker that stops waits for the last handle.
    drop(store);
    let mut out = BufWriter::new(stream);
    crate::store::write_backup(&all, &mut out)?;
    out.flush()?;
    Ok(all.len())
}

/// Connects to the broker that runs on a state folder.
pub(super) fn connect(state: &Utf8Path) -> io::Result<StdStream> {
    let stream = StdStream::connect(state.join(SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks for a backup; what comes then is one.
pub(super) fn ask_backup(stream: &mut StdStream) -> io::Result<()> {
    stream.write_all(REQUEST)
}
