//! Metrics and health over plain HTTP, on a listener of their own.
//!
//! `/metrics` is OpenMetrics text, which Prometheus reads. `/healthz` answers 200 while the process works at all:
//! a thread that has died ends the process instead. `/readyz` answers 200 while clients can connect and publishes
//! can be stored, and 503 with a line for each thing that is in the way otherwise.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, warn};

use super::Observer;
use super::fleets::Count;

/// Most connections at once; who comes later waits in the kernel.
const CONNECTIONS: usize = 32;

/// How long a request and its answer may take.
const REQUEST: Duration = Duration::from_secs(10);

/// How long to wait when there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers for ever.
pub(crate) async fn serve(listener: TcpListener, observer: Observer, count: Count) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (observer, count) = (observer.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    if timeout(REQUEST, converse(stream, observer, count))
                        .await
                        .is_err()
                    {
                        debug!("a request for metrics took too long");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection for metrics");
                sleep(PAUSE).await;
            }
        }
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, observer: Observer, count: Count) {
    let service = service_fn(move |request| {
        let response = answer(&request, &observer, &count);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a request for metrics failed");
    }
}

fn answer(
    request: &Request<Incoming>,
    observer: &Observer,
    count: &Count,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned());
        let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    match request.uri().path() {
        "/metrics" => match observer.metrics_text(&count()) {
            Ok(text) => with(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => {
                error!(%error, "cannot write the metrics as text");
                let text = "the metrics cannot be written as text\n".to_owned();
                plain(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        },
        "/healthz" => plain(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => {
            let problems = observer.problems();
            if problems.is_empty() {
                plain(StatusCode::OK, "ok\n".to_owned())
            } else {
                plain(StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
            }
        }
        _ => {
            let text = "/metrics, /healthz and /readyz are here\n".to_owned();
            plain(StatusCode::NOT_FOUND, text)
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    with(status, TEXT, text)
}

fn with(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
