//! One connection: a request, its answer, the end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::request::{self, Request};
use crate::response::{Response, Status};

/// Bytes of a request up to its empty line.
const HEAD_BYTES_MAX: usize = 8192;
/// Bytes that a client sends beyond its request and that are thrown away; more reset the connection.
const REST_BYTES_MAX: usize = 64 << 10;
/// Time that a client has to send its request, all of it.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(5);
/// Time that it has to take the answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Time that it has to hang up.
const REST_TIME: Duration = Duration::from_millis(500);

/// Answers requests.
pub(crate) type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// Serves a connection.
///
/// # Errors
/// The client has gone, or is too slow.
pub(crate) fn serve(stream: &TcpStream, handler: &Handler) -> io::Result<()> {
    let answer = match read_request(stream, Instant::now() + HEAD_TIME)? {
        Ok(request) => answer(&request, handler),
        Err(status) => Response::failure(status, "GET with a Host is all that is served here"),
    };
    send(stream, &answer.to_bytes(), Instant::now() + ANSWER_TIME)?;
    stream.shutdown(Shutdown::Write)?;
    // Closed with bytes unread, a connection is reset, and the client may never see the answer.
    drain(stream, Instant::now() + REST_TIME)
}

fn answer(request: &Request, handler: &Handler) -> Response {
    catch_unwind(AssertUnwindSafe(|| handler(request))).unwrap_or_else(|_| {
        tracing::error!(path = request.path(), "bug: a request of HTTP panicked");
        Response::failure(Status::InternalError, "internal error")
    })
}

fn read_request(mut stream: &TcpStream, deadline: Instant) -> io::Result<Result<Request, Status>> {
    let mut head = vec![0; HEAD_BYTES_MAX];
    let mut filled = 0;
    loop {
        match request::parse(&head[..filled]) {
            Ok(Some(request)) => return Ok(Ok(request)),
            Err(status) => return Ok(Err(status)),
            Ok(None) if filled == head.len() => return Ok(Err(Status::HeadTooLarge)),
            Ok(None) => {}
        }
        let Some(left) = time_left(deadline) else { return Ok(Err(Status::RequestTimeout)) };
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut head[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(mut stream: &TcpStream, bytes: &[u8], deadline: Instant) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        stream.set_write_timeout(Some(time_left(deadline).ok_or(ErrorKind::TimedOut)?))?;
        match stream.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn drain(mut stream: &TcpStream, deadline: Instant) -> io::Result<()> {
    let mut thrown = 0;
    let mut buffer = [0; 4096];
    while thrown < REST_BYTES_MAX {
        let Some(left) = time_left(deadline) else { break };
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => thrown += count,
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// `None` when the time is up; a timeout of zero would mean none.
fn time_left(deadline: Instant) -> Option<Duration> {
    Some(deadline.saturating_duration_since(Instant::now())).filter(|left| *left > Duration::ZERO)
}

/// Time may be left.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
