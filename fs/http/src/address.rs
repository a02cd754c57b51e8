//! Where to listen, as people write it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// It is no address with a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no address to listen on: give ADDRESS:PORT, for example 127.0.0.1:9464, or a port alone, for this machine only"
)]
pub struct AddressError(String);

/// Parses `PORT` (of the loopback), `ADDRESS:PORT` or `localhost:PORT`. Names are not looked up: what they mean could be
/// more than was meant. Port 0 lets the kernel choose.
///
/// # Errors
/// [`AddressError`] for anything else.
pub fn parse_address(text: &str) -> Result<SocketAddr, AddressError> {
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = match is_number {
        true => port.parse().ok().map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        false => text.parse().ok(),
    };
    parsed.ok_or_else(|| AddressError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_the_default_and_others_are_written_out() {
        let shown = |text| parse_address(text).map(|address| address.to_string());
        assert_eq!(shown("9464").as_deref(), Ok("127.0.0.1:9464"));
        assert_eq!(shown("localhost:0").as_deref(), Ok("127.0.0.1:0"));
        assert_eq!(shown("0.0.0.0:80").as_deref(), Ok("0.0.0.0:80"));
        assert_eq!(shown("[::1]:80").as_deref(), Ok("[::1]:80"));
        for bad in ["", "65536", "-1", "127.0.0.1", ":80", "example.com:80", "localhost:", "localhost", "::1:x"] {
            assert_eq!(parse_address(bad), Err(AddressError(bad.into())));
        }
    }
}
