//! Windows for sockets, attached only while bytes are pending: an idle client or server costs none.
//!
//! Each worker keeps a short list of free ones; a window that grew beyond the usual size is freed instead.

use crate::wire::frame::StreamBuffer;
use std::cell::RefCell;
use std::io;
use tokio::net::TcpStream;

/// Large enough for most statements and for a good part of a result at once, small enough for thousands of busy clients.
pub const WINDOW_BYTES: usize = 16 << 10;

/// Free windows kept by each worker.
const FREE_MAX: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Gives `buffer` a window if it has none.
pub fn attach(buffer: &mut StreamBuffer) {
    if buffer.capacity() == 0 {
        let window = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; WINDOW_BYTES]);
        // What comes back is the empty window it had.
        drop(buffer.exchange(window));
    }
}

/// Takes the window away from an empty `buffer`.
pub fn detach(buffer: &mut StreamBuffer) {
    if buffer.capacity() > 0 && buffer.is_empty() {
        let window = buffer.exchange(Vec::new());
        FREE.with_borrow_mut(|free| {
            if window.len() == WINDOW_BYTES && free.len() < FREE_MAX {
                free.push(window);
            }
        });
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Bytes,
    /// Nothing now.
    Later,
    /// No room: forward first.
    Full,
    /// End of the stream, or a broken one.
    Ended,
}

/// Reads what is there, without waiting.
pub fn read(stream: &TcpStream, buffer: &mut StreamBuffer) -> Read {
    attach(buffer);
    let space = buffer.space();
    if space.is_empty() {
        return Read::Full;
    }
    match stream.try_read(space) {
        Ok(0) => Read::Ended,
        Ok(n) => {
            buffer.received(n);
            Read::Bytes
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Read::Later,
        Err(_) => Read::Ended,
    }
}

/// Writes as much of `out`, then of what `buffer` has ready, as the socket takes. `Ok(true)`: everything went.
///
/// # Errors
/// The connection is broken.
pub fn write(stream: &TcpStream, out: &mut Vec<u8>, buffer: &mut StreamBuffer) -> io::Result<bool> {
    // One packet for a short preface and what follows it.
    if !out.is_empty() && buffer.ready().len() <= 4 << 10 {
        let ready = buffer.ready().len();
        out.extend_from_slice(buffer.ready());
        buffer.consume(ready);
    }
    let mut sent = 0;
    while sent < out.len() {
        match stream.try_write(&out[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                out.drain(..sent);
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
    }
    out.clear();
    while !buffer.ready().is_empty() {
        match stream.try_write(buffer.ready()) {
            Ok(n) => buffer.consume(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}
