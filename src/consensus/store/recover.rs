//! What to make of a store found on disk. No writes here; the verdict is a value.
//!
//! | found | verdict |
//! |---|---|
//! | entries from `purged`+1 without a gap, each intact, reaching the mark | go on |
//! | entries at or below `purged` | leftovers of an interrupted deletion: delete |
//! | damage with nothing intact after it, beyond an *exact* mark | never acknowledged: cut it, and say so |
//! | the log ends before the mark, or the vote is older than it | something acknowledged is gone: stop |
//! | damage or a gap with intact entries after it | stop |
//! | damage beyond a mark that is not exact (the machine rebooted) | cannot be told apart from a lost acknowledgement: stop |
//!
//! An ordinary torn tail after a loss of power never shows here: sled checks its own pages, finds the torn end and cuts it, and a
//! barrier that had returned is before that end. So damage that *we* find after a reboot is not a torn write.

use super::frame::{self, FrameError};
use super::mark::{FoundMark, Mark};
use crate::consensus::codec;
use crate::consensus::raft::{Entry, LogId, Vote};
use crate::proto::v1;
use prost::Message;
use std::collections::BTreeMap;

pub const KEY_VOTE: &[u8] = b"vote";
pub const KEY_COMMITTED: &[u8] = b"committed";
pub const KEY_PURGED: &[u8] = b"purged";
pub const KEY_FORMAT: &[u8] = b"format";

/// A store that may be used.
#[derive(Debug, Default)]
pub struct Recovered {
    pub entries: BTreeMap<u64, Entry>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// All of `meta`, without frames.
    pub meta: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Keys of `log` to delete before use.
    pub delete: Vec<Vec<u8>>,
    /// What was cut off, for the log.
    pub cut: Option<String>,
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Judge the content of both trees against the mark. The error says what is damaged.
pub fn judge(log: Pairs, meta: Pairs, found: FoundMark) -> Result<Recovered, String> {
    let mut out = read_meta(meta)?;
    let mark = found.mark.unwrap_or_default();
    check_vote(&out, &mark)?;
    let first = out.purged.map_or(0, |p| p.index() + 1);
    let mut expected = first;
    let mut damage: Option<(u64, String)> = None;
    for (key, value) in log {
        let Ok(index) = <[u8; 8]>::try_from(key.as_slice()).map(u64::from_be_bytes) else {
            return Err(format!("the log has a key of {} bytes", key.len()));
        };
        if index < first {
            out.delete.push(key);
            continue;
        }
        if damage.is_none() && index != expected {
            damage = Some((expected, "it is missing".to_owned()));
        }
        match (read_entry(&key, &value, index), &damage) {
            (Ok(_), Some((at, why))) => return Err(format!("entry {at} cannot be read ({why}), and entry {index} follows it")),
            (Ok(entry), None) => drop(out.entries.insert(index, entry)),
            (Err(e), None) => damage = Some((index, e.to_string())),
            (Err(_), Some(_)) => {}
        }
        if damage.is_some() {
            out.delete.push(key);
        }
        expected = index + 1;
    }
    let next = out.entries.keys().next_back().map_or(first, |last| last + 1);
    check_end(&mut out, next, damage, mark, found)?;
    Ok(out)
}

fn check_end(out: &mut Recovered, next: u64, damage: Option<(u64, String)>, mark: Mark, found: FoundMark) -> Result<(), String> {
    if next < mark.next {
        let why = damage.map_or_else(|| "they are missing".to_owned(), |(_, why)| why);
        return Err(format!("entries {next} to {} were acknowledged and cannot be read ({why})", mark.next - 1));
    }
    if let Some(committed) = out.committed.filter(|c| c.index() >= next) {
        return Err(format!("entries {next} to {} were committed and are missing", committed.index()));
    }
    let Some((at, why)) = damage else { return Ok(()) };
    if !found.exact {
        return Err(format!("entry {at} cannot be read ({why}), and it may have been acknowledged before the machine restarted"));
    }
    out.cut = Some(format!("entry {at} cannot be read ({why}); it was never acknowledged, the log now ends before it"));
    Ok(())
}

/// Losing a vote could mean voting twice in one term.
fn check_vote(out: &Recovered, mark: &Mark) -> Result<(), String> {
    match (&out.vote, &mark.vote) {
        (_, None) => Ok(()),
        (Some(stored), Some(noted)) if stored >= noted => Ok(()),
        (stored, Some(noted)) => {
            let stored = stored.map_or_else(|| "no vote".to_owned(), |v| v.to_string());
            Err(format!("it holds {stored}, but this node voted {noted}"))
        }
    }
}

fn read_meta(meta: Pairs) -> Result<Recovered, String> {
    let mut out = Recovered::default();
    for (key, value) in meta {
        let payload = frame::open(&key, &value).map_err(|e| format!("`{}` cannot be read: {e}", String::from_utf8_lossy(&key)))?;
        out.meta.insert(key.clone(), payload.to_vec());
    }
    out.vote = decode_meta::<v1::RaftVote>(&out, KEY_VOTE)?.map(|v| codec::vote_from(Some(v))).transpose().map_err(|e| e.to_string())?;
    out.committed = decode_meta::<v1::RaftLogId>(&out, KEY_COMMITTED)?.map(codec::log_id_from);
    out.purged = decode_meta::<v1::RaftLogId>(&out, KEY_PURGED)?.map(codec::log_id_from);
    Ok(out)
}

fn decode_meta<M: Message + Default>(out: &Recovered, key: &[u8]) -> Result<Option<M>, String> {
    let decode = |bytes: &Vec<u8>| M::decode(bytes.as_slice());
    out.meta.get(key).map(decode).transpose().map_err(|e| format!("`{}` cannot be read: {e}", String::from_utf8_lossy(key)))
}

fn read_entry(key: &[u8], value: &[u8], index: u64) -> Result<Entry, FrameError> {
    let payload = frame::open(key, value)?;
    let content = |e: String| FrameError::Content(e);
    let message = v1::RaftEntry::decode(payload).map_err(|e| content(e.to_string()))?;
    let entry = codec::entry_from(message).map_err(|e| content(e.to_string()))?;
    if entry.log_id.index() == index { Ok(entry) } else { Err(content(format!("it says that it is entry {}", entry.log_id.index()))) }
}
