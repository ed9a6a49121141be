//! Pieces of a read: what they are, and how few of them will do.

use crate::bail;
use crate::error::Result;

/// Bytes to read, from an address in the peer's registered memory to an offset in the local registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the local registration, in bytes.
    pub offset: usize,
    /// Address in the peer's process.
    pub remote_address: u64,
    /// Number of bytes.
    pub len: usize,
}

/// Checks `pieces` against a registration of `len` bytes, and merges pieces that are neighbours on both sides: every
/// descriptor has a cost, and consecutive blocks are common.
pub(super) fn coalesce(pieces: &[Piece], len: usize) -> Result<Vec<Piece>> {
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len());
    for (i, &piece) in pieces.iter().enumerate() {
        let Piece { offset, remote_address, len: size } = piece;
        if size == 0 || offset.checked_add(size).is_none_or(|end| end > len) {
            bail!(InvalidArgument, "NIXL read: piece {i} ({size} bytes at {offset}) is not in the {len} registered");
        }
        if remote_address.checked_add(size as u64).is_none() {
            bail!(InvalidArgument, "NIXL read: piece {i} ({size} bytes at {remote_address:#x}) is beyond any memory");
        }
        match out.last_mut() {
            Some(last)
                if last.offset + last.len == offset && last.remote_address + last.len as u64 == remote_address =>
            {
                last.len += size;
            }
            _ => out.push(piece),
        }
    }
    if out.is_empty() {
        bail!(InvalidArgument, "NIXL read: no pieces");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: usize, remote_address: u64, len: usize) -> Piece {
        Piece { offset, remote_address, len }
    }

    #[test]
    fn neighbours_on_both_sides_become_one() {
        let pieces = [piece(0, 100, 10), piece(10, 110, 5), piece(15, 200, 5), piece(30, 205, 5)];
        assert_eq!(coalesce(&pieces, 35).unwrap(), [piece(0, 100, 15), piece(15, 200, 5), piece(30, 205, 5)]);
    }

    #[test]
    fn pieces_out_of_bounds_are_named() {
        let text = |piece| coalesce(&[piece], 100).unwrap_err().message;
        assert!(text(piece(91, 0, 10)).contains("piece 0 (10 bytes at 91) is not in the 100"));
        assert!(text(piece(usize::MAX, 0, 2)).contains("is not in"));
        assert!(text(piece(0, 0, 0)).contains("is not in"));
        assert!(text(piece(0, u64::MAX, 2)).contains("beyond any memory"));
        assert!(coalesce(&[], 100).unwrap_err().message.contains("no pieces"));
    }
}
