//! TCP sockets: connecting without blocking, and detecting that a peer is gone.

use super::ready::poll;
use std::io;
use std::mem::size_of;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};

/// Starts to connect to a TCP address. The socket stays non-blocking until [`finish_connect`] reports that it is
/// connected.
pub fn begin_connect(address: &SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: zero is a valid sockaddr_storage, which is large and aligned enough for both families. The descriptor
    // gets an owner at once, so every way out closes it.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = TcpStream::from_raw_fd(fd);
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        let len = match address {
            SocketAddr::V4(address) => {
                let to = &mut *(&raw mut storage).cast::<libc::sockaddr_in>();
                to.sin_family = family as libc::sa_family_t;
                to.sin_port = address.port().to_be();
                to.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                let to = &mut *(&raw mut storage).cast::<libc::sockaddr_in6>();
                to.sin6_family = family as libc::sa_family_t;
                to.sin6_port = address.port().to_be();
                to.sin6_flowinfo = address.flowinfo();
                to.sin6_addr.s6_addr = address.ip().octets();
                to.sin6_scope_id = address.scope_id();
                size_of::<libc::sockaddr_in6>()
            }
        };
        if libc::connect(fd, (&raw const storage).cast(), len as libc::socklen_t) != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(error);
            }
        }
        Ok(socket)
    }
}

/// Waits for at most `wait` until a socket from [`begin_connect`] is connected. False if it is not connected yet.
pub fn finish_connect(socket: &TcpStream, wait: std::time::Duration) -> io::Result<bool> {
    if !poll([socket.as_fd()].into_iter(), libc::POLLOUT, wait)?[0] {
        return Ok(false);
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)?;
    Ok(true)
}

/// Drops the connection to a TCP peer that does not acknowledge data for this long.
pub fn set_tcp_user_timeout(socket: BorrowedFd<'_>, timeout: std::time::Duration) {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: the option's value is a u32 that lives through the call. If the call fails, the system's default stays.
    unsafe {
        let value = (&raw const ms).cast();
        let len = size_of::<u32>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value, len);
    }
}

/// Makes the kernel detect a TCP peer that vanished without closing. After `idle` without traffic it sends a probe,
/// then another every `interval`. After three probes without an answer, the connection is broken.
pub fn set_keepalive(socket: BorrowedFd<'_>, idle: std::time::Duration, interval: std::time::Duration) {
    let seconds = |time: std::time::Duration| time.as_secs().clamp(1, 3600) as libc::c_int;
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(idle)),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(interval)),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
    ];
    for (level, name, value) in options {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option's value is an int that lives through the call. If the call fails, the system's default
        // stays.
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    }
}
