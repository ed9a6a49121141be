//! Files mapped read-only into memory: checkpoint shards, used in place.

use std::fs::File;
use std::io;
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
        let len = file.metadata()?.len();
        let len = usize::try_from(len).map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "too large to map"))?;
        // SAFETY: the mapping is read-only and private to this object, its length was taken from the open file,
        // and it is handed out as `&[u8]` bounded by the object's life. What remains is a file that another
        // process changes underneath: weights are plain numbers, every bit pattern of which is valid, and all
        // metadata that decides about bounds is copied out once; truncation is documented above.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::MmapOptions::new().len(len).map(&file)? };
        Ok(Mapping { map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
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
