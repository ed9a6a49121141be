//! Listening sockets. One thread for each accepts connections and keeps those that have said nothing yet; a connection
//! gets a thread of its own when its peer's greeting is there to be read.

use super::addresses::Encryption;
use super::gate::{HANDSHAKE, Handshakes, Limits, Origin, Unproven};
use super::serve::serve;
use super::shared::ServerShared;
use crate::error::{Error, Result, Status};
use crate::sys::socket::{PeekedBytes, peek, shutdown, wait_readable};
use crate::transport::net::Stream;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long accepting rests when the system is short of something.
const REST: Duration = Duration::from_millis(100);
/// How often connections that say nothing are checked for being overdue.
const LOOK: Duration = Duration::from_millis(250);
/// Connections that are accepted before those that wait are looked at again.
const AT_ONCE: usize = 8;

/// A listening socket and its thread.
pub(super) struct Listener {
    socket: OwnedFd,
    thread: JoinHandle<()>,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener, Encryption),
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
        let bind = || {
            let listener = UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name)?)?;
            listener.set_nonblocking(true)?;
            Ok((listener.as_fd().try_clone_to_owned()?, listener))
        };
        let (socket, listener) = bind().map_err(|e| failed("a Unix socket", &e))?;
        Ok((Listener::start(shared, socket, Socket::Unix(listener))?, name))
    }

    pub fn tcp(shared: &Arc<ServerShared>, address: SocketAddr, encryption: Encryption) -> Result<(Listener, u16)> {
        let bind = || {
            // The standard library sets SO_REUSEADDR: a process that comes back has its port again at once.
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok((listener.as_fd().try_clone_to_owned()?, listener.local_addr()?.port(), listener))
        };
        let (socket, port, listener) = bind().map_err(|e| failed(address, &e))?;
        Ok((Listener::start(shared, socket, Socket::Tcp(listener, encryption))?, port))
    }

    fn start(shared: &Arc<ServerShared>, socket: OwnedFd, listening: Socket) -> Result<Listener> {
        let shared = shared.clone();
        let thread = crate::sys::spawn("cleave-listen", move || Listening::new(shared, listening).run())?;
        Ok(Listener { socket, thread })
    }

    pub fn close(self) {
        shutdown(self.socket.as_fd());
        let _ = self.thread.join();
    }
}

impl Socket {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(listener) => listener.as_fd(),
            Socket::Tcp(listener, _) => listener.as_fd(),
        }
    }

    /// Accepts a connection. The inner result is an error for one that is refused at once.
    fn accept(&self, timeout: Duration) -> io::Result<Result<Unproven>> {
        let since = Instant::now();
        match self {
            Socket::Unix(listener) => {
                let (socket, _) = listener.accept()?;
                Ok(Stream::unix(socket).map(|stream| {
                    let origin = Origin::Process(stream.process().unwrap_or(0));
                    Unproven { stream, origin, must_encrypt: false, since }
                }))
            }
            Socket::Tcp(listener, encryption) => {
                let (socket, peer) = listener.accept()?;
                let (origin, must_encrypt) = (Origin::of(peer.ip()), encryption.applies_to(peer.ip()));
                Ok(Stream::tcp(socket, timeout).map(|stream| Unproven { stream, origin, must_encrypt, since }))
            }
        }
    }
}

/// State of the thread of a listening socket.
struct Listening {
    shared: Arc<ServerShared>,
    socket: Socket,
    limits: Limits,
    handshakes: Arc<Handshakes>,
    /// Connections that have said nothing yet, oldest first.
    silent: Vec<Unproven>,
    /// A failure to accept was logged, and nothing was accepted since.
    failing: bool,
}

impl Listening {
    fn new(shared: Arc<ServerShared>, socket: Socket) -> Listening {
        let limits = Limits::of(shared.files);
        Listening { shared, socket, limits, handshakes: Handshakes::new(limits), silent: Vec::new(), failing: false }
    }

    fn run(mut self) {
        while !self.shared.closed.load(Relaxed) {
            let sockets = std::iter::once(self.socket.fd()).chain(self.silent.iter().map(|one| one.stream.fd()));
            let readable = wait_readable(sockets, LOOK);
            if self.shared.closed.load(Relaxed) {
                return;
            }
            match readable {
                Ok(readable) => {
                    self.greet(&readable[1..]);
                    if readable[0] {
                        self.accept();
                    }
                }
                Err(_) => std::thread::sleep(REST),
            }
        }
    }

    /// Begins the handshakes of peers that have said something; drops those that are gone or overdue.
    fn greet(&mut self, readable: &[bool]) {
        let mut readable = readable.iter();
        let mut speaking = Vec::new();
        let silent = std::mem::take(&mut self.silent);
        for one in silent {
            if !readable.next().is_some_and(|readable| *readable) {
                if one.since.elapsed() < HANDSHAKE {
                    self.silent.push(one);
                }
                continue;
            }
            match peek(one.stream.fd()) {
                PeekedBytes::Some => speaking.push(one),
                PeekedBytes::NotYet => self.silent.push(one),
                PeekedBytes::Closed => {}
            }
        }
        for one in speaking {
            if let Err(error) = serve(&self.shared, one, &self.handshakes) {
                crate::log!(Debug, "transport", "a peer was turned away: {error}");
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..AT_ONCE {
            match self.socket.accept(self.shared.timeout) {
                Ok(accepted) => {
                    self.failing = false;
                    match accepted {
                        Ok(one) => self.keep(one),
                        Err(error) => crate::log!(Debug, "transport", "a peer was turned away: {error}"),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Closed by its peer while it waited to be accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) && !self.shared.closed.load(Relaxed) {
                        crate::log!(Warn, "transport", "cannot accept connections of peers: {error}");
                    }
                    std::thread::sleep(REST);
                    return;
                }
            }
        }
    }

    fn keep(&mut self, new: Unproven) {
        let origins: Vec<Origin> = self.silent.iter().map(|one| one.origin).collect();
        if let Some(victim) = self.limits.victim(&origins, new.origin) {
            // One that has spoken by now is not turned away for its silence.
            let one = self.silent.remove(victim);
            if matches!(peek(one.stream.fd()), PeekedBytes::Some) {
                let _ = serve(&self.shared, one, &self.handshakes);
            }
        }
        self.silent.push(new);
    }
}
