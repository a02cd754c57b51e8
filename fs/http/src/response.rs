//! Answers.

use std::fmt::Write;

/// How a request ended (RFC 9110, 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 400
    BadRequest,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 408
    RequestTimeout,
    /// 431 (RFC 6585, 5)
    HeadTooLarge,
    /// 500
    InternalError,
    /// 503
    Unavailable,
}

impl Status {
    /// Its number.
    pub fn code(self) -> u16 {
        self.line().0
    }

    fn line(self) -> (u16, &'static str) {
        match self {
            Status::Ok => (200, "OK"),
            Status::BadRequest => (400, "Bad Request"),
            Status::Forbidden => (403, "Forbidden"),
            Status::NotFound => (404, "Not Found"),
            Status::MethodNotAllowed => (405, "Method Not Allowed"),
            Status::RequestTimeout => (408, "Request Timeout"),
            Status::HeadTooLarge => (431, "Request Header Fields Too Large"),
            Status::InternalError => (500, "Internal Server Error"),
            Status::Unavailable => (503, "Service Unavailable"),
        }
    }
}

/// An answer. Nobody may keep it or take it for another type than it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    status: Status,
    content_type: &'static str,
    fields: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    /// 200, with this content.
    pub fn ok(content_type: &'static str, body: impl Into<Vec<u8>>) -> Response {
        Response { status: Status::Ok, content_type, fields: Vec::new(), body: body.into() }
    }

    /// Anything but 200, with a line of text that says why.
    pub fn failure(status: Status, why: &str) -> Response {
        let fields = match status {
            Status::MethodNotAllowed => vec![("Allow", "GET".to_owned())],
            _ => Vec::new(),
        };
        Response { status, content_type: "text/plain; charset=utf-8", fields, body: format!("{why}\n").into() }
    }

    /// Adds a header field. Name and value must be such as a header may have.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.fields.push((name, value.into()));
        self
    }

    /// As it is sent.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let (code, reason) = self.status.line();
        let mut head = format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
            self.content_type,
            self.body.len()
        );
        for (name, value) in &self.fields {
            let _infallible = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}
