//! The packet that opens a connection: a start-up message, or a request for TLS, GSS or a cancellation.

use super::cancel::CancelKey;
use super::message::{put, put_cstr, split_cstr};
use thiserror::Error;

/// PostgreSQL's MAX_STARTUP_PACKET_LENGTH.
pub const PACKET_BYTES_MAX: usize = 10_000;

const PROTOCOL_3_0: u32 = 3 << 16;
const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// What a peer opens with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// SSLRequest: answered with one byte.
    Tls,
    /// GSSENCRequest: answered with one byte.
    Gss,
    Cancel(CancelKey),
    Startup(Startup),
}

/// A start-up message. `database` is filled in from `user` when absent, as Postgres does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    pub user: String,
    pub database: String,
    /// Everything else that a server is to be given, in the client's order.
    pub parameters: Vec<(String, String)>,
    /// A minor version above 0, or protocol options (`_pq_.`): answered with NegotiateProtocolVersion.
    pub negotiate: Option<Vec<String>>,
}

/// Why an opening packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0")]
    Version { major: u32, minor: u32 },
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    #[error("a start-up parameter is not valid UTF-8")]
    Encoding,
}

impl StartupError {
    /// SQLSTATE, as Postgres reports it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            StartupError::NoUser => "28000",
            StartupError::Length | StartupError::Layout | StartupError::Version { .. } | StartupError::Encoding => "08P01",
        }
    }
}

/// Length of the body that follows the four bytes of a packet's length.
///
/// # Errors
/// Too short for a protocol number or longer than Postgres accepts.
pub fn body_len(length: [u8; 4]) -> Result<usize, StartupError> {
    let length = u32::from_be_bytes(length) as usize;
    if (8..=PACKET_BYTES_MAX).contains(&length) { Ok(length - 4) } else { Err(StartupError::Length) }
}

/// Reads the body (without its length).
///
/// # Errors
/// Not a packet that Postgres would accept.
pub fn read(body: &[u8]) -> Result<Opening, StartupError> {
    let (code, rest) = body.split_first_chunk::<4>().ok_or(StartupError::Length)?;
    match u32::from_be_bytes(*code) {
        TLS => Ok(Opening::Tls),
        GSS => Ok(Opening::Gss),
        CANCEL => CancelKey::read(rest).map(Opening::Cancel).ok_or(StartupError::Length),
        version if version >> 16 == 3 => read_parameters(version & 0xFFFF, rest).map(Opening::Startup),
        version => Err(StartupError::Version { major: version >> 16, minor: version & 0xFFFF }),
    }
}

fn read_parameters(minor: u32, mut rest: &[u8]) -> Result<Startup, StartupError> {
    let mut startup = Startup::default();
    let mut options = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| StartupError::Encoding);
    loop {
        let (name, after) = split_cstr(rest).ok_or(StartupError::Layout)?;
        if name.is_empty() {
            if !after.is_empty() {
                return Err(StartupError::Layout);
            }
            break;
        }
        let (value, after) = split_cstr(after).ok_or(StartupError::Layout)?;
        rest = after;
        match name {
            b"user" => startup.user = text(value)?,
            b"database" => startup.database = text(value)?,
            name if name.starts_with(b"_pq_.") => options.push(text(name)?),
            name => startup.parameters.push((text(name)?, text(value)?)),
        }
    }
    if startup.user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if startup.database.is_empty() {
        startup.database = startup.user.clone();
    }
    startup.negotiate = (minor > 0 || !options.is_empty()).then_some(options);
    Ok(startup)
}

impl Startup {
    /// The value of a parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A start-up message for a server.
#[must_use]
pub fn write<'a>(user: &'a str, database: &'a str, parameters: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut body = PROTOCOL_3_0.to_be_bytes().to_vec();
    for (name, value) in [("user", user), ("database", database)].into_iter().chain(parameters) {
        put_cstr(&mut body, name.as_bytes());
        put_cstr(&mut body, value.as_bytes());
    }
    body.push(0);
    with_length(&body)
}

/// A cancel request for a server.
#[must_use]
pub fn write_cancel(key: CancelKey) -> Vec<u8> {
    let mut body = CANCEL.to_be_bytes().to_vec();
    body.extend_from_slice(&key.pid.to_be_bytes());
    body.extend_from_slice(&key.secret.to_be_bytes());
    with_length(&body)
}

/// Appends NegotiateProtocolVersion: 3.0 is spoken and none of `options` is known.
pub fn put_negotiate(out: &mut Vec<u8>, options: &[String]) {
    put(out, b'v', |body| {
        body.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
        body.extend_from_slice(&u32::try_from(options.len()).unwrap_or(u32::MAX).to_be_bytes());
        for option in options {
            put_cstr(body, option.as_bytes());
        }
    });
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a start-up packet is at most 10,000 bytes and a little");
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn startup_reads_what_it_writes() {
        let bytes = write("app", "shop", [("application_name", "web"), ("TimeZone", "UTC")].into_iter());
        let length = body_len(bytes[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, bytes.len() - 4);
        let Opening::Startup(startup) = read(&bytes[4..]).unwrap() else { panic!("not a start-up") };
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("app", "shop"));
        assert_eq!(startup.parameter("TimeZone"), Some("UTC"));
        assert_eq!(startup.negotiate, None);
    }

    #[test]
    fn database_defaults_to_user_and_newer_minor_is_negotiated() {
        let mut body = (3u32 << 16 | 2).to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0app\0_pq_.future\x001\0\0");
        let Opening::Startup(startup) = read(&body).unwrap() else { panic!("not a start-up") };
        assert_eq!(startup.database, "app");
        assert_eq!(startup.negotiate, Some(vec!["_pq_.future".to_owned()]));
    }

    #[test]
    fn refusals_name_their_cause() {
        assert_eq!(body_len([0, 0, 0, 7]), Err(StartupError::Length));
        assert_eq!(body_len([0x7F, 0, 0, 0]), Err(StartupError::Length));
        assert_eq!(read(&[0, 2, 0, 0, 0]), Err(StartupError::Version { major: 2, minor: 0 }));
        assert_eq!(read(&[0, 3, 0, 0, 0]), Err(StartupError::NoUser));
        assert_eq!(read(&[0, 3, 0, 0, b'u']), Err(StartupError::Layout));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&body);
            let _ = read(&[&[0, 3, 0, 0], body.as_slice()].concat());
        }
    }
}
