//! Unix sockets: identifying the peer process, connecting to an abstract name, and passing descriptors.

use crate::error::{Error, Result};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The process at the other end of a Unix socket, as the kernel recorded it when the socket connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProcess {
    /// Process id; 0 if the process is outside this process's pid namespace.
    pub pid: i32,
    /// Effective user id of the process.
    pub uid: u32,
}

/// Effective user id of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: the call takes no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Identifies the process at the other end of a connected socket.
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

/// Connects to a Unix socket in the abstract namespace without waiting. Fails with `WouldBlock` while as many connections
/// wait to be accepted as the listening process allows: it may accept some later, or never.
pub fn connect_unix(name: &[u8]) -> io::Result<UnixStream> {
    // SAFETY: zero is a valid sockaddr_un. The name was checked to fit behind the leading NUL. The descriptor gets an
    // owner at once, so every way out closes it.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if name.len() >= address.sun_path.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        for (to, &from) in address.sun_path[1..].iter_mut().zip(name) {
            *to = from as libc::c_char;
        }
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = UnixStream::from_raw_fd(fd);
        let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
        if libc::connect(fd, (&raw const address).cast(), len as libc::socklen_t) != 0 {
            return Err(io::Error::last_os_error());
        }
        socket.set_nonblocking(false)?;
        Ok(socket)
    }
}

/// True if the process is stopped (SIGSTOP) or dead; false also if its state cannot be read.
pub fn is_stopped(pid: i32) -> bool {
    if pid <= 0 {
        return false;
    }
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The process name before the state is in parentheses, and may itself contain parentheses.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('T' | 'Z' | 'X'))
}

const FD_SPACE: usize = 64;

/// Buffer for a control message with one descriptor, aligned for its header.
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
    // SAFETY: as in `send_fd`, the pointers are valid locals. This process owns a descriptor that the kernel reports.
    unsafe {
        let mut vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        // There is room for one descriptor; the kernel closes any others.
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
