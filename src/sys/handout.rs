//! File descriptors that processes of one user on one machine hand out to each other under a name. Every process that
//! holds a descriptor hands it out, so it stays available while any process holds it. Only sockets in the abstract
//! namespace are used: the kernel frees them when a process ends, in whatever way.

use super::socket::{connect_unix, effective_uid, peer_process, receive_fd, send_fd, shutdown};
use crate::error::{Error, Result};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// Largest number of processes that hand out the same descriptor. Any further process holds it without handing it out.
const HOLDERS: usize = 16;
/// Largest length in bytes of the note that accompanies a descriptor.
const MAX_NOTE: usize = 255;
/// Time to wait for another process to answer. A process that takes longer, such as a stopped one, is skipped.
const PATIENCE: Duration = Duration::from_millis(500);

fn bind(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

fn is_own_user(socket: &UnixStream) -> bool {
    peer_process(socket).is_ok_and(|peer| peer.uid == effective_uid())
}

/// The exclusive right to create the descriptor of a name. It ends when this value is dropped or the process ends.
pub struct Making(#[allow(dead_code)] UnixListener);

/// Acquires the right to create the descriptor of `name`. None while another process has it.
pub fn make(name: &str) -> Result<Option<Making>> {
    match bind(&format!("{name}-making")) {
        Ok(listener) => Ok(Some(Making(listener))),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(Error::io("a Unix socket", &error)),
    }
}

/// Hands a descriptor out until it is dropped.
pub struct Handout {
    socket: OwnedFd,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Handout {
    /// Starts to hand out the descriptor with a note. None if enough other processes already do.
    pub fn start(name: &str, fd: OwnedFd, note: &[u8]) -> Result<Option<Handout>> {
        assert!(note.len() <= MAX_NOTE);
        for holder in 0..HOLDERS {
            let listener = match bind(&format!("{name}-{holder}")) {
                Ok(listener) => listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                Err(error) => return Err(Error::io("a Unix socket", &error)),
            };
            let socket = listener.as_fd().try_clone_to_owned().map_err(|e| Error::io("a Unix socket", &e))?;
            let over = Arc::new(AtomicBool::new(false));
            let (note, seen) = (note.to_vec(), over.clone());
            let serve = move || {
                while !seen.load(Relaxed) {
                    match listener.accept() {
                        Ok((socket, _)) if is_own_user(&socket) => _ = give(&socket, &fd, &note),
                        Ok(_) => {}
                        // An error occurs, for example, when the process has no descriptors left.
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            };
            let thread = Some(super::spawn("cleave-handout", serve)?);
            return Ok(Some(Handout { socket, over, thread }));
        }
        Ok(None)
    }
}

impl Drop for Handout {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        shutdown(self.socket.as_fd());
        self.thread.take().map(JoinHandle::join);
    }
}

fn give(mut socket: &UnixStream, fd: &OwnedFd, note: &[u8]) -> io::Result<()> {
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.write_all(&[note.len() as u8])?;
    socket.write_all(note)?;
    send_fd(socket, fd.as_fd())
}

/// Gets the descriptor and the note that another process hands out under `name`. None if no process does.
pub fn take(name: &str) -> Option<(OwnedFd, Vec<u8>)> {
    (0..HOLDERS).find_map(|holder| ask(&format!("{name}-{holder}")).ok())
}

fn ask(name: &str) -> io::Result<(OwnedFd, Vec<u8>)> {
    let mut socket = connect_unix(name.as_bytes())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if !is_own_user(&socket) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut len = [0];
    socket.read_exact(&mut len)?;
    let mut note = vec![0; usize::from(len[0])];
    socket.read_exact(&mut note)?;
    Ok((receive_fd(&socket)?, note))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> String {
        let random: [u8; 8] = crate::sys::random_bytes().unwrap();
        format!("cleave-test-{:x}", u64::from_le_bytes(random))
    }

    #[test]
    fn what_is_handed_out_is_there_as_long_as_anybody_has_it() {
        let name = name();
        assert!(take(&name).is_none());
        let (mut read, write) = io::pipe().unwrap();
        let first = Handout::start(&name, write.into(), b"note").unwrap().unwrap();
        let (fd, note) = take(&name).unwrap();
        assert_eq!(note, b"note");
        let second = Handout::start(&name, fd, &note).unwrap().unwrap();
        drop(first);
        let (fd, note) = take(&name).unwrap();
        assert_eq!(note, b"note");
        io::PipeWriter::from(fd).write_all(b"x").unwrap();
        drop(second);
        assert!(take(&name).is_none());
        let mut text = Vec::new();
        read.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"x");
    }

    #[test]
    fn one_makes_it_at_a_time() {
        let name = name();
        let making = make(&name).unwrap().unwrap();
        assert!(make(&name).unwrap().is_none());
        drop(making);
        assert!(make(&name).unwrap().is_some());
    }

    #[test]
    fn a_holder_that_says_nothing_is_passed_over() {
        let name = name();
        let _silent = bind(&format!("{name}-0")).unwrap();
        let (_read, write) = io::pipe().unwrap();
        let _speaks = Handout::start(&name, write.into(), b"").unwrap().unwrap();
        assert!(take(&name).is_some());
    }

    #[test]
    fn there_are_so_many_holders_at_most() {
        let name = name();
        let (_read, write) = io::pipe().unwrap();
        let write = OwnedFd::from(write);
        let start = || Handout::start(&name, write.try_clone().unwrap(), b"").unwrap();
        let all: Vec<_> = (0..HOLDERS).map(|_| start().unwrap()).collect();
        assert!(start().is_none());
        drop(all);
        assert!(start().is_some());
    }
}
