//! Addresses to listen on, those that peers are told, and whether connections to them are encrypted.

use crate::bail;
use crate::error::Result;
use crate::kv::format::{Endpoint, MAX_ENDPOINTS};
use crate::sys::socket::own_addresses;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

/// Which connections to a listening socket are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// All but those over loopback.
    #[default]
    Auto,
    /// All of them; plain ones are refused.
    Always,
    /// None: the network is trusted.
    Never,
}

impl Encryption {
    /// True if a connection with this address at the other end has to be encrypted.
    pub(super) fn applies_to(self, peer: IpAddr) -> bool {
        match self {
            Encryption::Auto => !peer.to_canonical().is_loopback(),
            Encryption::Always => true,
            Encryption::Never => false,
        }
    }
}

/// Reads an address to listen on or to advertise: `host:port`, with IPv6 addresses in brackets.
pub(in crate::transport) fn parse(text: &str) -> Result<SocketAddr> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    match found {
        Some(address) => Ok(address),
        None => bail!(InvalidArgument, "{text:?}: expected host:port, such as 127.0.0.1:0 or [::]:7000"),
    }
}

/// The endpoints of a listening socket: the address that the host advertises, else the one it listens on, else those of
/// all interfaces.
pub(in crate::transport) fn advertised(
    listening: SocketAddr,
    port: u16,
    advertise: Option<SocketAddr>,
    encryption: Encryption,
) -> Vec<Endpoint> {
    let addresses = match advertise {
        Some(address) => vec![address],
        None if listening.ip().is_unspecified() => {
            let same_family = |ip: &IpAddr| listening.is_ipv6() || ip.is_ipv4();
            own_addresses().into_iter().filter(same_family).map(|ip| SocketAddr::new(ip, port)).collect()
        }
        None => vec![SocketAddr::new(listening.ip(), port)],
    };
    let endpoint = |address: SocketAddr| {
        let address = if address.port() == 0 { SocketAddr::new(address.ip(), port) } else { address };
        Endpoint::Tcp { address, encrypted: encryption.applies_to(address.ip()) }
    };
    addresses.into_iter().map(endpoint).take(MAX_ENDPOINTS / 2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_a_listening_socket() {
        let tcp = |text: &str, encrypted| Endpoint::Tcp { address: text.parse().unwrap(), encrypted };
        let loopback = parse("127.0.0.1:0").unwrap();
        assert_eq!(advertised(loopback, 7, None, Encryption::Auto), [tcp("127.0.0.1:7", false)]);
        assert_eq!(advertised(loopback, 7, None, Encryption::Always), [tcp("127.0.0.1:7", true)]);
        let public = parse("192.0.2.1:0").unwrap();
        assert_eq!(advertised(loopback, 7, Some(public), Encryption::Auto), [tcp("192.0.2.1:7", true)]);
        assert_eq!(advertised(loopback, 7, Some(public), Encryption::Never), [tcp("192.0.2.1:7", false)]);
        let all = advertised(parse("0.0.0.0:0").unwrap(), 7, None, Encryption::Auto);
        assert!(all.contains(&tcp("127.0.0.1:7", false)), "{all:?}");
        assert!(parse("nowhere").is_err());
        let applies = |encryption: Encryption, peer: &str| encryption.applies_to(peer.parse().unwrap());
        assert!(applies(Encryption::Auto, "192.0.2.1") && applies(Encryption::Always, "127.0.0.1"));
        assert!(!applies(Encryption::Auto, "::ffff:127.0.0.1") && !applies(Encryption::Never, "192.0.2.1"));
    }
}
