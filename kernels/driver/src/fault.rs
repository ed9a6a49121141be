//! What went wrong, in words: for cuGetErrorString and the file that SIMULATED_CUDA_LOG names.

use crate::state::State;
use crate::{Error, describe};
use std::ffi::CString;
use std::io::Write;

pub fn log(text: &str) {
    let Some(path) = std::env::var_os("SIMULATED_CUDA_LOG") else { return };
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = writeln!(file, "{}: {text}", std::process::id());
    }
}

impl State {
    /// A context fails, for good. What waits in its streams never runs.
    pub fn fault(&mut self, context: usize, error: Error, text: &str) -> Error {
        log(&format!("error {}: {text}", error.0));
        let words = describe(error.0).map_or("", |(_, words)| words);
        // Whoever was given the text keeps it.
        let text = CString::new(format!("{words}: {text}")).unwrap_or_default();
        self.faults.insert(error.0, text.into_raw() as usize);
        for stream in self.streams.values_mut().filter(|stream| stream.context == context) {
            stream.queue.clear();
        }
        if let Some(context) = self.contexts.get_mut(&context) {
            context.sticky.get_or_insert(error);
        }
        error
    }
}
