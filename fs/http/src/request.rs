//! What a client asks for.

use std::net::{IpAddr, SocketAddr};

use crate::response::Status;

/// Header fields at most.
const FIELDS_MAX: usize = 64;

/// A GET request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    path: String,
    query: String,
    host: String,
}

impl Request {
    /// The path of its target, as sent: nothing is decoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The value of a parameter of the query, as sent; the first, if there are several.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == name).map(|pair| pair.1)
    }

    /// The host is an address or `localhost`. Any other name could be one that an attacker has just pointed here, so that
    /// pages from elsewhere may read our answers (DNS rebinding).
    pub fn names_an_address(&self) -> bool {
        let host = self.host.as_str();
        let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(address, _port)| address);
        name == "localhost"
            || host.parse::<SocketAddr>().is_ok()
            || name.parse::<IpAddr>().is_ok()
            || bracketed.is_some_and(|address| address.parse::<IpAddr>().is_ok())
    }
}

/// Makes a request of a head, up to and with its empty line. `None`: it does not end yet.
pub(crate) fn parse(head: &[u8]) -> Result<Option<Request>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Status::HeadTooLarge),
        Err(_) => return Err(Status::BadRequest),
    }
    if parsed.method != Some("GET") {
        return Err(Status::MethodNotAllowed);
    }
    let mut hosts = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let (host, another) = (hosts.next(), hosts.next());
    let host = host.filter(|_| another.is_none()).and_then(|field| std::str::from_utf8(field.value).ok());
    let target = parsed.path.filter(|target| target.starts_with('/'));
    let (Some(host), Some(target)) = (host, target) else { return Err(Status::BadRequest) };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Some(Request { path: path.to_owned(), query: query.to_owned(), host: host.to_ascii_lowercase() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<Request>, Status> {
        parse(text.as_bytes())
    }

    fn from(host: &str) -> Request {
        parsed(&format!("GET /a?b=1&c=&b=2 HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect("good").expect("complete")
    }

    #[test]
    fn target_and_parameters() {
        let request = from("x");
        assert_eq!((request.path(), request.parameter("b"), request.parameter("c")), ("/a", Some("1"), Some("")));
        assert_eq!(request.parameter("d"), None);
    }

    #[test]
    fn what_is_not_served() {
        assert_eq!(parsed("GET / HTTP/1.1\r\nHost: x\r\n"), Ok(None));
        let head = |first: &str, fields: &str| parsed(&format!("{first}\r\n{fields}\r\n"));
        assert_eq!(head("POST / HTTP/1.1", "Host: x\r\n"), Err(Status::MethodNotAllowed));
        assert_eq!(head("GET http://x/ HTTP/1.1", "Host: x\r\n"), Err(Status::BadRequest));
        assert_eq!(head("GET / HTTP/1.1", ""), Err(Status::BadRequest));
        assert_eq!(head("GET / HTTP/1.1", "Host: x\r\nhost: y\r\n"), Err(Status::BadRequest));
        assert_eq!(head("GET / HTTP/1.1", &"A: b\r\n".repeat(FIELDS_MAX + 1)), Err(Status::HeadTooLarge));
        assert_eq!(head("\u{0}", ""), Err(Status::BadRequest));
    }

    #[test]
    fn only_addresses_are_trusted_as_hosts() {
        for good in ["127.0.0.1", "127.0.0.1:9464", "LOCALHOST:80", "localhost", "[::1]", "[::1]:80", "192.0.2.1:1"] {
            assert!(from(good).names_an_address(), "{good}");
        }
        for bad in ["example.com", "localhost.example.com:80", "127.0.0.1.example.com", "127.0.0.1@x", "[x]:80", ":80"] {
            assert!(!from(bad).names_an_address(), "{bad}");
        }
    }
}
