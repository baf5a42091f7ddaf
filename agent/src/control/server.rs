//! The agent's end of the socket.
//!
//! Every caller has a task and two bounded queues of its own: one that says nothing, asks for too much or does not
//! read what it is told is dropped, and nobody else notices.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::Text;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::protocol::{ANSWER_LEN, Answer, Ask, REQUEST_LEN, Request, VERSION};
use super::socket_path;

/// Callers at the same time; one more is turned away.
const CALLERS: usize = 16;

/// Answers that wait for a caller to read them; one who lets more come is dropped.
const ANSWERS: usize = 256;

/// Requests that wait for the agent.
const REQUESTS: usize = 4;

/// How long a caller may take to say what it wants.
const ASKING: Duration = Duration::from_secs(5);

/// How long a caller may take to read an answer.
const READING: Duration = Duration::from_secs(5);

/// How long nobody is let in after the kernel has refused to, for want of file descriptors, say.
const REST: Duration = Duration::from_secs(1);

/// A request and the way to answer it.
#[derive(Debug)]
pub struct Asked {
    /// What is asked for.
    pub ask: Ask,
    /// Whom to answer.
    pub reply: Reply,
}

/// The way to a caller. The connection ends when this is dropped and what was said is written.
#[derive(Clone, Debug)]
pub struct Reply(mpsc::Sender<Answer>);

impl Reply {
    /// Says something. Returns whether the caller still listens.
    pub fn say(&self, answer: Answer) -> bool {
        self.0.try_send(answer).is_ok()
    }

    /// Says that nothing comes of it.
    pub fn refuse(&self, message: &str) -> bool {
        let message = Text::lossy(message);
        self.say(Answer::Refused { message })
    }

    /// Whether the caller is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// A way to nobody but who has the other end.
    #[cfg(test)]
    pub(super) fn for_tests() -> (Self, mpsc::Receiver<Answer>) {
        let (sender, answers) = mpsc::channel(ANSWERS);
        (Self(sender), answers)
    }
}

/// The socket; gone when dropped.
#[derive(Debug)]
pub struct Control {
    asked: mpsc::Receiver<Asked>,
    socket: Option<Socket>,
}

#[derive(Debug)]
struct Socket {
    path: Utf8PathBuf,
    listening: JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.listening.abort();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path, %error, "cannot remove the control socket");
        }
    }
}

impl Control {
    /// Opens the socket in the folder `state`, whose lock this process has: one that is there is a dead agent's.
    ///
    /// An agent that cannot be asked does its work all the same: what goes wrong is logged as an error.
    #[must_use]
    pub fn open(state: &Utf8Path) -> Self {
        let (sender, asked) = mpsc::channel(REQUESTS);
        let path = socket_path(state);
        let socket = match bind(&path) {
            Ok(listener) => Some(Socket {
                listening: tokio::spawn(listen(listener, sender)),
                path,
            }),
            Err(error) => {
                tracing::error!(%path, %error, "cannot open the control socket: `hoist-agent status` and its like will not reach this agent");
                None
            }
        };
        Self { asked, socket }
    }

    /// The next request; never one when there is no socket. Can be dropped and called again.
    pub async fn next(&mut self) -> Asked {
        match self.asked.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }

    /// Lets nobody in any more.
    pub fn close(&mut self) {
        self.socket = None;
    }
}

fn bind(path: &Utf8Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Until then the folder keeps others out, and so does the look at who it is.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn listen(listener: UnixListener, agent: mpsc::Sender<Asked>) {
    let callers = Arc::new(Semaphore::new(CALLERS));
    loop {
        let caller = match listener.accept().await {
            Ok((caller, _)) => caller,
            Err(error) => {
                tracing::warn!(%error, "cannot let a caller in at the control socket");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&callers).try_acquire_owned() else {
            tracing::warn!("more than {CALLERS} callers at the control socket; one is turned away");
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            serve(caller, agent).await;
            drop(permit);
        });
    }
}

async fn serve(caller: UnixStream, agent: mpsc::Sender<Asked>) {
    let us = rustix::process::geteuid().as_raw();
    match caller.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == us => {}
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "turned a user away at the control socket");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell who is at the control socket");
            return;
        }
    }
    let (reader, mut writer) = caller.into_split();
    let mut reader = BufReader::new(reader);
    let ask = match timeout(ASKING, read_request(&mut reader)).await {
        Ok(Ok(ask)) => ask,
        Ok(Err(message)) => {
            let refused = Answer::Refused {
                message: Text::lossy(&message),
            };
            write(&mut writer, &refused).await;
            return;
        }
        Err(_) => {
            tracing::debug!("a caller at the control socket did not say what it wants");
            return;
        }
    };
    let (sender, answers) = mpsc::channel(ANSWERS);
    let asked = Asked {
        ask,
        reply: Reply(sender),
    };
    if agent.send(asked).await.is_ok() {
        tell(reader, writer, answers).await;
    }
}

async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Ask, String> {
    let limit = u64::try_from(REQUEST_LEN).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    let mut limited = reader.take(limit);
    limited
        .read_until(b'\n', &mut line)
        .await
        .map_err(|error| format!("the request cannot be read: {error}"))?;
    if !line.ends_with(b"\n") {
        return Err(format!(
            "a request is one line of at most {REQUEST_LEN} bytes"
        ));
    }
    /// Read first: of another version, nothing else may be understood.
    #[derive(serde::Deserialize)]
    struct Head {
        version: u32,
    }
    let unreadable = |error| format!("the request cannot be read: {error}");
    let Head { version } = serde_json::from_slice(&line).map_err(unreadable)?;
    if version != VERSION {
        return Err(format!(
            "the agent that runs speaks version {VERSION}, and version {version} was asked for; use the \
             hoist-agent that runs, or restart it"
        ));
    }
    let request: Request = serde_json::from_slice(&line).map_err(unreadable)?;
    Ok(request.ask)
}

/// Writes answers until there are no more, or nobody reads them.
async fn tell(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut answers: mpsc::Receiver<Answer>,
) {
    let mut surplus = [0];
    loop {
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            // Nothing more is to be said: it has hung up, or does not keep to the protocol.
            _ = reader.read(&mut surplus) => return,
        };
        let Some(answer) = answer else {
            return;
        };
        if !write(&mut writer, &answer).await {
            return;
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, answer: &Answer) -> bool {
    let mut line = serde_json::to_vec(answer).expect("plain data always has a JSON form");
    line.push(b'\n');
    if line.len() > ANSWER_LEN {
        tracing::error!(
            bytes = line.len(),
            "an answer is too long for the control socket"
        );
        return false;
    }
    match timeout(READING, writer.write_all(&line)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a caller at the control socket is gone");
            false
        }
        Err(_) => {
            tracing::debug!("a caller at the control socket does not read what it is told");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt as _;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn on_socket<F: Future<Output = ()>>(run: impl FnOnce(Control, Utf8PathBuf) -> F) {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(dir.path()).unwrap();
        let control = Control::open(state);
        run(control, socket_path(state)).await;
    }

    async fn call(path: &Utf8Path, request: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream
    }

    async fn rest(mut stream: UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    const STATUS: &[u8] = b"{\"version\":1,\"ask\":\"status\"}\n";

    #[tokio::test]
    async fn a_request_reaches_the_agent_and_its_answer_the_caller() {
        on_socket(|mut control, path| async move {
            let stream = call(&path, STATUS).await;
            let asked = control.next().await;
            assert_eq!(asked.ask, Ask::Status);
            assert!(asked.reply.say(Answer::Done));
            drop(asked);
            assert_eq!(rest(stream).await, "{\"answer\":\"done\"}\n");
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_with_what_is_wrong() {
        on_socket(|mut control, path| async move {
            let long = vec![b'x'; REQUEST_LEN];
            for (request, says) in [
                (&b"hello\n"[..], "cannot be read"),
                (
                    b"{\"version\":2,\"ask\":\"fly\"}\n",
                    "version 2 was asked for",
                ),
                (b"{\"version\":1,\"ask\":\"fly\"}\n", "cannot be read"),
                (&long, "at most"),
            ] {
                let answer = rest(call(&path, request).await).await;
                assert!(answer.starts_with("{\"answer\":\"refused\""), "{answer}");
                assert!(answer.contains(says), "{answer}");
            }
            control.close();
        })
        .await;
    }

    #[tokio::test]
    async fn callers_that_say_nothing_keep_nobody_out_for_long_and_one_too_many_is_turned_away() {
        on_socket(|mut control, path| async move {
            let mut silent = Vec::new();
            for _ in 0..CALLERS {
                silent.push(UnixStream::connect(&path).await.unwrap());
            }
            let one_too_many = UnixStream::connect(&path).await.unwrap();
            assert_eq!(rest(one_too_many).await, "");
            // One hangs up, and there is room again.
            silent.pop();
            loop {
                let stream = call(&path, STATUS).await;
                tokio::select! {
                    asked = control.next() => {
                        assert_eq!(asked.ask, Ask::Status);
                        return;
                    }
                    _ = rest(stream) => {}
                }
            }
        })
        .await;
    }

    #[tokio::test]
    async fn one_who_does_not_read_is_dropped_and_the_agent_does_not_wait() {
        on_socket(|mut control, path| async move {
            let _stream = call(&path, STATUS).await;
            let asked = control.next().await;
            let message: Text<1024> = Text::lossy(&"x".repeat(1024));
            let say = || {
                asked.reply.say(Answer::Refused {
                    message: message.clone(),
                })
            };
            // More than queue and socket can hold; the loop does not await anything.
            assert!((0..100_000).any(|_| !say()));
        })
        .await;
    }

    #[tokio::test]
    async fn one_who_hangs_up_is_noticed() {
        on_socket(|mut control, path| async move {
            let stream = call(&path, STATUS).await;
            let asked = control.next().await;
            drop(stream);
            asked.reply.0.closed().await;
            assert!(!asked.reply.say(Answer::Done));
        })
        .await;
    }

    #[tokio::test]
    async fn the_socket_is_private_replaces_a_dead_agents_and_goes_with_its_agent() {
        on_socket(|mut control, path| async move {
            let metadata = fs::metadata(&path).unwrap();
            assert!(metadata.file_type().is_socket());
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            let state = path.parent().unwrap().to_owned();
            let again = Control::open(&state);
            let _stream = call(&path, STATUS).await;
            control.close();
            assert!(!path.exists());
            drop(again);
        })
        .await;
    }
}
