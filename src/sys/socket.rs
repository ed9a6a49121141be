//! Socket functions that the standard library lacks: descriptors in messages, the process at the other end, timeouts,
//! readiness, own addresses.

use crate::error::{Error, Result};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

/// The process at the other end of a Unix socket, as the kernel saw it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProcess {
    /// 0 if it is outside of this process's pid namespace.
    pub pid: i32,
    pub uid: u32,
}

/// This process's effective user.
pub fn effective_uid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

pub fn peer_process(socket: &UnixStream) -> Result<PeerProcess> {
    // SAFETY: zero is a valid ucred, and its size is passed along.
    let (got, found) = unsafe {
        let mut found: libc::ucred = std::mem::zeroed();
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        let out = (&raw mut found).cast();
        (libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, out, &mut len), found)
    };
    if got != 0 {
        return Err(Error::io("SO_PEERCRED", &io::Error::last_os_error()));
    }
    Ok(PeerProcess { pid: found.pid, uid: found.uid })
}

/// Connects to a Unix socket in the abstract namespace. Gives up after `timeout`: a process that does not accept would
/// keep the caller waiting for ever.
pub fn connect_unix(name: &[u8], timeout: std::time::Duration) -> io::Result<UnixStream> {
    // SAFETY: zero is a valid sockaddr_un; the name is checked to fit behind the leading NUL; the descriptor is owned at
    // once, so that it is closed on every way out.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if name.len() >= address.sun_path.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (to, &from) in address.sun_path[1..].iter_mut().zip(name) {
            *to = from as libc::c_char;
        }
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = UnixStream::from_raw_fd(fd);
        socket.set_write_timeout(Some(timeout))?;
        let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
        if libc::connect(fd, (&raw const address).cast(), len as libc::socklen_t) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// Begins to connect to a TCP address. The socket does not block until [`finish_connect`] says that it is connected.
pub fn begin_connect(address: &SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: zero is a valid sockaddr_storage, which is large and aligned enough for both families; the descriptor is
    // owned at once, so that it is closed on every way out.
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

/// Waits for at most `wait` until a socket of [`begin_connect`] is connected. False if it is not yet.
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

/// Ends a socket for both sides and wakes whoever waits on it, also in `accept`.
pub fn shutdown(socket: BorrowedFd<'_>) {
    // SAFETY: no pointers; one that is closed already is an error of no consequence.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// True if the process is stopped (SIGSTOP) or dead; false also if its state cannot be read.
pub fn is_stopped(pid: i32) -> bool {
    if pid <= 0 {
        return false;
    }
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name before the state is in parentheses, and may contain any of them.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('T' | 'Z' | 'X'))
}

const FD_SPACE: usize = 64;

/// Room for a control message with one descriptor, aligned as its header wants.
#[repr(C, align(16))]
struct Control([u8; FD_SPACE]);

/// Sends one byte with a descriptor.
pub fn send_fd(socket: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut control = Control([0; FD_SPACE]);
    let mut byte = 0u8;
    // SAFETY: the headers point at locals that live through the call; CMSG_* stay in `control`, which is large enough.
    let sent = unsafe {
        let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives the byte and the descriptor of [`send_fd`].
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut control = Control([0; FD_SPACE]);
    let mut byte = 0u8;
    // SAFETY: as in `send_fd`; a descriptor that the kernel reports is this process's own from then on.
    unsafe {
        let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        // Room for one: further ones are closed by the kernel.
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
        let got = libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        let header = libc::CMSG_FIRSTHDR(&message);
        if got == 1
            && !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS
            && (*header).cmsg_len as usize == libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize
        {
            return Ok(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()));
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a message without a descriptor"))
}

/// Gives up on a TCP peer that does not acknowledge for this long, also while data is under way.
pub fn set_tcp_user_timeout(socket: BorrowedFd<'_>, timeout: std::time::Duration) {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: the option's value is a u32 that lives through the call. A refusal leaves the system's default.
    unsafe {
        let value = (&raw const ms).cast();
        let len = size_of::<u32>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value, len);
    }
}

/// Lets the kernel find out that a TCP peer vanished without closing: after `idle` without traffic it is asked, and
/// again every `interval`; after three questions without an answer the connection is broken.
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
        // SAFETY: the option's value is an int that lives through the call. A refusal leaves the system's default.
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    }
}

/// Waits until one of the sockets has something to read or is closed, for at most `timeout`; says which.
pub fn wait_readable<'a>(
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
    timeout: std::time::Duration,
) -> io::Result<Vec<bool>> {
    poll(sockets, libc::POLLIN, timeout)
}

fn poll<'a>(
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
    events: libc::c_short,
    timeout: std::time::Duration,
) -> io::Result<Vec<bool>> {
    let polled = |socket: BorrowedFd<'_>| libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let mut polled: Vec<libc::pollfd> = sockets.map(polled).collect();
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer and the length are those of `polled`, whose descriptors are borrowed for the call.
    if unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, ms) } < 0 {
        let error = io::Error::last_os_error();
        // A handler of the host's that ran on this thread is no event.
        return if error.kind() == io::ErrorKind::Interrupted { Ok(vec![false; polled.len()]) } else { Err(error) };
    }
    Ok(polled.iter().map(|polled| polled.revents != 0).collect())
}

/// Result of [`peek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeekedBytes {
    Some,
    NotYet,
    /// The peer closed the connection, or it broke.
    Closed,
}

/// Looks whether bytes have come, and leaves them there; waits for nothing.
pub fn peek(socket: BorrowedFd<'_>) -> PeekedBytes {
    let mut byte = 0u8;
    // SAFETY: one byte to look at, in a local.
    let got = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match got {
        0 => PeekedBytes::Closed,
        n if n > 0 => PeekedBytes::Some,
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => PeekedBytes::NotYet,
        _ => PeekedBytes::Closed,
    }
}

/// True if the peer has closed the connection, the socket has failed, or unexpected bytes have arrived. Reads nothing and
/// does not wait.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    // Bytes that nobody asked for mean that the two sides are out of step: this is as good as closed.
    peek(socket) != PeekedBytes::NotYet
}

/// The addresses of this host's interfaces that are up, loopback last. Link-local ones are left out: they mean nothing
/// without an interface.
pub fn own_addresses() -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the list is the system's, walked to its end and freed once; addresses are read as what their family says.
    unsafe {
        if libc::getifaddrs(&mut list) != 0 {
            return found;
        }
        let mut at = list;
        while let Some(entry) = at.as_ref() {
            at = entry.ifa_next;
            if entry.ifa_addr.is_null() || entry.ifa_flags & libc::IFF_UP as u32 == 0 {
                continue;
            }
            match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    found.push(IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))));
                }
                libc::AF_INET6 => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    let address = Ipv6Addr::from(address.sin6_addr.s6_addr);
                    if !address.is_unicast_link_local() {
                        found.push(IpAddr::V6(address));
                    }
                }
                _ => {}
            }
        }
        libc::freeifaddrs(list);
    }
    found.sort_by_key(|address| (address.is_loopback(), address.is_ipv6()));
    found.dedup();
    found
}

/// Identifier of this machine's current boot, different on every machine and after every boot; zero where it cannot be read.
pub fn boot_id() -> [u8; 16] {
    // Needed for every transfer, and constant while this process lives.
    static BOOT: OnceLock<[u8; 16]> = OnceLock::new();
    *BOOT.get_or_init(read_boot_id)
}

fn read_boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter_map(|b| (b as char).to_digit(16)).map(|d| d as u8).collect();
    let mut id = [0; 16];
    if digits.len() == 32 {
        for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_goes_through_a_socket() {
        let (a, b) = UnixStream::pair().unwrap();
        assert_eq!(peer_process(&a).unwrap(), PeerProcess { pid: std::process::id() as i32, uid: effective_uid() });
        assert!(!is_stopped(std::process::id() as i32) && !is_closed(a.as_fd()));
        let (read, write) = io::pipe().unwrap();
        send_fd(&a, write.as_fd()).unwrap();
        drop(write);
        io::Write::write_all(&mut io::PipeWriter::from(receive_fd(&b).unwrap()), b"x").unwrap();
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::BufReader::new(read), &mut text).unwrap();
        assert_eq!(text, b"x");
        io::Write::write_all(&mut &a, b"y").unwrap();
        assert!(receive_fd(&b).is_err(), "a byte without a descriptor");
        drop(b);
        assert!(is_closed(a.as_fd()));
    }

    #[test]
    fn this_host_has_a_boot_id_and_a_loopback() {
        assert_ne!(boot_id(), [0; 16]);
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
