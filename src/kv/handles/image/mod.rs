//! Images of handles: reading, importing, and keeping them in files.
//!
//! Knows the image format and makes handles of what it imports. Knows nothing of tickets and transfers.

mod file;
mod import;
mod reader;

use std::io::Read;
use std::path::Path;

use import::ImageImport;
use reader::ImageReader;

use super::export::export;
use super::shared::CacheShared;
use crate::error::Result;
use crate::kv::format::{Envelope, KvId};
use crate::kv::pool::BlockTable;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// The images of a cache's handles.
#[derive(Clone, Copy)]
pub struct Images<'a>(&'a Arc<CacheShared>);

impl<'a> Images<'a> {
    pub(in crate::kv) fn new(shared: &'a Arc<CacheShared>) -> Images<'a> {
        Images(shared)
    }

    /// Size of a handle's image in bytes.
    pub fn len(self, id: KvId) -> Result<u64> {
        Ok(ImageReader::new(self.0, id)?.len() as u64)
    }

    /// Reads a piece of a handle's image at byte `offset` into `out`, and returns its length; 0 at the end. Repeated reads
    /// give the same bytes. A read that has begun completes even if the handle is consumed or released meanwhile.
    pub fn read(self, id: KvId, offset: u64, out: &mut [u8]) -> Result<usize> {
        ImageReader::new(self.0, id)?.read(offset, out)
    }

    /// Makes a handle of the sequence in an image. Nothing of the image is used unless all of it is valid.
    pub fn import(self, data: &[u8]) -> Result<KvId> {
        let (snapshot, table) = self.take(data)?;
        export(self.0, None, snapshot, table, None)
    }

    /// Writes a handle's image to `path`, readable by its owner only. The file appears whole or not at all, even after a power
    /// cut. The handle stays valid.
    pub fn save(self, id: KvId, path: &Path) -> Result<()> {
        file::save(path, |sink| ImageReader::new(self.0, id)?.write_to(sink))
    }

    /// Makes a handle of the sequence in a file that [`Images::save`] wrote. Reads it in pieces; the file stays.
    pub fn load(self, path: &Path) -> Result<KvId> {
        let load = || file::open(path).and_then(|(file, len)| self.load_from(file, len));
        load().map_err(|error| error.context(path.display()))
    }

    /// Makes a handle of the image in `file`, which had `len` bytes when it was opened.
    pub(in crate::kv) fn load_from(self, file: impl Read, len: u64) -> Result<KvId> {
        let (snapshot, table) = file::read(self.0, file, len)?;
        export(self.0, None, snapshot, table, None)
    }

    /// Verifies an image and imports its sequence.
    pub(in crate::kv) fn take(self, data: &[u8]) -> Result<(Snapshot, BlockTable)> {
        let envelope = Envelope::peek(data)?;
        envelope.check_len(data.len() as u64)?;
        let (head, records) = data.split_at(envelope.head_len);
        let mut import = ImageImport::begin(self.0, &envelope, head)?;
        for record in records.chunks(import.record_len()) {
            import.record(record)?;
        }
        import.finish()
    }
}
