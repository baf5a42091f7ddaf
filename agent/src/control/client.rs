//! The command line's end of the socket. It blocks: a command has nothing else to do.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

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
    #[error("`{path}` belongs to another user; run this as root, or as the user that the agent runs as")]
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
    #[error("what the hoist-agent at `{path}` says cannot be read: it is of another version, or damaged")]
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
    pub fn ask(&self, ask: Ask) -> Result<Answer, ClientError> {
        self.converse(ask)?.next()?.ok_or_else(|| {
            let path = socket_path(&self.state);
            ClientError::Gone { path }
        })
    }

    /// Asks for something that is answered by several.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn converse(&self, ask: Ask) -> Result<Conversation, ClientError> {
        let path = socket_path(&self.state);
        let mut stream = UnixStream::connect(&path).map_err(|source| match source.kind() {
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
        let failed = |source| ClientError::Io {
            path: path.clone(),
            source,
        };
        stream.set_write_timeout(Some(ANSWER)).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER)).map_err(failed)?;
        match stream.write_all(&line) {
            // It ends: there will be no answer.
            Err(error) if is_gone(&error) => return Err(ClientError::Gone { path }),
            written => written.map_err(failed)?,
        }
        Ok(Conversation {
            path,
            reader: BufReader::new(stream),
            is_begun: false,
        })
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
    is_begun: bool,
}

impl Conversation {
    /// The next answer; none when the agent has ended the connection. Waits for as long as it takes once
    /// something was begun.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal is one as well.
    pub fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        let path = || self.path.clone();
        let mut line = Vec::new();
        let limit = u64::try_from(ANSWER_LEN).unwrap_or(u64::MAX);
        match (&mut self.reader).take(limit).read_until(b'\n', &mut line) {
            Ok(_) => {}
            Err(error) if is_gone(&error) => return Ok(None),
            Err(source) => return Err(ClientError::Io { path: path(), source }),
        }
        if !line.ends_with(b"\n") {
            // Cut short: it died while it wrote.
            return match line.len() {
                ANSWER_LEN => Err(ClientError::Malformed { path: path() }),
                _ => Ok(None),
            };
        }
        let answer: Answer = serde_json::from_slice(&line)
            .map_err(|_| ClientError::Malformed { path: path() })?;
        match answer {
            Answer::Refused { message } => return Err(ClientError::Refused(message.to_string())),
            Answer::Begun { .. } if !self.is_begun => {
                self.is_begun = true;
                let patient = self.reader.get_ref().set_read_timeout(None);
                patient.map_err(|source| ClientError::Io { path: path(), source })?;
            }
            _ => {}
        }
        Ok(Some(answer))
    }
}
