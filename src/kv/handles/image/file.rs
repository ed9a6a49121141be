//! Images in files, so that a sequence survives the process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::import::ImageImport;
use crate::bail;
use crate::error::{Error, Result};
use crate::kv::format::{ENVELOPE, Envelope};
use crate::kv::handles::shared::CacheShared;
use crate::kv::pool::BlockTable;
use crate::sequence::Snapshot;
use crate::sync::Arc;
use crate::sys::random_bytes;

const NOT_A_FILE: &str = "KV image: expected a regular file";

/// A temporary file, removed when dropped unless it was renamed to its final name.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes to `path` what `write` gives to the sink that it gets.
pub(super) fn save(
    path: &Path,
    write: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<io::Result<()>>,
) -> Result<()> {
    let shown = path.display();
    let Some(name) = path.file_name() else {
        bail!(InvalidArgument, "{shown}: expected the path of a file");
    };
    // Renaming over a device or a FIFO would take it away from whoever uses it.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        bail!(InvalidArgument, "{shown}: {NOT_A_FILE}");
    }
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{:016x}.tmp", u64::from_le_bytes(random_bytes()?)));
    let mut temporary = Temporary(None);
    let hidden = directory.join(hidden);
    let io = |error: &io::Error| Error::io(shown.to_string(), error);
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hidden);
    let mut file = open.map_err(|e| io(&e))?;
    temporary.0 = Some(hidden.clone());
    write(&mut |bytes| file.write_all(bytes))?.map_err(|e| io(&e))?;
    file.sync_all().map_err(|e| io(&e))?;
    fs::rename(&hidden, path).map_err(|e| io(&e))?;
    temporary.0 = None;
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| io(&e))
}

/// Opens the file for reading, and returns its length too.
pub(super) fn open(path: &Path) -> Result<(impl Read, u64)> {
    // A FIFO without a writer would hold up a plain open for ever, and a socket cannot be opened at all.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => bail!(InvalidArgument, "{NOT_A_FILE}"),
        opened => opened.map_err(|error| Error::io("KV image", &error))?,
    };
    let metadata = file.metadata().map_err(|error| Error::io("KV image", &error))?;
    if !metadata.is_file() {
        bail!(InvalidArgument, "{NOT_A_FILE}");
    }
    Ok((BufReader::with_capacity(1 << 16, file), metadata.len()))
}

/// Imports the image in `file`, which had `len` bytes when it was opened.
pub(super) fn read(shared: &Arc<CacheShared>, mut file: impl Read, len: u64) -> Result<(Snapshot, BlockTable)> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => crate::error!(Corrupt, "KV image: the file became shorter"),
        _ => Error::io("KV image", &error),
    };
    // Grows with what is really there, whatever the lengths in it say.
    let mut head = Vec::new();
    file.by_ref().take(ENVELOPE as u64).read_to_end(&mut head).map_err(io)?;
    let envelope = Envelope::peek(&head)?;
    envelope.check_len(len)?;
    file.by_ref().take((envelope.head_len - ENVELOPE) as u64).read_to_end(&mut head).map_err(io)?;
    if head.len() < envelope.head_len {
        return Err(io(io::ErrorKind::UnexpectedEof.into()));
    }
    let mut import = ImageImport::begin(shared, &envelope, &head)?;
    let mut record = Vec::new();
    while import.missing() > 0 {
        record.resize(import.record_len(), 0);
        file.read_exact(&mut record).map_err(io)?;
        import.record(&record)?;
    }
    import.finish()
}
