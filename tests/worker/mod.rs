//! A second process for tests. The test binary runs itself again as a worker that executes commands line by line, so
//! that a test can kill, stop and restart it. A test file that uses this needs the test `worker_process`.
#![allow(dead_code)]

#[path = "../cuda/device.rs"]
mod device;
mod serve;

pub use serve::serve_if_told;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub const SECRET: [u8; 32] = [0x5e; 32];
const MARK: &str = "@worker ";

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// Environment that tells a worker where NIXL is. Returns None and prints a line on stderr if NIXL is not installed.
pub fn nixl_env() -> Option<Vec<(String, String)>> {
    let built = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nixl");
    let dir = std::env::var_os("CLEAVE_NIXL_DIR").map(Into::into).or_else(|| built.is_dir().then_some(built));
    let Some(dir) = dir else {
        // Writes to stderr directly, because the harness captures the output of passing tests.
        let _ = writeln!(std::io::stderr(), "skipped: run tools/nixl.sh");
        return None;
    };
    Some(vec![("CLEAVE_NIXL_DIR".into(), dir.to_str().unwrap().into())])
}

pub struct Worker {
    pub child: Child,
    /// TCP port on which the worker listens, if it does.
    pub port: u16,
    stdin: ChildStdin,
    lines: Receiver<Value>,
}

impl Worker {
    /// Starts a process and creates a cache in it; see `serve` for the fields of `config`. `before` is a command line
    /// that starts the worker, such as `ip netns exec name`.
    pub fn start_under(before: &[&str], config: Value) -> Worker {
        Self::spawn(before, &[], config)
    }

    fn spawn(before: &[&str], env: &[(String, String)], config: Value) -> Worker {
        let own = std::env::current_exe().unwrap();
        let mut command = match before {
            [] => Command::new(&own),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(&own);
                command
            }
        };
        command.args(["--exact", "worker_process", "--nocapture", "--test-threads=1"]).env("CLEAVE_WORKER", "1");
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the worker starts");
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(at) = line.find(MARK) {
                    let value = serde_json::from_str(&line[at + MARK.len()..]).unwrap();
                    if send.send(value).is_err() {
                        return;
                    }
                }
            }
        });
        let stdin = child.stdin.take().unwrap();
        let mut worker = Worker { child, port: 0, stdin, lines };
        let created = worker.ask(json!({"do": "create", "config": config}));
        worker.port = created["port"].as_u64().unwrap_or(0) as u16;
        worker
    }

    pub fn start(config: Value) -> Worker {
        Self::start_under(&[], config)
    }

    /// Starts a worker with these environment variables.
    pub fn start_with(env: &[(String, String)], config: Value) -> Worker {
        Self::spawn(&[], env, config)
    }

    pub fn tell(&mut self, command: Value) {
        // A delay makes workers look fast to the test: by then they have done everything that needs no further command.
        if let Some(lag) = std::env::var("CLEAVE_TEST_LAG_MS").ok().and_then(|ms| ms.parse().ok()) {
            std::thread::sleep(Duration::from_millis(lag));
        }
        let _ = writeln!(self.stdin, "{command}");
        let _ = self.stdin.flush();
    }

    /// Returns the next answer, or None if it does not arrive in time.
    pub fn answer(&mut self, within: Duration) -> Option<Value> {
        self.lines.recv_timeout(within).ok()
    }

    /// Sends a command and waits for its answer. Fails the test if the answer is an error.
    #[track_caller]
    pub fn ask(&mut self, command: Value) -> Value {
        let answer = self.try_ask(command.clone());
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer
    }

    #[track_caller]
    pub fn try_ask(&mut self, command: Value) -> Value {
        self.tell(command.clone());
        self.answer(Duration::from_secs(180)).unwrap_or_else(|| panic!("no answer to {command}"))
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: signals our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Kills the process with SIGKILL and waits for it.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.child.wait();
    }

    /// Waits until the process is dead or stopped by a signal.
    #[track_caller]
    pub fn until_gone(&mut self) {
        let begun = Instant::now();
        let stat = format!("/proc/{}/stat", self.child.id());
        while self.child.try_wait().unwrap().is_none() {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T")) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the worker is neither dead nor stopped");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Arms a failpoint in the process. The action is "hold", "kill", "stop", "panic", or a pause in milliseconds.
    pub fn arm(&mut self, name: &str, nth: u64, action: &str) {
        self.ask(json!({"do": "arm", "name": name, "nth": nth, "action": action}));
    }

    /// Waits until a thread is held at a failpoint that was armed with "hold".
    #[track_caller]
    pub fn reached(&mut self, name: &str) {
        self.ask(json!({"do": "reached", "name": name, "threads": 1}));
    }

    /// Releases the threads that are held at a failpoint.
    pub fn let_go(&mut self, name: &str) {
        self.ask(json!({"do": "let_go", "name": name}));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal(libc::SIGCONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
