//! Listening sockets, and the addresses by which peers can reach them.

use super::ServerShared;
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::endpoint::{Endpoint, MAX_ENDPOINTS};
use crate::sys::socket::{own_addresses, shutdown};
use crate::transport::net::Stream;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long accepting rests when the system is short of something.
const REST: Duration = Duration::from_millis(100);

/// Are connections to a listening socket encrypted?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Unless they are over loopback.
    #[default]
    Auto,
    Always,
    /// The network is trusted.
    Never,
}

impl Encryption {
    /// Of a connection with this address at the other end.
    fn with(self, peer: IpAddr) -> bool {
        match self {
            Encryption::Auto => !peer.to_canonical().is_loopback(),
            Encryption::Always => true,
            Encryption::Never => false,
        }
    }
}

pub(super) struct Listener {
    socket: OwnedFd,
    thread: JoinHandle<()>,
}

fn failed(what: impl std::fmt::Display, error: &io::Error) -> Error {
    let status = match error.kind() {
        io::ErrorKind::PermissionDenied => Status::Permission,
        io::ErrorKind::InvalidInput | io::ErrorKind::AddrNotAvailable => Status::InvalidArgument,
        _ => Status::Io,
    };
    Error::new(status, format!("cannot listen on {what}: {error}"))
}

impl Listener {
    pub fn unix(shared: &Arc<ServerShared>) -> Result<(Listener, Vec<u8>)> {
        let random: [u8; 16] = crate::sys::random_bytes()?;
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("cleave-{}-{digits}", std::process::id()).into_bytes();
        let bind = || UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name)?);
        let listener = bind().map_err(|e| failed("a Unix socket", &e))?;
        let socket = listener.as_fd().try_clone_to_owned().map_err(|e| failed("a Unix socket", &e))?;
        let accept = move || listener.accept().map(|(socket, _)| (Stream::unix(socket), false));
        Ok((Listener::start(shared, socket, accept)?, name))
    }

    pub fn tcp(shared: &Arc<ServerShared>, address: SocketAddr, encryption: Encryption) -> Result<(Listener, u16)> {
        // The standard library sets SO_REUSEADDR: a process that comes back has its port again at once.
        let listener = TcpListener::bind(address).map_err(|e| failed(address, &e))?;
        let port = listener.local_addr().map_err(|e| failed(address, &e))?.port();
        let socket = listener.as_fd().try_clone_to_owned().map_err(|e| failed(address, &e))?;
        let timeout = shared.timeout;
        let accept = move || {
            let (socket, peer) = listener.accept()?;
            Ok((Stream::tcp(socket, timeout), encryption.with(peer.ip())))
        };
        Ok((Listener::start(shared, socket, accept)?, port))
    }

    fn start(
        shared: &Arc<ServerShared>,
        socket: OwnedFd,
        accept: impl Fn() -> io::Result<(Result<Stream>, bool)> + Send + 'static,
    ) -> Result<Listener> {
        let shared = shared.clone();
        let thread = crate::sys::spawn("cleave-listen", move || {
            while !shared.closed.load(Relaxed) {
                let served = match accept() {
                    Ok((stream, must_encrypt)) => stream.and_then(|stream| shared.serve(stream, must_encrypt)),
                    Err(_) if shared.closed.load(Relaxed) => break,
                    Err(error) => {
                        std::thread::sleep(REST);
                        Err(Error::io("accepting a peer", &error))
                    }
                };
                if let Err(error) = served {
                    crate::log!(Warn, "transport", "a peer was turned away: {error}");
                }
            }
        })?;
        Ok(Listener { socket, thread })
    }

    pub fn close(self) {
        shutdown(self.socket.as_fd());
        let _ = self.thread.join();
    }
}

/// An address to listen on or to tell others: `host:port`, with IPv6 addresses in brackets.
pub(in crate::transport) fn parse(text: &str) -> Result<SocketAddr> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    match found {
        Some(address) => Ok(address),
        None => bail!(InvalidArgument, "{text:?}: expected host:port, as 127.0.0.1:0 or [::]:7000"),
    }
}

/// The endpoints of a listening socket: what the host says, else the address it listens on, else those of all
/// interfaces.
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
        Endpoint::Tcp { address, encrypted: encryption.with(address.ip()) }
    };
    addresses.into_iter().map(endpoint).take(MAX_ENDPOINTS / 2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_listening_socket_tells_of_itself() {
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
        let with = |encryption: Encryption, peer: &str| encryption.with(peer.parse().unwrap());
        assert!(with(Encryption::Auto, "192.0.2.1") && with(Encryption::Always, "127.0.0.1"));
        assert!(!with(Encryption::Auto, "::ffff:127.0.0.1") && !with(Encryption::Never, "192.0.2.1"));
    }
}
