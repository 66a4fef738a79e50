//! How one value is framed on disk: `format byte · crc32c (LE) of key and payload · payload`. The key takes part in the checksum,
//! so that a value under the wrong key is damage too.

use crate::consensus::raft::FORMAT;
use thiserror::Error;

const HEADER: usize = 5;

/// A stored value is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("it is shorter than its header")]
    Short,
    #[error("its checksum does not match")]
    Checksum,
    #[error("its format {0} is newer than this release")]
    Format(u8),
    #[error("its content cannot be decoded: {0}")]
    Content(String),
}

pub fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + payload.len());
    out.push(FORMAT);
    out.extend_from_slice(&checksum(key, payload).to_le_bytes());
    out.extend_from_slice(payload);
    out
}

pub fn open<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], FrameError> {
    let (Some(format), Some(crc), Some(payload)) = (value.first(), value.get(1..HEADER), value.get(HEADER..)) else {
        return Err(FrameError::Short);
    };
    if checksum(key, payload).to_le_bytes() != crc {
        return Err(FrameError::Checksum);
    }
    if *format > FORMAT {
        return Err(FrameError::Format(*format));
    }
    Ok(payload)
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), payload)
}
