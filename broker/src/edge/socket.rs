//! Sockets: how the broker listens, and how much a stranger may send.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::guard::Meter;

/// Connections that the kernel holds until they are accepted: a fleet that comes back after a restart.
const BACKLOG: u32 = 4096;

/// A peer that has vanished and asked for no keep-alive is found by TCP: asked after the first time, then this
/// often and this many times, all in all within 4 minutes.
const KEEP_IDLE: Duration = Duration::from_secs(120);
const KEEP_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_COUNT: u32 = 4;

/// Opens the listening socket. Accepted connections inherit its options.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for the old connections' ports.
    socket.set_reuseaddr(true)?;
    socket.set_keepalive(true)?;
    rustix::net::sockopt::set_tcp_keepidle(&socket, KEEP_IDLE)?;
    rustix::net::sockopt::set_tcp_keepintvl(&socket, KEEP_INTERVAL)?;
    rustix::net::sockopt::set_tcp_keepcnt(&socket, KEEP_COUNT)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A connection whose bytes are counted, those of TLS and of WebSockets among them: until its peer is known it may send
/// about so many, since a TLS handshake collects its messages; afterwards they are charged to whom it is.
pub(crate) struct Metered {
    stream: TcpStream,
    counted: Counted,
}

enum Counted {
    /// How many bytes of a stranger are left.
    Left(usize),
    /// Who has sent them.
    Of(Arc<Meter>),
}

impl Metered {
    pub(super) const fn new(stream: TcpStream, limit: usize) -> Self {
        Self {
            stream,
            counted: Counted::Left(limit),
        }
    }

    /// Charges what comes from here on to somebody.
    pub(super) fn charge(&mut self, meter: Arc<Meter>) {
        self.counted = Counted::Of(meter);
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.counted, Counted::Left(0)) {
            return Poll::Ready(Err(io::Error::other(
                "the client sent more than max_handshake_bytes",
            )));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        match &mut self.counted {
            // It may be a read too much, of 4 KiB.
            Counted::Left(left) => *left = left.saturating_sub(read),
            Counted::Of(meter) => meter.received(read, Instant::now()),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
