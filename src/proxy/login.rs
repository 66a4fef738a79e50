//! A client's way in: opening packet, SCRAM against the verifier that Postgres holds, and the greeting.
//!
//! TLS is answered with 'N': the place to offer it is `opening`. An unknown user is led through the whole exchange with a mock
//! salt and fails at its end exactly as a wrong password does.

use super::cancel;
use super::config::PoolMode;
use super::server::{Role, Variant, keep_alive};
use super::session::{Door, Session};
use super::shared::Shared;
use crate::wire::cancel::CancelKey;
use crate::wire::message::{Severity, TxStatus, put, put_error, put_parameter, put_ready};
use crate::wire::scram::{ClientKeys, MECHANISM, ScramError, ServerExchange, Verifier};
use crate::wire::startup::{self, Opening, Startup};
use base64::Engine as _;
use rand::Rng;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Who the client is, and with what key the proxy logs in for it.
pub struct Identity {
    pub user: String,
    pub database: String,
    pub keys: ClientKeys,
    pub mode: PoolMode,
    /// Variants of server connections, for each role.
    pub primary: Arc<Variant>,
    pub reader: Arc<Variant>,
}

/// Why a login ended without a session.
enum Refusal {
    /// The peer went away or asked for nothing more.
    Gone,
    /// Told to the client.
    Said { code: &'static str, message: String },
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Refusal::Gone
    }
}

fn refuse(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal::Said { code, message: message.into() }
}

/// A client whose machine is gone without a word gives its server back after a minute and a half.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// SASL messages are short; more than this is not one.
const SASL_BYTES_MAX: usize = 4096;

/// Serves one connection from its first byte to its last.
pub async fn serve(shared: Arc<Shared>, worker: usize, door: Door, mut stream: TcpStream) {
    let timeout = shared.config.login_timeout;
    match tokio::time::timeout(timeout, enter(&shared, &mut stream)).await {
        Ok(Ok(identity)) => {
            let (key, slot) = shared.slots.insert(|| CancelKey::issue(shared.node, shared.session_number(), rand::rng().random()));
            let session = Session::new(Arc::clone(&shared), worker, door, stream, identity, slot);
            session.run(key).await;
            shared.slots.remove(key);
        }
        Ok(Err(Refusal::Said { code, message })) => {
            let mut out = Vec::new();
            put_error(&mut out, Severity::Fatal, code, &message, None);
            // The client may not wait for it.
            let _ = tokio::time::timeout(timeout, stream.write_all(&out)).await;
        }
        Ok(Err(Refusal::Gone)) | Err(_) => {}
    }
}

async fn enter(shared: &Arc<Shared>, stream: &mut TcpStream) -> Result<Identity, Refusal> {
    stream.set_nodelay(true)?;
    keep_alive(stream, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL)?;
    let startup = opening(shared, stream).await?;
    if startup.parameter("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return Err(refuse("08004", "the proxy does not carry replication connections; connect to Postgres itself"));
    }
    let mut out = Vec::new();
    if let Some(options) = &startup.negotiate {
        startup::put_negotiate(&mut out, options);
    }
    let keys = authenticate(shared, stream, &startup.user, out).await?;
    let (mode, _) = shared.config.pool(&startup.database, &startup.user);
    let parameters: Vec<_> = startup.parameters.into_iter().filter(|(name, _)| name != "replication").collect();
    let variant = |role| Arc::new(Variant { role, parameters: parameters.clone() });
    Ok(Identity {
        user: startup.user,
        database: startup.database,
        keys,
        mode,
        primary: variant(Role::Primary),
        reader: variant(Role::Reader),
    })
}

/// Up to the start-up message.
async fn opening(shared: &Shared, stream: &mut TcpStream) -> Result<Startup, Refusal> {
    // Each of TLS and GSS may be asked for once.
    for _ in 0..3 {
        let mut length = [0u8; 4];
        stream.read_exact(&mut length).await?;
        let refused = |error: startup::StartupError| refuse(error.code(), error.to_string());
        let mut body = vec![0; startup::body_len(length).map_err(refused)?];
        stream.read_exact(&mut body).await?;
        match startup::read(&body).map_err(refused)? {
            Opening::Tls | Opening::Gss => stream.write_all(b"N").await?,
            Opening::Cancel(key) => {
                cancel::serve(&shared.slots, &shared.control, key).await;
                return Err(Refusal::Gone);
            }
            Opening::Startup(startup) => return Ok(startup),
        }
    }
    Err(refuse("08P01", "too many requests for encryption"))
}

async fn authenticate(shared: &Shared, stream: &mut TcpStream, user: &str, mut out: Vec<u8>) -> Result<ClientKeys, Refusal> {
    put(&mut out, b'R', |body| {
        body.extend_from_slice(&10u32.to_be_bytes());
        body.extend_from_slice(MECHANISM.as_bytes());
        body.extend_from_slice(&[0, 0]);
    });
    stream.write_all(&out).await?;
    let initial = sasl_message(stream).await?;
    let client_first = initial_response(&initial).ok_or_else(|| refuse("08P01", "malformed SASL initial response"))?;
    let verifier = shared.verifiers.get(user).await.map_err(|error| refuse("08006", error.to_string()))?;
    let is_known = verifier.is_some();
    let verifier = verifier.unwrap_or_else(|| Verifier::mock(&shared.mock_secret, user));
    let failed = || refuse("28P01", format!("password authentication failed for user \"{user}\""));
    let scram = |error: ScramError| match error {
        ScramError::WrongProof => {
            shared.verifiers.forget(user);
            failed()
        }
        other => refuse("08P01", other.to_string()),
    };
    let nonce = nonce();
    let exchange = ServerExchange::begin(verifier, client_first, &nonce).map_err(scram)?;
    stream.write_all(&sasl(11, exchange.server_first().as_bytes())).await?;
    let (server_final, keys) = exchange.finish(&sasl_message(stream).await?).map_err(scram)?;
    if !is_known {
        return Err(failed());
    }
    let mut out = sasl(12, server_final.as_bytes());
    put(&mut out, b'R', |body| body.extend_from_slice(&0u32.to_be_bytes()));
    stream.write_all(&out).await?;
    Ok(keys)
}

/// 18 random bytes in base64, as Postgres draws them.
#[must_use]
pub fn nonce() -> String {
    base64::engine::general_purpose::STANDARD.encode(rand::rng().random::<[u8; 18]>())
}

fn sasl(code: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, b'R', |body| {
        body.extend_from_slice(&code.to_be_bytes());
        body.extend_from_slice(data);
    });
    out
}

fn initial_response(body: &[u8]) -> Option<&[u8]> {
    let (mechanism, rest) = crate::wire::message::split_cstr(body)?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    let fits = mechanism == MECHANISM.as_bytes() && u32::from_be_bytes(*length) as usize == data.len();
    fits.then_some(data)
}

async fn sasl_message(stream: &mut TcpStream) -> Result<Vec<u8>, Refusal> {
    let mut header = [0u8; 5];
    stream.read_exact(&mut header).await?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if header[0] != b'p' || !(4..=SASL_BYTES_MAX).contains(&length) {
        return Err(refuse("08P01", "expected a SASL response"));
    }
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// ParameterStatus for each setting, BackendKeyData, ReadyForQuery.
pub fn put_greeting(out: &mut Vec<u8>, parameters: &super::server::Parameters, key: CancelKey) {
    for (name, value) in parameters {
        put_parameter(out, name, value);
    }
    put(out, b'K', |body| {
        body.extend_from_slice(&key.pid.to_be_bytes());
        body.extend_from_slice(&key.secret.to_be_bytes());
    });
    put_ready(out, TxStatus::Idle);
}
