//! Clients that behave and clients that do not, on a real socket.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::connection::HEAD_TIME;
use crate::{Endpoint, HttpServer, Response};

const CONNECTIONS: usize = 2;

fn server() -> HttpServer {
    let endpoint = Endpoint::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
    endpoint
        .serve(CONNECTIONS, |request| match request.path() {
            "/panic" => panic!("as a test wants"),
            "/large" => Response::ok("text/plain", vec![b'x'; 64 << 20]),
            path => Response::ok("text/plain", path),
        })
        .expect("threads")
}

fn connect(server: &HttpServer) -> TcpStream {
    let stream = TcpStream::connect(server.address()).expect("it listens");
    stream.set_read_timeout(Some(HEAD_TIME * 4)).expect("a timeout");
    stream
}

fn ask(server: &HttpServer, request: &[u8]) -> String {
    let mut stream = connect(server);
    stream.write_all(request).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn get(server: &HttpServer, path: &str) -> String {
    ask(server, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
}

#[test]
fn a_request_is_answered_and_the_connection_closed() {
    let answer = get(&server(), "/some/path?x=1");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/some/path"), "{answer}");
    for field in ["Content-Length: 10", "Connection: close", "Cache-Control: no-store", "X-Content-Type-Options: nosniff"] {
        assert!(answer.contains(field), "{answer}");
    }
}

#[test]
fn other_requests_are_refused_and_serving_goes_on() {
    let server = server();
    let answers = [
        (&b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"[..], "405"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00", "400"),
        (&[b'A'; 9000], "431"),
        (b"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n", "500"),
    ];
    for (request, status) in answers {
        let answer = ask(&server, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
    let long = [b"GET / HTTP/1.1\r\nHost: x\r\nA: ".as_slice(), &vec![b'a'; 9000]].concat();
    assert!(ask(&server, &long).starts_with("HTTP/1.1 431 "));
    for _ in 0..CONNECTIONS {
        assert!(get(&server, "/").starts_with("HTTP/1.1 200 "));
    }
}

/// As many as are served at one time say nothing, or take no answer; the next one is served when their time is up.
#[test]
fn clients_that_stall_keep_nobody_out_for_long() {
    let server = server();
    let silent = connect(&server);
    let mut deaf = connect(&server);
    deaf.write_all(b"GET /lar").expect("sent");
    let start = Instant::now();
    assert!(get(&server, "/").starts_with("HTTP/1.1 200 "));
    assert!(start.elapsed() < HEAD_TIME * 3, "{:?}", start.elapsed());
    drop((silent, deaf));
}

#[test]
fn it_ends_at_once_while_clients_stall() {
    let server = server();
    let mut deaf = connect(&server);
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    let mut byte = [0];
    deaf.read_exact(&mut byte).expect("the answer has begun");
    let silent = connect(&server);
    let start = Instant::now();
    let address = server.address();
    drop(server);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    drop((deaf, silent));
}

#[test]
fn a_taken_port_is_told() {
    let server = server();
    let error = Endpoint::bind(server.address()).expect_err("taken").to_string();
    assert!(error.contains(&server.address().to_string()) && error.contains("another port"), "{error}");
}
