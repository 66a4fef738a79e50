//! What the client asks: cuts its stream into units (a Query, or a batch up to its Sync), judges them, and answers those that need no
//! server.

use super::buffers;
use super::classify::{Class, Kind, classify};
use super::lexer::{Lexer, Token};
use super::outcome;
use super::session::{Block, End, Session};
use crate::wire::frame::{Frame, Malformed, StreamBuffer};
use crate::wire::message::{TxStatus, put_ready, split_cstr};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Something that is sent and answered as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    pub kind: UnitKind,
    pub class: Class,
    /// Bytes from the first message through the last, when all of them have arrived; else 0.
    pub len: usize,
}

/// How it is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitKind {
    Query,
    Batch,
    /// A batch that uses an unnamed statement which it does not make itself.
    Unprepared,
    Function,
    Terminate,
}

/// What statements begin with that grow long by their data.
const LONG: [&str; 7] = ["insert", "update", "delete", "merge", "select", "with", "copy"];

/// Whether a Bind, or a Describe of a statement, means the unnamed one.
fn names_unnamed(tag: u8, body: &[u8]) -> bool {
    match tag {
        b'B' => split_cstr(body).is_some_and(|(_, statement)| statement.first() == Some(&0)),
        b'D' => body.starts_with(b"S\0"),
        _ => false,
    }
}

/// A hash of the statements in a unit's messages, without their constants and layout.
#[must_use]
pub fn fingerprint(unit: &[u8], backslash_escapes: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut messages = StreamBuffer::default();
    messages.feed(unit);
    while let Ok(Some(frame)) = messages.frame() {
        let body = messages.body(&frame);
        match frame.tag {
            b'Q' => fingerprint_text(split_cstr(body).map_or(body, |(text, _)| text), backslash_escapes, &mut hasher),
            b'P' => {
                let rest = split_cstr(body).map_or(body, |(_, rest)| rest);
                fingerprint_text(split_cstr(rest).map_or(rest, |(text, _)| text), backslash_escapes, &mut hasher);
            }
            _ => {}
        }
        messages.drop_frame(&frame);
    }
    hasher.finish()
}

fn fingerprint_text(text: &[u8], backslash_escapes: bool, hasher: &mut DefaultHasher) {
    for token in Lexer::new(text, backslash_escapes) {
        match token {
            Token::Word(word) => word.to_ascii_lowercase().hash(hasher),
            Token::Quoted(name) => (1u8, name).hash(hasher),
            Token::Literal => 2u8.hash(hasher),
            Token::Symbol(symbol) => (3u8, symbol).hash(hasher),
            Token::Broken => 4u8.hash(hasher),
        }
    }
}

impl From<Malformed> for End {
    fn from(error: Malformed) -> End {
        End::Fatal { code: "08P01", message: error.to_string() }
    }
}

impl Session {
    /// The next unit that needs an answer other than at once; `None` until more has arrived.
    pub fn next_unit(&mut self) -> Result<Option<Unit>, End> {
        while let Some(frame) = self.inbox.frame()? {
            let of = |kind, class| Unit { kind, class, len: 0 };
            match frame.tag {
                b'X' => return Ok(Some(of(UnitKind::Terminate, Class::OPAQUE))),
                b'S' => {
                    self.inbox.drop_frame(&frame);
                    self.skip_to_sync = false;
                    let status = self.own_status();
                    put_ready(&mut self.out, status);
                }
                _ if self.skip_to_sync => self.inbox.drop_frame(&frame),
                // Left over from a COPY that failed; or a Flush with nothing before it.
                b'd' | b'c' | b'f' | b'H' => self.inbox.drop_frame(&frame),
                b'Q' => return self.query_unit(&frame),
                b'P' | b'B' | b'D' | b'E' | b'C' => return self.batch_unit(),
                b'F' => return Ok(Some(of(UnitKind::Function, Class { kind: Kind::Write, pins: false }))),
                tag => return Err(outcome::unknown_message(tag)),
            }
        }
        Ok(None)
    }

    /// The state a client is in while the proxy answers for itself.
    #[must_use]
    pub fn own_status(&self) -> TxStatus {
        match self.block {
            Block::None => TxStatus::Idle,
            Block::Deferred { .. } => TxStatus::InTransaction,
            Block::Lost | Block::Failed => TxStatus::Failed,
        }
    }

    /// Whether the message can be judged: it has arrived, or is too long to wait for.
    pub fn is_legible(&mut self, ahead: usize, frame: &Frame) -> bool {
        let bound = self.shared.config.inspect_bytes_max;
        if frame.is_complete() || frame.total() > bound {
            return true;
        }
        // A little beyond the message, so that what follows it can arrive too.
        self.inbox.grow((ahead + frame.total() + buffers::WINDOW_BYTES).next_power_of_two());
        false
    }

    /// Judges the text of a Query or Parse; one that has not arrived in full is opaque.
    #[must_use]
    pub fn judge(&self, frame: &Frame, text: &[u8]) -> Class {
        if !frame.is_complete() {
            // Long texts are data: one that begins as a statement on data is not suspected of a SET behind its first quarter megabyte.
            let data = Lexer::new(text, self.backslash_escapes).next().is_some_and(|first| LONG.iter().any(|word| first.is(word)));
            return Class { kind: Kind::Opaque, pins: !data };
        }
        if self.has_opaque_encoding() {
            return Class::OPAQUE;
        }
        classify(text, self.backslash_escapes)
    }

    /// Encodings in which a byte of ASCII may be half of a character.
    fn has_opaque_encoding(&self) -> bool {
        let Some(encoding) = self.me.primary.parameters.iter().find(|(name, _)| name == "client_encoding") else { return false };
        let name: String = encoding.1.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        ["sjis", "shiftjis", "mskanji", "big5", "gbk", "uhc", "gb18030", "johab", "win932", "win936", "win949", "win950", "windows9"]
            .iter()
            .any(|opaque| name.contains(opaque))
    }

    fn query_unit(&mut self, frame: &Frame) -> Result<Option<Unit>, End> {
        if !self.is_legible(0, frame) {
            return Ok(None);
        }
        let body = self.inbox.body(frame);
        let text = split_cstr(body).map_or(body, |(text, _)| text);
        let class = self.judge(frame, text);
        let len = if frame.is_complete() { frame.total() } else { 0 };
        Ok(Some(Unit { kind: UnitKind::Query, class, len }))
    }

    /// Looks ahead to the Sync (or Flush) that ends the batch. It is a read only if each statement in it is an unnamed one that reads and
    /// nothing of it is left for a later batch; it may begin a block on a standby only if what follows is of that kind, too.
    fn batch_unit(&mut self) -> Result<Option<Unit>, End> {
        let opaque = Unit { kind: UnitKind::Batch, class: Class { kind: Kind::Opaque, pins: false }, len: 0 };
        let (mut ahead, mut reads, mut rest_reads, mut first) = (0, true, true, None);
        // The unnamed statement: made here, and not bound yet.
        let (mut made, mut unbound) = (false, false);
        while let Some(frame) = self.inbox.frame_ahead(ahead)? {
            if !made && names_unnamed(frame.tag, self.inbox.body_ahead(ahead, &frame)) {
                return Ok(Some(Unit { kind: UnitKind::Unprepared, ..opaque }));
            }
            if ahead + frame.total() > self.shared.config.inspect_bytes_max {
                return Ok(Some(opaque));
            }
            if !self.is_legible(ahead, &frame) {
                return Ok(None);
            }
            let body = self.inbox.body_ahead(ahead, &frame);
            let (name, rest) = split_cstr(body).unwrap_or((b"", b""));
            ahead += frame.total();
            match frame.tag {
                b'S' => {
                    let reads = reads && !unbound;
                    let kind = match first {
                        _ if reads => Kind::Read,
                        Some(Kind::Begin { .. } | Kind::SetReadOnly) if !rest_reads || unbound => Kind::Opaque,
                        // It begins with a read.
                        Some(Kind::Read) | None => Kind::Opaque,
                        Some(first) => first,
                    };
                    let len = if reads { ahead } else { 0 };
                    return Ok(Some(Unit { class: Class { kind, pins: false }, len, ..opaque }));
                }
                b'P' => {
                    let text = split_cstr(rest).map_or(rest, |(text, _)| text);
                    let class = self.judge(&frame, text);
                    reads &= name.is_empty() && class.kind == Kind::Read;
                    rest_reads &= name.is_empty() && (first.is_none() || class.kind == Kind::Read);
                    first = first.or(Some(class.kind));
                    made |= name.is_empty();
                    unbound = name.is_empty();
                }
                b'B' => {
                    reads &= first.is_some() && name.is_empty() && rest.first() == Some(&0);
                    rest_reads &= rest.first() == Some(&0);
                    unbound = false;
                }
                b'E' | b'D' | b'C' => {}
                _ => return Ok(Some(opaque)),
            }
        }
        if ahead + buffers::WINDOW_BYTES > self.inbox.capacity() {
            let wider = self.inbox.capacity() * 2;
            self.inbox.grow(wider.min(2 * self.shared.config.inspect_bytes_max));
        }
        Ok(None)
    }

    /// Takes the Query that is next out of the stream and gives its text.
    pub fn take_query(&mut self) -> Option<Vec<u8>> {
        let frame = self.inbox.frame().ok().flatten().filter(|frame| frame.tag == b'Q' && frame.is_complete())?;
        let text = split_cstr(self.inbox.body(&frame)).map(|(text, _)| text.to_vec());
        if text.is_some() {
            self.inbox.drop_frame(&frame);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_ignores_constants_and_layout() {
        let of = |text: &str| {
            let mut unit = Vec::new();
            crate::wire::message::put_query(&mut unit, text.as_bytes());
            fingerprint(&unit, false)
        };
        assert_eq!(of("select * from v where id = 1"), of("SELECT *\nFROM v WHERE id=  'x'"));
        assert_ne!(of("select * from v where id = 1"), of("select * from w where id = 1"));
    }
}
