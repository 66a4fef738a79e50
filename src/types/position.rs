//! Positions in the write-ahead log.

use super::Epoch;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Log sequence number, a byte position. Prints as PostgreSQL does: `0/16B3748`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to here, `None` when `earlier` is in fact later.
    #[must_use]
    pub fn checked_sub(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Bytes by which `self` lies behind `ahead`, zero when it does not.
    #[must_use]
    pub fn behind(self, ahead: Lsn) -> u64 {
        ahead.0.saturating_sub(self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not `hex/hex` as PostgreSQL prints a position.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a WAL position; expected two hexadecimal numbers like 0/16B3748")]
pub struct LsnParseError(pub String);

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.trim().split_once('/').and_then(|(high, low)| {
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Lsn(u64::from(high) << 32 | u64::from(low)))
        });
        parsed.ok_or_else(|| LsnParseError(text.to_owned()))
    }
}

/// Timeline of the WAL: PostgreSQL starts a new one at each promotion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Timeline {
        Timeline(self.0 + 1)
    }

    /// Name of the history file, as in `pg_wal`: `00000002.history`.
    #[must_use]
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How far a copy of the database has come. Ordered like Raft's (last term, last index): first by the epoch that wrote the
/// tail, then by the byte position, because bare positions of two timelines cannot be compared (INV-7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WalPosition {
    /// Epoch of the primary that wrote the last record held.
    pub writer: Epoch,
    /// End of the flushed WAL.
    pub lsn: Lsn,
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@e{}", self.lsn, self.writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_reads_what_it_prints() {
        let lsn = Lsn(0x1_016B_3748);
        assert_eq!(lsn.to_string(), "1/16B3748");
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
        assert!("16B3748".parse::<Lsn>().is_err());
        assert!("0/1FFFFFFFF".parse::<Lsn>().is_err());
    }

    #[test]
    fn writer_epoch_outranks_byte_position() {
        let newer = WalPosition { writer: Epoch(2), lsn: Lsn(10) };
        let longer = WalPosition { writer: Epoch(1), lsn: Lsn(99) };
        assert!(newer > longer);
    }
}
