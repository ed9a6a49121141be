//! Files mapped read-only into memory: checkpoint shards, used in place.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A whole regular file, mapped read-only. Pages are shared with every other process that maps it and are
/// read from disk as they are touched.
///
/// **Truncation by others.** The length is that of the file as it was mapped. A process that later truncates
/// the file in place makes reads of the lost pages raise SIGBUS: no library without a signal handler can turn
/// that into an error. Replace checkpoints by renaming a new file over the old one (as `cp` to a temporary
/// name plus `mv`, and every download tool, does); the mapping then keeps the old contents alive.
pub struct Mapping {
    map: memmap2::Mmap,
    identity: FileIdentity,
}

/// Which file it was, and in which state: equal as long as nobody has written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Device number and inode.
    pub inode: (u64, u64),
    /// Size in bytes.
    pub size: u64,
    /// Modification time: seconds and nanoseconds since 1970. Its owner can set it.
    pub modified: (i64, i64),
    /// Change time, likewise. Nobody can set it.
    pub changed: (i64, i64),
}

impl FileIdentity {
    /// The file that `path` leads to now.
    pub fn of_path(path: &Path) -> io::Result<FileIdentity> {
        std::fs::metadata(path).map(|meta| FileIdentity::of(&meta))
    }

    fn of(meta: &Metadata) -> FileIdentity {
        FileIdentity {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Mapping {
    /// Maps `path`. Anything but a regular file is an error of kind `InvalidInput` (a FIFO would block, a
    /// device has no length).
    pub fn open(path: &Path) -> io::Result<Mapping> {
        let meta = std::fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let len = meta.len();
        let len = usize::try_from(len).map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "too large to map"))?;
        // SAFETY: the mapping is read-only and private to this object, its length was taken from the open file,
        // and it is handed out as `&[u8]` bounded by the object's life. What remains is a file that another
        // process changes underneath: weights are plain numbers, every bit pattern of which is valid, and all
        // metadata that decides about bounds is copied out once; truncation is documented above.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::MmapOptions::new().len(len).map(&file)? };
        Ok(Mapping { map, identity: FileIdentity::of(&meta) })
    }

    /// All of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file as it was when it was mapped.
    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// Asks the kernel to begin reading the file in the background. Only a hint.
    pub fn will_need(&self) {
        let _ = self.map.advise(memmap2::Advice::WillNeed);
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
