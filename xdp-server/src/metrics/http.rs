//! HTTP/1.1 for scrapers: `GET /metrics`, and nothing else.
//!
//! Every answer ends its connection: a scrape comes each few seconds, and an idle connection would take one
//! of the few places.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time;

use super::exposition::{CONTENT_TYPE as EXPOSITION, Source};

/// Connections that are served at once. A host has one or two scrapers; more only bounds what many stalled
/// ones can take: 256 workers' answer is about 1 MB. With fewer, a few stalled ones keep the others waiting.
const CONNECTIONS: usize = 16;

/// How long a connection may take in all, from accepting to the last byte: the usual limit of Prometheus
/// itself (`scrape_timeout`). Longer lets stalled ones keep their place for longer; shorter cuts slow links.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// Bytes of a request's head: hyper's smallest limit, and a scraper's has a few hundred.
const REQUEST_BYTES: usize = 8192;

/// Pause after a connection that could not be accepted, for want of descriptors mostly: as good as none for a
/// scraper, and enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers whoever connects to `listener`. Never returns; dropping it ends all connections' service.
pub async fn serve(listener: TcpListener, source: Source) {
    let source = Arc::new(source);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Who comes when all places are taken waits in the socket's backlog.
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let source = source.clone();
        let answers = service_fn(move |request| {
            let response = answer(&request, &source);
            async { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.keep_alive(false).max_buf_size(REQUEST_BYTES);
            // A scraper that is gone, talks nonsense or takes too long has itself to blame.
            let _ =
                time::timeout(CONNECTION_TIME, http.serve_connection(TokioIo::new(stream), answers)).await;
            drop(place);
        });
    }
}

/// The answer to one request. hyper leaves the body out where HEAD asks for it.
fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    let plain = "text/plain; charset=utf-8";
    let (status, content_type, body) = match request.uri().path() {
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            response.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("a header's value"));
            (StatusCode::METHOD_NOT_ALLOWED, plain, "only GET is answered\n".to_owned())
        }
        "/metrics" => (StatusCode::OK, EXPOSITION, source.text()),
        _ => (StatusCode::NOT_FOUND, plain, "xdp-server's metrics are at /metrics\n".to_owned()),
    };
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type.parse().expect("a header's value"));
    *response.body_mut() = Full::new(body.into());
    response
}
