//! The little HTTP that endpoints of peerfs speak: GET, one request a connection, answers that fit in memory.
//!
//! Whoever connects may be hostile. So everything is bounded: connections served at one time, bytes of a request's head,
//! and the time that a client may take to send it and to take the answer. Nothing is kept from one request to the next.

mod address;
mod connection;
mod request;
mod response;
mod server;
#[cfg(test)]
mod tests;

pub use address::{AddressError, parse_address};
pub use request::Request;
pub use response::{Response, Status};
pub use server::{BindError, Endpoint, HttpServer};
