//! `peerfs serve`: a page for the browser that shows a mount live.
//!
//! It is a process of the calling user and asks the mount as `peerfs info`, `mappings`, `devmem` and `query` do, so it shows
//! that user nothing else. It changes nothing. Other users of the machine can reach the port: the address that is printed
//! carries a token, and without it nothing is answered.

mod access;
mod files;
mod state;

use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use peerfs_http::{Endpoint, Request, Response, Status};

use crate::args::ServeArgs;
use crate::commands::{mount, server_info};
use crate::output;
use access::Token;
use files::Files;

/// Requests at one time.
const CONNECTIONS: usize = 8;
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
/// One answer has it all, so that nothing comes from elsewhere.
const PAGE: &str = include_str!("page/page.html");
/// What stands for the style and the script in the page. The parts of the script are one: each may use the others' functions.
const PARTS: [(&str, &str); 2] = [
    ("{{style}}", include_str!("page/style.css")),
    (
        "{{script}}",
        concat!(
            include_str!("page/base.js"),
            include_str!("page/table.js"),
            include_str!("page/aperture.js"),
            include_str!("page/charts.js"),
            include_str!("page/files.js"),
            include_str!("page/ledger.js"),
            include_str!("page/main.js"),
        ),
    ),
];
/// Stands in the page for what only this answer's style and script know.
const NONCE: &str = "{{nonce}}";

pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let what = || format!("serve {}", args.mountpoint.display());
    let mountpoint = args.mountpoint.canonicalize().with_context(what)?;
    server_info::info(&mountpoint).map_err(anyhow::Error::from).with_context(what)?;
    // Before any thread starts: the signals are for this one, which waits for them.
    let signals = mount::block_end_signals()?;
    let endpoint = Endpoint::bind(args.listen).with_context(what)?;
    let address = endpoint.address();
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "whoever sees the traffic to this address learns the token, and may look on");
    }
    let token = Token::random().context("no token can be made")?;
    let url = format!("http://{}/?token={token}", shown(address));
    let files = Files::new(mountpoint);
    let server = endpoint
        .serve(CONNECTIONS, move |request| answer(request, &token, &files))
        .with_context(|| format!("serve on {address}: threads cannot be started"))?;
    // Dropping it waits for its threads, which a dead mount may keep waiting. The end of the program does not.
    let _server = ManuallyDrop::new(server);
    output::print(&format!("{url}\nCtrl-C ends\n"))?;
    signals.wait().context("signals cannot be waited for")?;
    Ok(ExitCode::SUCCESS)
}

/// An address that a browser of this machine reaches: one that means all of them is no destination.
fn shown(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("localhost:{}", address.port()),
        false => address.to_string(),
    }
}

fn answer(request: &Request, token: &Token, files: &Files) -> Response {
    if !request.names_an_address() {
        return Response::failure(Status::Forbidden, "ask by address: pages from elsewhere are not to read this");
    }
    if !request.parameter("token").is_some_and(|given| token.is(given)) {
        return Response::failure(Status::Forbidden, "use the address that peerfs serve has printed: its token is needed");
    }
    match request.path() {
        "/" => page(),
        "/api/state" => json(state::state(files.mountpoint())),
        "/api/files" => json(files.list()),
        "/api/file" => match request.parameter("inode").and_then(|inode| inode.parse().ok()) {
            Some(inode) => files.segments(inode).map_or_else(|| Response::failure(Status::NotFound, "no such file"), json),
            None => Response::failure(Status::BadRequest, "inode=NUMBER is missing"),
        },
        _ => Response::failure(Status::NotFound, "nothing is here"),
    }
}

/// Only what is in the page itself runs, and it talks to nobody else; no other page may show it inside.
fn page() -> Response {
    let Ok(nonce) = Token::random() else { return Response::failure(Status::InternalError, "no random numbers") };
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let page = PARTS.into_iter().fold(PAGE.replace(NONCE, &nonce.to_string()), |page, (mark, part)| page.replace(mark, part));
    Response::ok(HTML, page).with("Content-Security-Policy", policy).with("Referrer-Policy", "no-referrer")
}

fn json(value: Result<serde_json::Value>) -> Response {
    match value {
        Ok(value) => Response::ok(JSON, value.to_string()),
        Err(error) => Response::failure(Status::Unavailable, &crate::failure::line(&error)),
    }
}
