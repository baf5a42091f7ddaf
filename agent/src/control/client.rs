//! The command line's end of the socket.

use std::io;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::{ANSWER_LEN, Answer, Ask, Request};
use super::socket_path;

/// How long the agent may take to answer, where it has nothing to do before.
const ANSWER: Duration = Duration::from_secs(10);

/// Why the agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket, or nobody at its other end.
    #[error("no hoist-agent runs with the state folder `{state}`")]
    NoAgent {
        /// Where it would be.
        state: Utf8PathBuf,
    },
    /// The socket is another user's.
    #[error(
        "`{path}` belongs to another user; run this as root, or as the user that the agent runs as"
    )]
    NotAllowed {
        /// The socket.
        path: Utf8PathBuf,
    },
    /// The agent refuses.
    #[error("{0}")]
    Refused(String),
    /// The connection fails.
    #[error("cannot talk to the hoist-agent at `{path}`")]
    Io {
        /// The socket.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says what nobody understands.
    #[error(
        "what the hoist-agent at `{path}` says cannot be read: it is of another version, or damaged"
    )]
    Malformed {
        /// The socket.
        path: Utf8PathBuf,
    },
    /// It has ended the connection before it had said all.
    #[error("the hoist-agent at `{path}` has ended the connection")]
    Gone {
        /// The socket.
        path: Utf8PathBuf,
    },
}

/// Where an agent is asked.
#[derive(Clone, Debug)]
pub struct Client {
    state: Utf8PathBuf,
}

impl Client {
    /// The agent with this state folder, whether it runs or not.
    #[must_use]
    pub fn new(state: &Utf8Path) -> Self {
        let state = state.to_owned();
        Self { state }
    }

    /// Asks for something that is answered at once and by one answer.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn ask(&self, ask: Ask) -> Result<Answer, ClientError> {
        let mut conversation = self.converse(ask).await?;
        conversation.next().await?.ok_or_else(|| {
            let path = socket_path(&self.state);
            ClientError::Gone { path }
        })
    }

    /// Asks for something that is answered by several.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn converse(&self, ask: Ask) -> Result<Conversation, ClientError> {
        let path = socket_path(&self.state);
        let stream = UnixStream::connect(&path).await;
        let stream = stream.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent {
                state: self.state.clone(),
            },
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path: path.clone() },
            _ => ClientError::Io {
                path: path.clone(),
                source,
            },
        })?;
        let mut line =
            serde_json::to_vec(&Request::from(ask)).expect("plain data always has a JSON form");
        line.push(b'\n');
        let mut reader = BufReader::new(stream);
        match within(ANSWER, reader.get_mut().write_all(&line)).await {
            // It ends: there will be no answer.
            Err(error) if is_gone(&error) => Err(ClientError::Gone { path }),
            Err(source) => Err(ClientError::Io { path, source }),
            Ok(()) => Ok(Conversation {
                path,
                reader,
                line: Vec::new(),
                is_begun: false,
            }),
        }
    }
}

async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(patience, work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it does not answer within {} s", patience.as_secs()),
        )),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// Answers as they come.
#[derive(Debug)]
pub struct Conversation {
    path: Utf8PathBuf,
    reader: BufReader<UnixStream>,
    /// What has come of the next answer.
    line: Vec<u8>,
    is_begun: bool,
}

impl Conversation {
    /// The next answer; none when the agent has ended the connection. Waits for as long as it takes once
    /// something was begun. Can be dropped and called again.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal is one as well.
    pub async fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        let path = || self.path.clone();
        let room = u64::try_from(ANSWER_LEN - self.line.len()).unwrap_or(u64::MAX);
        let mut limited = (&mut self.reader).take(room);
        let read = limited.read_until(b'\n', &mut self.line);
        let read = if self.is_begun {
            read.await
        } else {
            within(ANSWER, read).await
        };
        match read {
            Ok(_) => {}
            Err(error) if is_gone(&error) => return Ok(None),
            Err(source) => {
                return Err(ClientError::Io {
                    path: path(),
                    source,
                });
            }
        }
        if !self.line.ends_with(b"\n") {
            // Cut short: it died while it wrote.
            return match self.line.len() {
                ANSWER_LEN => Err(ClientError::Malformed { path: path() }),
                _ => Ok(None),
            };
        }
        let answer: Answer = serde_json::from_slice(&self.line)
            .map_err(|_| ClientError::Malformed { path: path() })?;
        self.line.clear();
        match answer {
            Answer::Refused { message } => return Err(ClientError::Refused(message.to_string())),
            Answer::Begun { .. } => self.is_begun = true,
            _ => {}
        }
        Ok(Some(answer))
    }
}
