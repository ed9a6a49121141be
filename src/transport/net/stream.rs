//! A connected Unix or TCP socket whose reads and writes give up when their caller's patience ends.

use crate::bail;
use crate::error::{Error, Result, Status};
use crate::sys::bytes::{ByteSource, ByteTarget, receive, send};
use crate::sys::socket::{
    PeerProcess, effective_uid, is_closed, is_stopped, peer_process, receive_fd, set_keepalive, set_tcp_user_timeout,
};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How often a wait asks for patience: bounds how late a cancellation, a deadline or a stopped peer is noticed.
const LOOK: Duration = Duration::from_millis(50);

/// After this silence the process of a peer on this machine is checked: a stopped one will not answer.
const STOPPED: Duration = Duration::from_millis(300);

/// Whoever waits for a peer, and decides for how long. A closure does if it need not know what arrives.
pub(in crate::transport) trait Waiter {
    /// Called repeatedly while the peer is silent, with the duration of the silence. An error ends the wait.
    fn wait(&self, silent: Duration) -> Result<()>;

    /// Called whenever something arrives.
    fn heard(&self) {}
}

impl<F: Fn(Duration) -> Result<()>> Waiter for F {
    fn wait(&self, silent: Duration) -> Result<()> {
        self(silent)
    }
}

pub(in crate::transport) type Patience<'a> = &'a dyn Waiter;

pub(in crate::transport) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream, PeerProcess),
}

fn lost(error: &io::Error) -> Error {
    Error::new(Status::Peer, format!("the connection to the peer broke: {error}"))
}

impl Stream {
    pub fn tcp(socket: TcpStream, timeout: Duration) -> Result<Stream> {
        let set = || {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(LOOK))?;
            socket.set_write_timeout(Some(LOOK))
        };
        set().map_err(|e| lost(&e))?;
        set_tcp_user_timeout(socket.as_fd(), timeout);
        set_keepalive(socket.as_fd(), 2 * timeout, timeout);
        Ok(Stream::Tcp(socket))
    }

    /// Takes a connected Unix socket. Refuses it unless the process at the other end belongs to this user or to root.
    pub fn unix(socket: UnixStream) -> Result<Stream> {
        let process = peer_process(&socket)?;
        if process.uid != effective_uid() && process.uid != 0 {
            let uid = effective_uid();
            bail!(
                Permission,
                "the peer's process: expected one of user {uid}, found pid {} of user {}",
                process.pid,
                process.uid
            );
        }
        let set = || {
            socket.set_read_timeout(Some(LOOK))?;
            socket.set_write_timeout(Some(LOOK))
        };
        set().map_err(|e| lost(&e))?;
        Ok(Stream::Unix(socket, process))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(socket) => socket.as_fd(),
            Stream::Unix(socket, _) => socket.as_fd(),
        }
    }

    /// Ends the connection for both sides and wakes whoever waits on it.
    pub fn shutdown(&self) {
        let _ = match self {
            Stream::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Stream::Unix(socket, _) => socket.shutdown(Shutdown::Both),
        };
    }

    /// True if the connection cannot be used any more. Call it between messages only.
    pub fn is_closed(&self) -> bool {
        is_closed(self.fd())
    }

    /// The process at the other end, if it is on this machine and can be seen from here.
    pub fn process(&self) -> Option<i32> {
        match self {
            Stream::Unix(_, process) => Some(process.pid),
            Stream::Tcp(_) => None,
        }
    }

    fn wait(&self, since: Instant, patience: Patience<'_>) -> Result<()> {
        let silent = since.elapsed();
        patience.wait(silent)?;
        if silent >= STOPPED && self.process().is_some_and(is_stopped) {
            bail!(Peer, "the peer's process is stopped");
        }
        Ok(())
    }

    /// Waits for at least one byte and receives what has arrived.
    pub fn receive(&self, into: &[ByteTarget<'_>], patience: Patience<'_>) -> Result<usize> {
        let since = Instant::now();
        loop {
            match receive(self.fd(), into) {
                Ok(0) => bail!(Peer, "the peer closed the connection"),
                Ok(n) => {
                    patience.heard();
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(since, patience)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(lost(&e)),
            }
        }
    }

    pub fn receive_exact(&self, out: &mut [u8], patience: Patience<'_>) -> Result<()> {
        let target = ByteTarget::of(out);
        let mut at = 0;
        while at < target.len() {
            at += self.receive(&[target.slice(at, target.len() - at)], patience)?;
        }
        Ok(())
    }

    /// Receives a descriptor and the byte that carries it.
    pub fn receive_fd(&self, patience: Patience<'_>) -> Result<OwnedFd> {
        let Stream::Unix(socket, _) = self else { bail!(Internal, "a descriptor over TCP") };
        let since = Instant::now();
        loop {
            match receive_fd(socket) {
                Ok(fd) => {
                    patience.heard();
                    return Ok(fd);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(since, patience)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(lost(&e)),
            }
        }
    }

    /// Sends all of `pieces`, straight from where they lie.
    pub fn send(&self, pieces: &[ByteSource<'_>], patience: Patience<'_>) -> Result<()> {
        let mut left = pieces.to_vec();
        let mut since = Instant::now();
        let mut first = 0;
        while first < left.len() {
            match send(self.fd(), &left[first..]) {
                Ok(mut n) => {
                    since = Instant::now();
                    while first < left.len() && n >= left[first].len() {
                        n -= left[first].len();
                        first += 1;
                    }
                    if n > 0 {
                        left[first] = left[first].slice(n, left[first].len() - n);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(since, patience)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(lost(&e)),
            }
        }
        Ok(())
    }

    pub fn unix_socket(&self) -> Option<&UnixStream> {
        match self {
            Stream::Unix(socket, _) => Some(socket),
            Stream::Tcp(_) => None,
        }
    }
}
