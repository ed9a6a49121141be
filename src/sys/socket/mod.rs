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
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

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
