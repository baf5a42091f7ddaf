//! MQTT over WebSocket, for browsers (MQTT 3.1.1 and 5, section 6): the bytes inside binary messages are what a
//! TCP connection would carry, cut anywhere.
//!
//! It runs inside the same TLS, with the same client certificates. A browser hands a client certificate to every
//! page that asks for the broker's address, so a page has to be on the list of origins; who is no browser sends
//! no origin.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::handshake::server::{
    Callback, ErrorResponse, Request, Response,
};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

/// Longest message, and longest frame of one, in bytes; it is known before any of it is collected. More than the
/// largest packet, since one message may hold several.
const MESSAGE_LEN: usize = 128 * 1024;

/// The buffer that is read into, in bytes.
const READ_LEN: usize = 4096;

/// Most that waits to be written inside a WebSocket, in bytes; the rest waits with the session.
const WRITE_LEN: usize = 256 * 1024;

/// Most frames in a row that bring nothing, such as pings. MQTT has its own.
const EMPTY_FRAMES: usize = 256;

/// The subprotocol's name, MQTT-6.0.0-3.
const SUBPROTOCOL: &str = "mqtt";

/// Why a connection does not become a WebSocket.
#[derive(Debug, thiserror::Error)]
#[error("the WebSocket handshake failed: {0}")]
pub(crate) struct UpgradeError(Box<Error>);

/// The pages that may connect from a browser, such as `https://fleet.example.org`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins(Vec<String>);

impl Origins {
    pub(crate) const fn new(allowed: Vec<String>) -> Self {
        Self(allowed)
    }

    /// Whether a page may connect. The broker has no pages of its own: who names the broker itself as the origin
    /// is a program, and no other page can in a browser that has checked the broker's certificate.
    fn allow(&self, origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
        let origin = origin.as_bytes();
        let listed = self.0.iter().any(|allowed| allowed.as_bytes() == origin);
        let authority = origin.strip_prefix(b"https://");
        listed || (authority.is_some() && authority == host.map(HeaderValue::as_bytes))
    }
}

/// A WebSocket as a stream of bytes.
pub(crate) struct WebSocket<S> {
    stream: WebSocketStream<S>,
    /// What is left of the last message.
    unread: Bytes,
    /// Frames without a byte for us since the last that had some.
    empty: usize,
}

/// Answers the HTTP request that a WebSocket begins with.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    origins: &Origins,
) -> Result<WebSocket<S>, UpgradeError> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_LEN)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_LEN)
        .max_message_size(Some(MESSAGE_LEN))
        .max_frame_size(Some(MESSAGE_LEN));
    let stream = accept_hdr_async_with_config(stream, OriginCheck(origins), Some(config))
        .await
        .map_err(|error| UpgradeError(Box::new(error)))?;
    Ok(WebSocket {
        stream,
        unread: Bytes::new(),
        empty: 0,
    })
}

struct OriginCheck<'a>(&'a Origins);

impl Callback for OriginCheck<'_> {
    fn on_request(
        self,
        request: &Request,
        mut response: Response,
    ) -> Result<Response, ErrorResponse> {
        if !matches!(request.uri().path(), "/" | "/mqtt") {
            return Err(refusal(StatusCode::NOT_FOUND, "MQTT is at / and at /mqtt"));
        }
        let host = request.headers().get(header::HOST);
        for origin in request.headers().get_all(header::ORIGIN) {
            if !self.0.allow(origin, host) {
                return Err(refusal(
                    StatusCode::FORBIDDEN,
                    "this page's origin is not one of the broker's websocket_origins",
                ));
            }
        }
        let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
        let offered = offered.iter().filter_map(|value| value.to_str().ok());
        if !offered
            .flat_map(|value| value.split(','))
            .any(|name| name.trim() == SUBPROTOCOL)
        {
            return Err(refusal(
                StatusCode::BAD_REQUEST,
                "the subprotocol is `mqtt`",
            ));
        }
        let chosen = HeaderValue::from_static(SUBPROTOCOL);
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
        Ok(response)
    }
}

fn refusal(status: StatusCode, why: &str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(format!("{why}\n")));
    *response.status_mut() = status;
    response
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            let message = match ready!(Pin::new(&mut self.stream).poll_next(context)) {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
                None => return Poll::Ready(Ok(())),
            };
            self.empty += 1;
            if self.empty > EMPTY_FRAMES {
                return Poll::Ready(Err(refused("too many WebSocket frames that bring nothing")));
            }
            match message {
                Message::Binary(bytes) => self.unread = bytes,
                Message::Close(_) => return Poll::Ready(Ok(())),
                // MQTT-6.0.0-1
                Message::Text(_) => {
                    return Poll::Ready(Err(refused("a WebSocket message of text")));
                }
                // A ping's answer leaves with the next write or read.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        self.empty = 0;
        let len = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..len]);
        self.unread.advance(len);
        if self.unread.is_empty() {
            // An idle connection keeps no buffer.
            self.unread = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.stream).poll_ready(context)).map_err(into_io)?;
        let len = bytes.len().min(MESSAGE_LEN);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..len]));
        Pin::new(&mut self.stream)
            .start_send(message)
            .map_err(into_io)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream)
            .poll_flush(context)
            .map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream)
            .poll_close(context)
            .map_err(into_io)
    }
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_tungstenite::client_async;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

    use super::*;

    type Client = WebSocketStream<DuplexStream>;

    async fn connect(
        path: &str,
        headers: &[(&str, &str)],
    ) -> (
        Result<Client, Error>,
        Result<WebSocket<DuplexStream>, UpgradeError>,
    ) {
        let (ours, theirs) = duplex(1024);
        let url = format!("ws://localhost{path}");
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let name = header::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let origins = Origins::new(vec!["https://fleet.example.org".to_owned()]);
        let (client, server) = tokio::join!(client_async(request, ours), accept(theirs, &origins));
        (client.map(|(client, _)| client), server)
    }

    const MQTT: (&str, &str) = ("sec-websocket-protocol", "mqtt");

    async fn pair() -> (Client, WebSocket<DuplexStream>) {
        let (client, server) = connect("/mqtt", &[MQTT]).await;
        (client.unwrap(), server.unwrap())
    }

    #[tokio::test]
    async fn a_page_a_path_or_a_subprotocol_that_is_not_ours_is_refused() {
        let ours = ("origin", "https://fleet.example.org");
        let foreign = ("origin", "https://evil.example.org");
        for (path, headers, status) in [
            ("/", &[MQTT][..], None),
            ("/mqtt", &[MQTT, ours], None),
            ("/", &[("sec-websocket-protocol", "mqttv3.1, mqtt")], None),
            ("/", &[MQTT, ("origin", "https://localhost")], None),
            (
                "/",
                &[MQTT, ("origin", "http://localhost")],
                Some(StatusCode::FORBIDDEN),
            ),
            ("/", &[MQTT, foreign], Some(StatusCode::FORBIDDEN)),
            (
                "/",
                &[MQTT, ("origin", "null")],
                Some(StatusCode::FORBIDDEN),
            ),
            ("/status", &[MQTT], Some(StatusCode::NOT_FOUND)),
            ("/", &[], Some(StatusCode::BAD_REQUEST)),
            (
                "/",
                &[("sec-websocket-protocol", "mqttv3.1")],
                Some(StatusCode::BAD_REQUEST),
            ),
        ] {
            let (client, server) = connect(path, headers).await;
            assert_eq!(server.is_err(), status.is_some(), "{path} {headers:?}");
            match (client, status) {
                (Ok(_), None) => {}
                (Err(Error::Http(response)), Some(status)) => {
                    assert_eq!(response.status(), status, "{headers:?}");
                }
                (other, _) => panic!("{path} {headers:?}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn bytes_are_cut_anywhere_and_pings_are_answered_between() {
        let (mut client, mut server) = pair().await;
        let serving = tokio::spawn(async move {
            let mut bytes = [0; 10];
            for byte in &mut bytes {
                // One by one, however they came.
                *byte = server.read_u8().await.unwrap();
            }
            server.write_all(b"first").await.unwrap();
            server.write_all(b"second").await.unwrap();
            server.flush().await.unwrap();
            assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "closed in order");
            bytes
        });
        for part in ["01", "", "2345678"] {
            client
                .send(Message::Binary(Bytes::from(part)))
                .await
                .unwrap();
        }
        client
            .send(Message::Ping(Bytes::from_static(b"?")))
            .await
            .unwrap();
        client
            .send(Message::Binary(Bytes::from("9")))
            .await
            .unwrap();
        let mut answers = Vec::new();
        let mut pongs = 0;
        while answers.len() < 11 {
            match client.next().await.unwrap().unwrap() {
                Message::Binary(bytes) => answers.extend_from_slice(&bytes),
                Message::Pong(_) => pongs += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((&answers[..], pongs), (&b"firstsecond"[..], 1));
        client.close(None).await.unwrap();
        assert_eq!(&serving.await.unwrap(), b"0123456789");
    }

    #[tokio::test]
    async fn text_and_endless_emptiness_are_refused() {
        let (mut client, mut server) = pair().await;
        client.send(Message::text("CONNECT")).await.unwrap();
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);

        let (mut client, mut server) = pair().await;
        let flood =
            tokio::spawn(
                async move { while client.send(Message::Ping(Bytes::new())).await.is_ok() {} },
            );
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(server);
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn a_frame_above_the_limit_is_refused_by_its_head() {
        let (client, mut server) = pair().await;
        let mut raw = client.into_inner();
        // A masked binary frame of 2^32 bytes, of which none follows.
        let head = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
        raw.write_all(&head).await.unwrap();
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
