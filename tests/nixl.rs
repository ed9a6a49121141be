//! NIXL between two processes. Each process is this test binary, run again as `a_child`. Changes that NIXL makes to a
//! process thus end with it, and the test can check its exit code and output.
//!
//! The wheel is expected in CLEAVE_NIXL_DIR, or else in target/nixl, where tools/nixl.sh puts it.

mod nixl_roles;

use nixl_roles::{BLOCK, BLOCKS, wait_for};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Limit for every step; anything slower has hung.
const LONG: Duration = Duration::from_secs(90);

/// Entry point of the child processes. Does nothing in an ordinary run.
#[test]
fn a_child() {
    if let Some(role) = std::env::var_os("CLEAVE_NIXL_TEST_ROLE") {
        nixl_roles::play(role.to_str().unwrap());
        // Exits as a host does: the destructors of all libraries run, and the test harness prints nothing more.
        std::process::exit(0);
    }
}

fn wheel() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nixl");
    let dir = std::env::var_os("CLEAVE_NIXL_DIR").map(PathBuf::from).or_else(|| built.is_dir().then_some(built));
    if dir.is_none() {
        // Writes to stderr directly, because the harness captures the output of passing tests.
        let _ = writeln!(std::io::stderr(), "skipped: run tools/nixl.sh");
    }
    dir
}

struct Role {
    name: &'static str,
    process: Child,
    dir: PathBuf,
}

fn command(dir: &Path, name: &str) -> Command {
    let log = |stream: &str| std::fs::File::create(dir.join(format!("{name}.{stream}"))).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["a_child", "--exact", "--nocapture"]);
    command.env("CLEAVE_NIXL_TEST_ROLE", name).env("CLEAVE_NIXL_TEST_DIR", dir);
    // The environment of the test run may contain these.
    for name in ["CLEAVE_NIXL_LIBRARY", "NIXL_LOG_LEVEL", "UCX_LOG_LEVEL", "UCX_TLS", "UCX_MODULES", "RUST_BACKTRACE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(log("out")).stderr(log("err"));
    command
}

fn start(dir: &Path, name: &'static str, wheel: &Path, env: &[(&str, &str)]) -> Role {
    let mut command = command(dir, name);
    let process = command.env("CLEAVE_NIXL_DIR", wheel).envs(env.iter().copied()).spawn().unwrap();
    Role { name, process, dir: dir.to_path_buf() }
}

impl Role {
    fn output(&self) -> String {
        let read = |stream| std::fs::read_to_string(self.dir.join(format!("{}.{stream}", self.name))).unwrap();
        format!("{}{}", read("out").trim(), read("err").trim())
    }

    /// Waits for a successful exit. NIXL and UCX must not have printed anything.
    fn end(mut self) {
        drop(self.process.stdin.take());
        let until = Instant::now() + LONG;
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "{} hangs; it printed: {}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{} ended with {status}; it printed: {}", self.name, self.output());
        assert_eq!(self.output(), "running 1 test", "{} printed", self.name);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: signals our own child, which has not been waited for.
        assert_eq!(unsafe { libc::kill(self.process.id() as i32, signal) }, 0);
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Transports that UCX may use: all; shared memory (with TCP for connection setup, since shared memory alone makes no
/// backend); TCP.
const CHOICES: [&[(&str, &str)]; 3] = [&[], &[("UCX_TLS", "shm,tcp,self")], &[("UCX_TLS", "tcp,self")]];

#[test]
fn what_one_process_registers_another_reads() {
    let Some(wheel) = wheel() else { return };
    for env in CHOICES {
        let dir = tempfile::tempdir().unwrap();
        let exporter = start(dir.path(), "exporter", &wheel, env);
        start(dir.path(), "importer", &wheel, env).end();
        exporter.end();
    }
}

#[test]
fn a_peer_that_dies_is_an_error_and_no_hang() {
    let Some(wheel) = wheel() else { return };
    for env in CHOICES {
        let dir = tempfile::tempdir().unwrap();
        let mut exporter = start(dir.path(), "exporter", &wheel, env);
        let importer = start(dir.path(), "survivor", &wheel, env);
        wait_for(&dir.path().join("reading"));
        exporter.process.kill().unwrap();
        exporter.process.wait().unwrap();
        importer.end();
    }
}

/// A stopped process does not answer, but its connection stays up. Only dropping the agent ends such a read.
#[test]
fn a_peer_that_hangs_is_left_by_dropping_the_agent() {
    let Some(wheel) = wheel() else { return };
    let env = [("UCX_TLS", "tcp,self")];
    let dir = tempfile::tempdir().unwrap();
    let exporter = start(dir.path(), "exporter", &wheel, &env);
    let importer = start(dir.path(), "leaver", &wheel, &env);
    wait_for(&dir.path().join("reading"));
    exporter.signal(libc::SIGSTOP);
    std::fs::write(dir.path().join("stopped"), "").unwrap();
    importer.end();
    exporter.signal(libc::SIGCONT);
    exporter.end();
}

#[test]
fn misuse_is_refused_and_named() {
    let Some(wheel) = wheel() else { return };
    let dir = tempfile::tempdir().unwrap();
    let exporter = start(dir.path(), "exporter", &wheel, &[]);
    start(dir.path(), "misuser", &wheel, &[]).end();
    exporter.end();
}

/// A host that exits without dropping its agents, and the properties of an agent's threads.
#[test]
fn an_agent_left_to_the_end_of_the_process_does_no_harm() {
    let Some(wheel) = wheel() else { return };
    let dir = tempfile::tempdir().unwrap();
    start(dir.path(), "forgetter", &wheel, &[]).end();
}

/// The host can forbid UCX to patch libc.
#[test]
fn ucx_works_without_patching_the_process() {
    let Some(wheel) = wheel() else { return };
    let dir = tempfile::tempdir().unwrap();
    let env = [("UCX_MEM_MMAP_HOOK_MODE", "none")];
    let exporter = start(dir.path(), "exporter", &wheel, &env);
    start(dir.path(), "unpatched", &wheel, &env).end();
    exporter.end();
}

#[test]
fn without_the_library_everything_is_unsupported() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(dir.path(), "without");
    command.env_remove("CLEAVE_NIXL_DIR");
    Role { name: "without", process: command.spawn().unwrap(), dir: dir.path().to_path_buf() }.end();
}

/// Measures the upper bound of this backend: `cargo test --release --test nixl -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn bandwidth() {
    let Some(wheel) = wheel() else { return };
    for (what, tls) in [("default", None), ("shared memory", Some("shm,tcp,self")), ("TCP", Some("tcp,self"))] {
        let env: Vec<_> = tls.map(|tls| ("UCX_TLS", tls)).into_iter().collect();
        let dir = tempfile::tempdir().unwrap();
        let exporter = start(dir.path(), "exporter", &wheel, &env);
        start(dir.path(), "measurer", &wheel, &env).end();
        exporter.end();
        let result = std::fs::read_to_string(dir.path().join("measured")).unwrap();
        println!("NIXL {what}, {BLOCKS} pieces of {} KiB: {result}", BLOCK >> 10);
    }
}
