//! The metrics over HTTP, for Prometheus.

use std::io;
use std::sync::{Arc, Weak};

use peerfs_http::{Endpoint, HttpServer, Request, Response, Status};

use super::Control;

/// Scrapes at one time.
const CONNECTIONS: usize = 4;
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Control {
    /// Serves the metrics at `/metrics` until the answer is dropped.
    ///
    /// # Errors
    /// Its threads could not be started.
    pub fn serve_metrics(self: &Arc<Self>, endpoint: Endpoint) -> io::Result<HttpServer> {
        let is_loopback = endpoint.address().ip().is_loopback();
        if !is_loopback {
            tracing::warn!(address = %endpoint.address(), "the metrics can be read by whoever reaches this address");
        }
        // The end of the mount must not wait for clients.
        let control = Arc::downgrade(self);
        endpoint.serve(CONNECTIONS, move |request| answer(&control, request, is_loopback))
    }
}

fn answer(control: &Weak<Control>, request: &Request, is_loopback: bool) -> Response {
    if is_loopback && !request.names_an_address() {
        return Response::failure(Status::Forbidden, "ask by address: pages from elsewhere are not to read this");
    }
    if request.path() != "/metrics" {
        return Response::failure(Status::NotFound, "the metrics are at /metrics");
    }
    match control.upgrade().map(|control| control.metrics_text()) {
        Some(Ok(text)) => Response::ok(CONTENT_TYPE, text),
        Some(Err(error)) => Response::failure(Status::InternalError, &error.to_string()),
        None => Response::failure(Status::Unavailable, "the mount is ending"),
    }
}
