//! Socket functions that the standard library lacks: passing descriptors, identifying the peer process, timeouts,
//! readiness, and the machine's own addresses.

mod machine;
mod ready;
mod tcp;
mod unix;

pub use machine::{boot_id, own_addresses};
pub use ready::{PeekedBytes, is_closed, peek, shutdown, wait_readable};
pub use tcp::{begin_connect, finish_connect, set_keepalive, set_tcp_user_timeout};
pub use unix::{PeerProcess, connect_unix, effective_uid, is_stopped, peer_process, receive_fd, send_fd};

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::net::IpAddr;
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{UnixListener, UnixStream};

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
    fn connecting_does_not_wait_for_a_process_that_does_not_accept() {
        let name = format!("cleave-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        // SAFETY: the call takes no pointers. It shortens the queue of connections that wait to be accepted.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let mut waiting = Vec::new();
        let error = loop {
            match connect_unix(name.as_bytes()) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error,
            }
            assert!(waiting.len() < 16, "the queue is longer than was asked for");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let _accepted = listener.accept().unwrap();
        connect_unix(name.as_bytes()).unwrap();
    }

    #[test]
    fn this_host_has_a_boot_id_and_a_loopback() {
        assert_ne!(boot_id(), [0; 16]);
        assert!(own_addresses().iter().any(IpAddr::is_loopback));
    }
}
