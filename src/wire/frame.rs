//! Framing in bounded memory.
//!
//! A [`StreamBuffer`] holds a window of a byte stream. Three positions move through it: `head` (first byte not yet forwarded), `scan`
//! (header of the next message not yet looked at) and `tail` (end of what was received). `scan` and `head` may lie beyond `tail`: then
//! the rest of a message that was already judged passes through (or is dropped) as it arrives, whatever its size. So a DataRow
//! of 1 GB needs no more memory than `SELECT 1`.

use thiserror::Error;

/// Type byte and length.
pub const HEADER_BYTES: usize = 5;

/// The stream cannot be a PostgreSQL conversation; Postgres answers 08P01 and hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("message `{}` announces a length of {length} bytes, less than the 4 of the length itself; disconnect this peer", char::from(*tag))]
pub struct Malformed {
    pub tag: u8,
    pub length: u32,
}

/// A message of which at least the header has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The type byte.
    pub tag: u8,
    /// Length of the body, without type and length.
    pub body_len: usize,
    /// How much of the body has arrived.
    pub arrived: usize,
}

impl Frame {
    /// Whether the whole body is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.arrived == self.body_len
    }

    /// Bytes of the whole message.
    #[must_use]
    pub fn total(&self) -> usize {
        HEADER_BYTES + self.body_len
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct StreamBuffer {
    data: Vec<u8>,
    head: usize,
    scan: usize,
    tail: usize,
}

impl StreamBuffer {
    /// A window of `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> StreamBuffer {
        StreamBuffer { data: vec![0; capacity], ..StreamBuffer::default() }
    }

    /// Takes `memory` as the window and gives the old one back; the buffer must be empty.
    #[must_use]
    pub fn exchange(&mut self, memory: Vec<u8>) -> Vec<u8> {
        assert!(self.is_empty(), "memory is exchanged only while nothing is held in it");
        let old = std::mem::replace(&mut self.data, memory);
        (self.head, self.scan, self.tail) = (0, 0, 0);
        old
    }

    /// The next message to judge, or `None` until its header has arrived.
    ///
    /// # Errors
    /// The length is below 4.
    pub fn frame(&self) -> Result<Option<Frame>, Malformed> {
        self.frame_at(self.scan)
    }

    /// The message that begins `ahead` bytes after the next one.
    ///
    /// # Errors
    /// As [`StreamBuffer::frame`].
    pub fn frame_ahead(&self, ahead: usize) -> Result<Option<Frame>, Malformed> {
        self.frame_at(self.scan + ahead)
    }

    fn frame_at(&self, at: usize) -> Result<Option<Frame>, Malformed> {
        let Some(header) = self.data.get(at..(at + HEADER_BYTES).min(self.tail)).filter(|h| h.len() == HEADER_BYTES) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        // A length is a signed 32-bit number on the wire: beyond 2^31 Postgres sees a negative one.
        if !(4..=i32::MAX.unsigned_abs()).contains(&length) {
            return Err(Malformed { tag: header[0], length });
        }
        let body_len = length as usize - 4;
        Ok(Some(Frame { tag: header[0], body_len, arrived: body_len.min(self.tail - at - HEADER_BYTES) }))
    }

    /// What has arrived of the body of the message `ahead` bytes after the next one.
    #[must_use]
    pub fn body_ahead(&self, ahead: usize, frame: &Frame) -> &[u8] {
        let start = self.scan + ahead + HEADER_BYTES;
        &self.data[start..start + frame.arrived]
    }

    /// What has arrived of the next message's body.
    #[must_use]
    pub fn body(&self, frame: &Frame) -> &[u8] {
        self.body_ahead(0, frame)
    }

    /// Judges the next message fit to pass on.
    pub fn pass(&mut self, frame: &Frame) {
        self.scan += frame.total();
    }

    /// Drops the next message, also the part that has not arrived. Everything before it must have been consumed.
    pub fn drop_frame(&mut self, frame: &Frame) {
        assert_eq!(self.head, self.scan, "bytes before a dropped message were taken first");
        self.scan += frame.total();
        self.head = self.scan;
    }

    /// Bytes that may be forwarded now.
    #[must_use]
    pub fn ready(&self) -> &[u8] {
        let end = self.scan.min(self.tail);
        if self.head < end { &self.data[self.head..end] } else { &[] }
    }

    /// `n` bytes of `ready` were forwarded.
    pub fn consume(&mut self, n: usize) {
        self.head += n;
    }

    /// Bytes that arrived and were not judged yet.
    #[must_use]
    pub fn unscanned(&self) -> &[u8] {
        if self.scan < self.tail { &self.data[self.scan..self.tail] } else { &[] }
    }

    /// Whether a message that was already judged has not arrived in full.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.scan > self.tail
    }

    /// Whether nothing is buffered and no message is cut in two.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head >= self.tail && self.scan <= self.tail
    }

    /// Forgets what was judged but not forwarded. The caller knows that no message is cut in two by it.
    pub fn discard_ready(&mut self) {
        self.head = self.scan;
    }

    /// Room to receive into; empty while the window is full of bytes that were not forwarded.
    pub fn space(&mut self) -> &mut [u8] {
        let gone = self.head.min(self.tail);
        if gone == self.tail {
            self.shift(gone);
        } else if self.tail == self.data.len() && gone > 0 {
            self.data.copy_within(gone..self.tail, 0);
            self.shift(gone);
        }
        &mut self.data[self.tail..]
    }

    /// Whether `space` would give room.
    #[must_use]
    pub fn has_space(&self) -> bool {
        self.tail < self.data.len() || self.head > 0
    }

    /// `n` bytes were received into `space`.
    pub fn received(&mut self, n: usize) {
        self.tail += n;
        assert!(self.tail <= self.data.len(), "no more was received than there was room for");
    }

    /// Widens the window, so that a message worth reading fits.
    pub fn grow(&mut self, capacity: usize) {
        if capacity > self.data.len() {
            self.data.resize(capacity, 0);
        }
    }

    /// Size of the window.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.data.len()
    }

    /// Puts bytes into the window as if received; for replays and tests.
    pub fn feed(&mut self, bytes: &[u8]) {
        let wanted = self.tail + bytes.len();
        self.grow(wanted);
        self.data[self.tail..wanted].copy_from_slice(bytes);
        self.tail = wanted;
    }

    fn shift(&mut self, by: usize) {
        self.head -= by;
        self.scan -= by;
        self.tail -= by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    proptest! {
        #[test]
        fn a_stream_cut_anywhere_comes_out_whole(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 1..12),
            cuts in proptest::collection::vec(1usize..40, 1..40),
            window in 16usize..64,
            drop_odd in any::<bool>(),
        ) {
            let stream: Vec<u8> = bodies.iter().enumerate().flat_map(|(i, b)| message(i as u8, b)).collect();
            let expected: Vec<u8> = bodies.iter().enumerate().filter(|(i, _)| !drop_odd || i % 2 == 0).flat_map(|(i, b)| message(i as u8, b)).collect();
            let (mut buffer, mut out, mut sent, mut cut) = (StreamBuffer::with_capacity(window), Vec::new(), 0, 0);
            let mut tags = Vec::new();
            while sent < stream.len() {
                let space = buffer.space();
                prop_assert!(!space.is_empty());
                let n = cuts[cut % cuts.len()].min(space.len()).min(stream.len() - sent);
                cut += 1;
                space[..n].copy_from_slice(&stream[sent..sent + n]);
                buffer.received(n);
                sent += n;
                while let Some(frame) = buffer.frame().expect("well formed") {
                    tags.push(frame.tag);
                    if drop_odd && frame.tag % 2 == 1 {
                        out.extend_from_slice(buffer.ready());
                        buffer.consume(buffer.ready().len());
                        buffer.drop_frame(&frame);
                    } else {
                        buffer.pass(&frame);
                    }
                }
                out.extend_from_slice(buffer.ready());
                buffer.consume(buffer.ready().len());
            }
            prop_assert_eq!(out, expected);
            prop_assert_eq!(tags, (0..bodies.len() as u8).collect::<Vec<_>>());
            prop_assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_length_below_four_is_refused() {
        let mut buffer = StreamBuffer::with_capacity(16);
        buffer.feed(&[b'Q', 0, 0, 0, 3]);
        assert_eq!(buffer.frame(), Err(Malformed { tag: b'Q', length: 3 }));
        let mut buffer = StreamBuffer::with_capacity(16);
        buffer.feed(&[b'D', 0xFF, 0xFF, 0xFF, 0xFF]);
        assert!(buffer.frame().is_err());
    }

    #[test]
    fn a_gigabyte_passes_through_a_small_window() {
        let mut buffer = StreamBuffer::with_capacity(1 << 10);
        buffer.feed(&[b'D', 0x40, 0, 0, 0]);
        let frame = buffer.frame().expect("well formed").expect("header is there");
        buffer.pass(&frame);
        let mut passed = buffer.ready().len();
        buffer.consume(passed);
        while passed < (1 << 30) + 1 {
            let room = buffer.space().len().min((1 << 30) + 1 - passed);
            buffer.received(room);
            assert_eq!(buffer.ready().len(), room);
            buffer.consume(room);
            passed += room;
        }
        assert!(buffer.is_empty());
        assert_eq!(buffer.capacity(), 1 << 10);
    }
}
