//! SCRAM-SHA-256 (RFC 5802, RFC 7677) on both sides, without ever knowing a password.
//!
//! Towards a client the proxy plays the server with the verifier that Postgres stores. A proof that verifies reveals ClientKey, and with
//! it the proxy plays the client towards any server that holds the same verifier: roles replicate, so that is each member.
//!
//! Channel binding is not offered: it needs TLS on the client's side. Nonces are arguments.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The only mechanism.
pub const MECHANISM: &str = "SCRAM-SHA-256";

type Key = [u8; 32];

/// What `pg_authid.rolpassword` holds: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    /// Base64, as sent.
    salt: String,
    stored_key: Key,
    server_key: Key,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(..)")
    }
}

/// What a verified client lets the proxy do: log in as that user wherever the verifier is the same.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKeys {
    client_key: Key,
    stored_key: Key,
    server_key: Key,
}

impl std::fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientKeys(..)")
    }
}

/// Why an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ScramError {
    #[error("malformed SCRAM message")]
    Malformed,
    #[error("the client requires channel binding, which needs TLS; connect with channel_binding=disable")]
    ChannelBinding,
    #[error("the proof does not fit the verifier")]
    WrongProof,
    #[error("the server's signature is wrong: it does not know this user's verifier")]
    WrongServer,
    #[error("the server refused: {0:?}")]
    Refused(ServerRefusal),
}

/// `e=` of a server-final message, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerRefusal {
    InvalidProof,
    Other,
}

impl Verifier {
    /// Reads `rolpassword`; `None` for md5 and anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Verifier> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (parameters, keys) = rest.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text: &str| BASE64.decode(text).ok().and_then(|bytes| Key::try_from(bytes).ok());
        BASE64.decode(salt).ok()?;
        let iterations = iterations.parse().ok().filter(|n| *n > 0)?;
        Some(Verifier { iterations, salt: salt.to_owned(), stored_key: key(stored)?, server_key: key(server)? })
    }

    /// A verifier that no password fits, for a user that does not exist: the same salt at each attempt, so that the answer does not tell.
    #[must_use]
    pub fn mock(secret: &[u8], user: &str) -> Verifier {
        let salt = mac(secret, &[b"salt", user.as_bytes()]);
        let stored_key = mac(secret, &[b"stored", user.as_bytes()]);
        // 4096 is PostgreSQL's SCRAM_SHA_256_DEFAULT_ITERATIONS, 16 bytes its salt.
        Verifier { iterations: 4096, salt: BASE64.encode(&salt[..16]), stored_key, server_key: mac(secret, &[b"server"]) }
    }

    /// Makes a verifier from a password (which the caller has prepared with SASLprep).
    #[must_use]
    pub fn from_password(password: &[u8], salt: &[u8], iterations: u32) -> Verifier {
        let salted = salted_password(password, salt, iterations);
        let client_key = mac(&salted, &[b"Client Key"]);
        Verifier {
            iterations,
            salt: BASE64.encode(salt),
            stored_key: Sha256::digest(client_key).into(),
            server_key: mac(&salted, &[b"Server Key"]),
        }
    }
}

/// The server's side, after client-first.
pub struct ServerExchange {
    verifier: Verifier,
    client_first_bare: String,
    gs2_header: String,
    nonce: String,
    server_first: String,
}

impl ServerExchange {
    /// Reads client-first; `server_nonce` must be fresh, printable and without commas.
    ///
    /// # Errors
    /// Malformed, or channel binding demanded.
    pub fn begin(verifier: Verifier, client_first: &[u8], server_nonce: &str) -> Result<ServerExchange, ScramError> {
        let text = std::str::from_utf8(client_first).map_err(|_| ScramError::Malformed)?;
        let mut parts = text.splitn(3, ',');
        let (flag, authzid, bare) = match (parts.next(), parts.next(), parts.next()) {
            (Some(flag), Some(authzid), Some(bare)) => (flag, authzid, bare),
            _ => return Err(ScramError::Malformed),
        };
        // "y" means: the client could bind but believes that the server cannot. Without TLS that is true.
        match flag {
            "n" | "y" if authzid.is_empty() => {}
            flag if flag.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(ScramError::Malformed),
        }
        let client_nonce = bare.split(',').find_map(|part| part.strip_prefix("r=")).filter(|r| !r.is_empty());
        if bare.starts_with("m=") {
            return Err(ScramError::Malformed);
        }
        let nonce = format!("{}{server_nonce}", client_nonce.ok_or(ScramError::Malformed)?);
        let server_first = format!("r={nonce},s={},i={}", verifier.salt, verifier.iterations);
        Ok(ServerExchange { verifier, client_first_bare: bare.to_owned(), gs2_header: format!("{flag},,"), nonce, server_first })
    }

    /// server-first.
    #[must_use]
    pub fn server_first(&self) -> &str {
        &self.server_first
    }

    /// Checks client-final; gives server-final and the client's keys.
    ///
    /// # Errors
    /// Malformed, or the proof is wrong.
    pub fn finish(self, client_final: &[u8]) -> Result<(String, ClientKeys), ScramError> {
        let text = std::str::from_utf8(client_final).map_err(|_| ScramError::Malformed)?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let proof = BASE64.decode(proof).ok().and_then(|p| Key::try_from(p).ok()).ok_or(ScramError::Malformed)?;
        let mut parts = without_proof.split(',');
        let binding = parts.next().and_then(|p| p.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        let nonce = parts.next().and_then(|p| p.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if binding != BASE64.encode(&self.gs2_header) || nonce != self.nonce {
            return Err(ScramError::Malformed);
        }
        let message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let client_key = xor(&mac(&self.verifier.stored_key, &[message.as_bytes()]), &proof);
        let stored: Key = Sha256::digest(client_key).into();
        if !equal(&stored, &self.verifier.stored_key) {
            return Err(ScramError::WrongProof);
        }
        let signature = mac(&self.verifier.server_key, &[message.as_bytes()]);
        let keys = ClientKeys { client_key, stored_key: self.verifier.stored_key, server_key: self.verifier.server_key };
        Ok((format!("v={}", BASE64.encode(signature)), keys))
    }
}

/// The client's side towards a server.
pub struct ClientExchange {
    keys: ClientKeys,
    client_first_bare: String,
    expected: Option<Key>,
}

impl ClientExchange {
    /// `client_nonce` must be fresh, printable and without commas.
    #[must_use]
    pub fn begin(keys: ClientKeys, client_nonce: &str) -> ClientExchange {
        // Postgres takes the user from the start-up message and ignores the one here.
        ClientExchange { keys, client_first_bare: format!("n=,r={client_nonce}"), expected: None }
    }

    /// client-first.
    #[must_use]
    pub fn client_first(&self) -> String {
        format!("n,,{}", self.client_first_bare)
    }

    /// Reads server-first, gives client-final. Salt and iterations play no part: the key is known.
    ///
    /// # Errors
    /// Malformed, or the server does not continue our nonce.
    pub fn client_final(&mut self, server_first: &[u8]) -> Result<String, ScramError> {
        let text = std::str::from_utf8(server_first).map_err(|_| ScramError::Malformed)?;
        let nonce = text.split(',').find_map(|part| part.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        let ours = self.client_first_bare.strip_prefix("n=,r=").unwrap_or_default();
        if !nonce.starts_with(ours) || nonce.len() == ours.len() {
            return Err(ScramError::Malformed);
        }
        // "biws" is base64 of "n,,".
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{text},{without_proof}", self.client_first_bare);
        let proof = xor(&self.keys.client_key, &mac(&self.keys.stored_key, &[message.as_bytes()]));
        self.expected = Some(mac(&self.keys.server_key, &[message.as_bytes()]));
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
    }

    /// Checks server-final: the server knows the verifier too.
    ///
    /// # Errors
    /// Refused, malformed, or a wrong signature.
    pub fn finish(&self, server_final: &[u8]) -> Result<(), ScramError> {
        let text = std::str::from_utf8(server_final).map_err(|_| ScramError::Malformed)?;
        if let Some(error) = text.strip_prefix("e=") {
            let refusal = if error == "invalid-proof" { ServerRefusal::InvalidProof } else { ServerRefusal::Other };
            return Err(ScramError::Refused(refusal));
        }
        let signature = text.strip_prefix("v=").and_then(|v| BASE64.decode(v).ok()).and_then(|v| Key::try_from(v).ok());
        match (signature, self.expected) {
            (Some(theirs), Some(ours)) if equal(&theirs, &ours) => Ok(()),
            (Some(_), Some(_)) => Err(ScramError::WrongServer),
            _ => Err(ScramError::Malformed),
        }
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Hi() of RFC 5802, which is PBKDF2 with one block.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let mut block = mac(password, &[salt, &1u32.to_be_bytes()]);
    let mut sum = block;
    for _ in 1..iterations {
        block = mac(password, &[&block]);
        sum = xor(&sum, &block);
    }
    sum
}

fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// Compares without telling by its time where the difference lies.
fn equal(a: &Key, b: &Key) -> bool {
    a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn rfc_7677_verifier() -> Verifier {
        Verifier::from_password(b"pencil", &BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096)
    }

    #[test]
    fn rfc_7677_example_verifies() {
        let exchange = ServerExchange::begin(rfc_7677_verifier(), CLIENT_FIRST.as_bytes(), SERVER_NONCE).unwrap();
        assert_eq!(exchange.server_first(), "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        let (server_final, _) = exchange.finish(CLIENT_FINAL.as_bytes()).unwrap();
        assert_eq!(server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_changed_proof_nonce_or_binding_is_refused() {
        for (from, to, error) in [
            ("p=dHz", "p=dHy", ScramError::WrongProof),
            ("r=rOp", "r=rOq", ScramError::Malformed),
            ("c=biws", "c=eSws", ScramError::Malformed),
            (",p=", ",q=", ScramError::Malformed),
        ] {
            let exchange = ServerExchange::begin(rfc_7677_verifier(), CLIENT_FIRST.as_bytes(), SERVER_NONCE).unwrap();
            assert_eq!(exchange.finish(CLIENT_FINAL.replace(from, to).as_bytes()).err(), Some(error), "{from}");
        }
        let bound = ServerExchange::begin(rfc_7677_verifier(), b"p=tls-server-end-point,,n=,r=abc", SERVER_NONCE);
        assert_eq!(bound.err(), Some(ScramError::ChannelBinding));
    }

    #[test]
    fn a_mock_verifier_keeps_its_salt_and_fits_nobody() {
        let begin = || ServerExchange::begin(Verifier::mock(b"secret", "nobody"), CLIENT_FIRST.as_bytes(), SERVER_NONCE).unwrap();
        assert_eq!(begin().server_first(), begin().server_first());
        assert_eq!(begin().finish(CLIENT_FINAL.as_bytes()).err(), Some(ScramError::WrongProof));
    }

    #[test]
    fn verifier_text_is_read_strictly() {
        let good = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(Verifier::parse(good), Some(rfc_7677_verifier()));
        for bad in ["md5abc", "", "SCRAM-SHA-256$0:YQ==$YQ==:YQ==", &good[..60]] {
            assert_eq!(Verifier::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn keys_taken_from_a_proof_log_in_elsewhere(password in "[ -~]{1,20}", salt in any::<[u8; 16]>(), nonces in "[a-z]{40}") {
            let verifier = Verifier::from_password(password.as_bytes(), &salt, 2);
            let salted = salted_password(password.as_bytes(), &salt, 2);
            let client_key = mac(&salted, &[b"Client Key"]);
            let own = ClientKeys { client_key, stored_key: verifier.stored_key, server_key: verifier.server_key };
            let mut keys = own;
            // Twice: the client towards the proxy, then the proxy with the keys it learned towards a server.
            for _ in 0..2 {
                let mut client = ClientExchange::begin(keys.clone(), &nonces[..20]);
                let server = ServerExchange::begin(verifier.clone(), client.client_first().as_bytes(), &nonces[20..]).unwrap();
                let client_final = client.client_final(server.server_first().as_bytes()).unwrap();
                let (server_final, learned) = server.finish(client_final.as_bytes()).unwrap();
                prop_assert_eq!(client.finish(server_final.as_bytes()), Ok(()));
                prop_assert_eq!(client.finish(b"v=AAAA"), Err(ScramError::Malformed));
                keys = learned;
            }
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = ServerExchange::begin(rfc_7677_verifier(), &bytes, "abc");
            let exchange = ServerExchange::begin(rfc_7677_verifier(), CLIENT_FIRST.as_bytes(), SERVER_NONCE).unwrap();
            prop_assert!(exchange.finish(&bytes).is_err());
            let _ = Verifier::parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
