//! Envelope for NIXL metadata, and the checks on a peer's metadata before NIXL parses it.
//!
//! NIXL's parser trusts lengths. A blob that it abandons halfway makes the peer's name unusable for good, because the
//! UCX backend keeps the connection under that name. Each blob therefore travels with a digest, and a damaged blob
//! never reaches the parser.

use crate::bail;
use crate::error::Result;
use std::ffi::CString;

/// First bytes of the envelope. They are followed by the BLAKE3 digest of NIXL's blob and the blob.
const MAGIC: &[u8] = b"cleave-nixl-1";
/// Largest accepted size in bytes. Real metadata, a backend's addresses and a key per registration, takes kilobytes.
const MAX_METADATA: usize = 1 << 20;
const MAX_NAME: usize = 128;

/// Converts an agent's name to the form that NIXL takes.
pub(super) fn c_name(name: &str) -> Result<CString> {
    if name.is_empty() || name.len() > MAX_NAME {
        bail!(InvalidArgument, "a NIXL agent's name has 1 to {MAX_NAME} bytes, not {}", name.len());
    }
    CString::new(name).map_err(|_| crate::error!(InvalidArgument, "a NIXL agent's name holds a zero byte: {name:?}"))
}

pub(super) fn wrap(blob: &[u8]) -> Vec<u8> {
    [MAGIC, blake3::hash(blob).as_bytes(), blob].concat()
}

/// Splits metadata into the agent's name and NIXL's blob. NIXL begins a blob with "nixlSerDes|Agent", the name's length
/// and the name.
pub(super) fn unwrap(metadata: &[u8]) -> Result<(String, &[u8])> {
    let len = metadata.len();
    if len > MAX_METADATA {
        bail!(Corrupt, "NIXL metadata of {len} bytes: more than the {MAX_METADATA} that are taken");
    }
    let Some((digest, blob)) = metadata.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk::<32>()) else {
        bail!(Corrupt, "NIXL metadata of {len} bytes does not begin with {:?}", String::from_utf8_lossy(MAGIC));
    };
    if blake3::hash(blob) != *digest {
        bail!(Corrupt, "NIXL metadata of {len} bytes does not match its digest");
    }
    let name = blob.strip_prefix(b"nixlSerDes|Agent").and_then(|rest| {
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        (rest.get(length) == Some(&b'|')).then(|| &rest[..length])
    });
    let Some(name) = name else {
        bail!(Corrupt, "NIXL metadata of {len} bytes does not name an agent first");
    };
    match std::str::from_utf8(name) {
        Ok(name) if c_name(name).is_ok() => Ok((name.to_string(), blob)),
        _ => bail!(Corrupt, "NIXL metadata names an agent of {} bytes that is no name", name.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn blob(length: u64, rest: &[u8]) -> Vec<u8> {
        [b"nixlSerDes|Agent".as_slice(), &length.to_le_bytes(), rest].concat()
    }

    #[test]
    fn a_name_is_read_or_the_blob_refused() {
        let good = blob(5, b"peer1|Conns");
        assert_eq!(unwrap(&wrap(&good)).unwrap(), ("peer1".to_string(), &good[..]));
        for bad in [
            vec![],
            b"nixlSerDes|Conns".to_vec(),
            blob(u64::MAX, b"peer1|"),
            blob(6, b"peer1|"),
            blob(5, b"peer1"),
            blob(0, b"|"),
            blob(2, b"\xff\xff|"),
            blob(2, b"a\0|"),
            blob(129, &[b"a".repeat(129).as_slice(), b"|"].concat()),
            vec![0; MAX_METADATA],
        ] {
            let error = unwrap(&wrap(&bad)).unwrap_err();
            assert_eq!(error.status, Status::Corrupt, "{error}");
        }
    }

    #[test]
    fn damage_is_seen_wherever_it_is() {
        let good = wrap(&blob(5, b"peer1|Conns"));
        for at in 0..good.len() {
            assert_eq!(unwrap(&good[..at]).unwrap_err().status, Status::Corrupt, "cut off at {at}");
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(unwrap(&bad).unwrap_err().status, Status::Corrupt, "changed at {at}");
        }
    }
}
