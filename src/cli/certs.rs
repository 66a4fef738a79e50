//! `trilithon certs`: a small certificate authority for the mutual TLS of one cluster.
//!
//! The organisational unit (OU) of a certificate is its bearer's role: peer, operator or reader; its common name says who it is.
//! Keys are ECDSA P-256, files of mode 0600, and nothing is ever overwritten. Deliberately absent: revocation; take a short
//! life, or a new authority.

use super::args::{CertificateRole, CertsInitArgs, CertsIssueArgs, CertsVerb};
use super::client::{Exit, Failure};
use super::files::create;
use super::render::BOLD;
use crate::telemetry::wall_clock;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn run(verb: &CertsVerb) -> Result<(), Failure> {
    match verb {
        CertsVerb::Init(args) => init(args),
        CertsVerb::Issue(args) => issue(args),
    }
}

fn wrong(error: &rcgen::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot make the certificate: {error}"))
}

fn ca_files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("ca.pem"), dir.join("ca.key"))
}

fn init(args: &CertsInitArgs) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, format!("cannot create {}: {e}", args.dir.display()));
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    let key = KeyPair::generate().map_err(|e| wrong(&e))?;
    let mut params = CertificateParams::new(Vec::new()).map_err(|e| wrong(&e))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Trilithon authority");
    limit(&mut params, args.days);
    let certificate = params.self_signed(&key).map_err(|e| wrong(&e))?;
    let (ca, ca_key) = ca_files(&args.dir);
    // The key first: a certificate without its key would only look like an authority.
    create(&ca_key, &key.serialize_pem(), 0o600)?;
    create(&ca, &certificate.pem(), 0o600)?;
    let dir = args.dir.display();
    anstream::println!("created {BOLD}{}{BOLD:#} and {}; keep the key offline", ca.display(), ca_key.display());
    anstream::println!("next: trilithon certs issue dc1 --san HOST --dir {dir}   (one per node)");
    anstream::println!("      trilithon certs issue NAME --role operator --dir {dir}   (one per administrator)");
    Ok(())
}

fn issue(args: &CertsIssueArgs) -> Result<(), Failure> {
    if args.name.is_empty() || args.name == "ca" || args.name.contains(['/', '\0']) {
        return Err(Failure::new(Exit::Usage, format!("{:?} cannot be a file's name; choose another", args.name)));
    }
    let (ca, ca_key) = ca_files(&args.dir);
    let read = |path: &Path| {
        let missing = |e| Failure::new(Exit::Refused, format!("cannot read {}: {e}; `trilithon certs init` creates it", path.display()));
        std::fs::read_to_string(path).map_err(missing)
    };
    let signing = KeyPair::from_pem(&read(&ca_key)?).map_err(|e| wrong(&e))?;
    let issuer = Issuer::from_ca_cert_pem(&read(&ca)?, signing).map_err(|e| wrong(&e))?;
    let key = KeyPair::generate().map_err(|e| wrong(&e))?;
    let certificate = params(args)?.signed_by(&key, &issuer).map_err(|e| wrong(&e))?;
    let file = |ending: &str| args.dir.join(format!("{}.{ending}", args.name));
    create(&file("key"), &key.serialize_pem(), 0o600)?;
    create(&file("pem"), &certificate.pem(), 0o600)?;
    let (ca, cert, key) = (ca.display(), file("pem"), file("key"));
    anstream::println!("created {BOLD}{}{BOLD:#} and {}", cert.display(), key.display());
    match args.role {
        CertificateRole::Peer => anstream::println!("copy them with {ca} to the node, and name them under [api.tls] in its configuration"),
        CertificateRole::Operator | CertificateRole::Reader => {
            anstream::println!("copy them with {ca}, and write in trilithon-cli.toml:");
            anstream::println!("  tls = {{ ca = \"{ca}\", cert = \"{}\", key = \"{}\" }}", cert.display(), key.display());
        }
    }
    Ok(())
}

fn params(args: &CertsIssueArgs) -> Result<CertificateParams, Failure> {
    let is_peer = args.role == CertificateRole::Peer;
    // Members serve as well as call; on the machine itself they are also called by a loopback address.
    let own = [args.name.as_str(), "localhost", "127.0.0.1", "::1"].into_iter().filter(|_| is_peer);
    let sans: Vec<String> = own.map(str::to_owned).chain(args.sans.iter().cloned()).collect();
    let mut params = CertificateParams::new(sans)
        .map_err(|e| Failure::new(Exit::Usage, format!("{:?}: {e}; write host names and addresses without ports", args.sans)))?;
    let (unit, usages) = match args.role {
        CertificateRole::Peer => ("peer", vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]),
        CertificateRole::Operator => ("operator", vec![ExtendedKeyUsagePurpose::ClientAuth]),
        CertificateRole::Reader => ("reader", vec![ExtendedKeyUsagePurpose::ClientAuth]),
    };
    params.distinguished_name.push(DnType::CommonName, args.name.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
    params.extended_key_usages = usages;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    limit(&mut params, args.days);
    Ok(params)
}

/// From a day ago, since clocks of machines differ, for `days` days.
fn limit(params: &mut CertificateParams, days: u32) {
    let epoch = date_time_ymd(1970, 1, 1);
    let now = wall_clock();
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + DAY * days;
}
