//! The messages a proxy writes itself, and the parts of others' messages that it reads.

/// A transaction's state as ReadyForQuery tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxStatus {
    #[default]
    Idle,
    InTransaction,
    Failed,
}

impl TxStatus {
    /// From the byte of ReadyForQuery.
    #[must_use]
    pub fn from_byte(byte: u8) -> TxStatus {
        match byte {
            b'I' => TxStatus::Idle,
            b'E' => TxStatus::Failed,
            _ => TxStatus::InTransaction,
        }
    }

    fn byte(self) -> u8 {
        match self {
            TxStatus::Idle => b'I',
            TxStatus::InTransaction => b'T',
            TxStatus::Failed => b'E',
        }
    }
}

/// `ERROR` leaves the connection, `FATAL` ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

/// Appends a message whose body `write` fills in.
pub fn put(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - at).expect("the proxy's own messages are small");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends bytes and a zero.
pub fn put_cstr(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

/// Appends an ErrorResponse.
pub fn put_error(out: &mut Vec<u8>, severity: Severity, code: &str, message: &str, hint: Option<&str>) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    put(out, b'E', |body| {
        for (field, text) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', message)] {
            body.push(field);
            put_cstr(body, text.as_bytes());
        }
        if let Some(hint) = hint {
            body.push(b'H');
            put_cstr(body, hint.as_bytes());
        }
        body.push(0);
    });
}

/// Appends ReadyForQuery.
pub fn put_ready(out: &mut Vec<u8>, status: TxStatus) {
    put(out, b'Z', |body| body.push(status.byte()));
}

/// Appends CommandComplete.
pub fn put_complete(out: &mut Vec<u8>, tag: &str) {
    put(out, b'C', |body| put_cstr(body, tag.as_bytes()));
}

/// Appends ParameterStatus.
pub fn put_parameter(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, b'S', |body| {
        put_cstr(body, name);
        put_cstr(body, value);
    });
}

/// Appends a simple Query.
pub fn put_query(out: &mut Vec<u8>, text: &[u8]) {
    put(out, b'Q', |body| put_cstr(body, text));
}

/// Splits off a zero-terminated string.
#[must_use]
pub fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The fields of an ErrorResponse or NoticeResponse that decide something. Those that lie beyond the bytes at hand are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    /// Not localised: `ERROR`, `FATAL`, `PANIC`, `WARNING`, …
    pub severity: &'a [u8],
    /// SQLSTATE.
    pub code: &'a [u8],
    pub message: &'a [u8],
    /// The C function that reported it; never localised.
    pub routine: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads as many fields as `body` holds.
    #[must_use]
    pub fn read(mut body: &'a [u8]) -> Fields<'a> {
        let mut fields = Fields::default();
        while let Some((&field, rest)) = body.split_first() {
            let Some((text, rest)) = split_cstr(rest).filter(|_| field != 0) else { break };
            match field {
                b'V' => fields.severity = text,
                b'C' => fields.code = text,
                b'M' => fields.message = text,
                b'R' => fields.routine = text,
                _ => {}
            }
            body = rest;
        }
        fields
    }

    /// FATAL or PANIC: the server ends this connection.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }

    /// PostgreSQL gave up waiting for its synchronous standbys: the commit that follows is durable on the primary only. The message is
    /// localised; the routine is not (`SyncRepWaitForLSN` in syncrep.c).
    #[must_use]
    pub fn ends_sync_wait(&self) -> bool {
        self.routine == b"SyncRepWaitForLSN"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_it_was_written() {
        let mut out = Vec::new();
        put_error(&mut out, Severity::Fatal, "08007", "outcome unknown", Some("look"));
        assert_eq!(out[0], b'E');
        assert_eq!(u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize, out.len() - 1);
        let fields = Fields::read(&out[5..]);
        assert_eq!((fields.code, fields.message), (&b"08007"[..], &b"outcome unknown"[..]));
        assert!(fields.is_fatal());
    }

    #[test]
    fn a_cut_error_gives_what_it_has() {
        let mut out = Vec::new();
        put_error(&mut out, Severity::Error, "25006", "a long message that was cut", None);
        for cut in 5..out.len() {
            let fields = Fields::read(&out[5..cut]);
            assert!(fields.code.is_empty() || fields.code == b"25006");
        }
    }

    #[test]
    fn the_end_of_a_sync_wait_is_recognised_in_any_language() {
        let mut body = Vec::new();
        for (field, text) in [(b'V', "WARNING"), (b'C', "01000"), (b'M', "Warten abgebrochen"), (b'R', "SyncRepWaitForLSN")] {
            body.push(field);
            put_cstr(&mut body, text.as_bytes());
        }
        body.push(0);
        assert!(Fields::read(&body).ends_sync_wait());
    }
}
