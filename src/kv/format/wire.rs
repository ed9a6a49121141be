//! Little-endian primitives. Reading checks every length against the bytes that are left before it allocates.

use crate::bail;
use crate::error::Result;

#[derive(Default)]
pub(crate) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn f32(&mut self, value: f32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32s(&mut self, values: &[u32]) -> &mut Self {
        values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
        self
    }

    /// Writes a section: tag, flags, length, payload.
    pub fn section(&mut self, tag: u16, flags: u16, payload: &[u8]) -> &mut Self {
        self.u16(tag).u16(flags).u32(payload.len() as u32).bytes(payload)
    }
}

/// A cursor over untrusted bytes. `what` names them in errors.
pub(crate) struct Reader<'a> {
    what: &'static str,
    data: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(what: &'static str, data: &'a [u8]) -> Reader<'a> {
        Reader { what, data }
    }

    pub fn left(&self) -> usize {
        self.data.len()
    }

    pub fn bytes(&mut self, n: usize, field: &str) -> Result<&'a [u8]> {
        match self.data.split_at_checked(n) {
            Some((bytes, rest)) => {
                self.data = rest;
                Ok(bytes)
            }
            None => bail!(Corrupt, "{}: {field}: needs {n} bytes, {} are left", self.what, self.data.len()),
        }
    }

    pub fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, field)?);
        Ok(array)
    }

    pub fn u16(&mut self, field: &str) -> Result<u16> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, field: &str) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, field: &str) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub fn f32(&mut self, field: &str) -> Result<f32> {
        self.array(field).map(f32::from_le_bytes)
    }

    /// Reads `n` numbers. Allocates no more than the remaining bytes can fill.
    pub fn u32s(&mut self, n: u32, field: &str) -> Result<Vec<u32>> {
        let bytes = self.bytes((n as usize).saturating_mul(4), field)?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Fails if bytes are left.
    pub fn end(&self) -> Result<()> {
        if !self.data.is_empty() {
            bail!(Corrupt, "{}: {} bytes too many", self.what, self.data.len());
        }
        Ok(())
    }
}
