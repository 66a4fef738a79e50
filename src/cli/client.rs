//! Calls to whichever node answers.

use super::args::Remote;
use super::config::{CliConfig, Tls};
use crate::proto::v1::Progress;
use crate::proto::v1::admin_client::AdminClient;
use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status, Streaming};

/// Exit codes; scripts hold on to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It was tried and did not succeed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Refused: the message says why and what would make it possible.
    Refused = 3,
    /// No quorum, or nobody answers. Nothing was changed.
    Unreachable = 4,
    /// It may or may not have taken effect.
    Unknown = 5,
}

/// What went wrong and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// All endpoints of a cluster.
pub(super) struct Client {
    pub config: CliConfig,
    tls: Option<ClientTlsConfig>,
}

pub(super) type Admin = AdminClient<Channel>;

impl Client {
    pub(super) fn new(remote: &Remote) -> Result<Client, Failure> {
        let config = CliConfig::find(remote)?;
        let tls = config.tls.as_ref().map(load_tls).transpose()?;
        Ok(Client { config, tls })
    }

    async fn connect(&self, address: &str) -> Result<Admin, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| "write it as HOST:PORT".to_owned())?;
        // An action may wait for minutes: a dead node is noticed by the keepalive, not by a limit on the call.
        let beat = Duration::from_secs(2);
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).http2_keep_alive_interval(beat).keep_alive_timeout(beat);
        let endpoint = match &self.tls {
            Some(tls) => endpoint.tls_config(tls.clone()).map_err(|e| e.to_string())?,
            None => endpoint,
        };
        let channel = timeout(CONNECT_TIMEOUT * 2, endpoint.connect()).await.map_err(|_| "no answer".to_owned())?;
        Ok(AdminClient::new(channel.map_err(|e| cause(&e, self.tls.is_some()))?))
    }

    /// Ask each endpoint in turn; the first answer that `good` accepts counts, else the first one of all.
    pub(super) async fn ask<T, F>(&self, good: impl Fn(&T) -> bool, call: impl Fn(Admin) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (mut failures, mut second_best) = (Vec::new(), None);
        for address in &self.config.endpoints {
            let answer = match self.connect(address).await {
                Ok(client) => timeout(READ_TIMEOUT, call(client)).await.unwrap_or_else(|_| Err(Status::unavailable("no answer in time"))),
                Err(why) => Err(Status::unavailable(why)),
            };
            match answer.map(Response::into_inner) {
                Ok(answer) if good(&answer) => return Ok(answer),
                Ok(answer) => drop(second_best.get_or_insert(answer)),
                Err(status) if lost_on_the_way(&status) => {
                    failures.push(format!("{address}: connection lost: {}", cause(&status, self.tls.is_some())))
                }
                Err(status) if status.code() == Code::Unavailable => failures.push(format!("{address}: {}", status.message())),
                Err(status) => return Err(failure(&status)),
            }
        }
        second_best.ok_or_else(|| unreachable(&failures))
    }

    /// Carry out a change; `call` sends the same request id each time, so that trying the next endpoint is safe (INV-12).
    pub(super) async fn change<F>(&self, call: impl Fn(Admin) -> F, mut told: impl FnMut(&str)) -> Result<String, Failure>
    where
        F: Future<Output = Result<Response<Streaming<Progress>>, Status>>,
    {
        let (mut failures, mut maybe_sent) = (Vec::new(), false);
        for address in &self.config.endpoints {
            let client = match self.connect(address).await {
                Ok(client) => client,
                Err(why) => {
                    failures.push(format!("{address}: {why}"));
                    continue;
                }
            };
            match follow(call(client), &mut told).await {
                Ok(line) => return Ok(line),
                Err(status) if lost_on_the_way(&status) => {
                    maybe_sent = true;
                    failures.push(format!("{address}: connection lost: {}", cause(&status, self.tls.is_some())));
                }
                Err(status) if status.code() == Code::Unavailable => failures.push(format!("{address}: {}", status.message())),
                Err(status) => return Err(failure(&status)),
            }
        }
        match maybe_sent {
            true => Err(Failure::new(
                Exit::Unknown,
                format!("the outcome is unknown: {}; look at `trilithon status` before trying again", failures.join("; ")),
            )),
            false => Err(unreachable(&failures)),
        }
    }

    /// Open a stream at the first endpoint that answers.
    pub(super) async fn open<T, F>(&self, call: impl Fn(Admin) -> F) -> Result<Streaming<T>, Failure>
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>>,
    {
        self.ask(|_| true, call).await
    }
}

async fn follow<F>(call: F, told: &mut impl FnMut(&str)) -> Result<String, Status>
where
    F: Future<Output = Result<Response<Streaming<Progress>>, Status>>,
{
    let mut stream = call.await?.into_inner();
    while let Some(progress) = stream.message().await? {
        if progress.done {
            return Ok(progress.message);
        }
        told(&progress.message);
    }
    Err(Status::deadline_exceeded("the node ended the call without an outcome; look at `trilithon status`"))
}

/// A status made by this side's transport, not sent by the node.
fn lost_on_the_way(status: &Status) -> bool {
    status.source().is_some()
}

fn unreachable(failures: &[String]) -> Failure {
    let text =
        format!("no node can answer ({}); check that `trilithon node` runs there and a majority of members is up", failures.join("; "));
    Failure::new(Exit::Unreachable, text)
}

/// The exit code that a node's answer stands for.
pub(super) fn failure(status: &Status) -> Failure {
    let exit = match status.code() {
        Code::InvalidArgument => Exit::Usage,
        Code::FailedPrecondition | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated => Exit::Refused,
        Code::Unavailable => Exit::Unreachable,
        Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => Exit::Unknown,
        Code::Unimplemented => {
            return Failure::new(Exit::Failed, "the node does not know this verb: it runs an older version; see `trilithon version`");
        }
        Code::Ok | Code::Aborted | Code::AlreadyExists | Code::OutOfRange | Code::ResourceExhausted => Exit::Failed,
    };
    Failure::new(exit, status.message())
}

/// The innermost cause says what happened; the outer layers only say that something did.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn cause(error: &dyn std::error::Error, tls: bool) -> String {
    let text = innermost(error);
    match (text.contains("refused"), tls) {
        (true, _) => "connection refused".to_owned(),
        (false, true) => text,
        (false, false) => format!("{text} (if the cluster uses TLS, the file named with --config needs `tls = {{ ca, cert, key }}`)"),
    }
}

fn load_tls(tls: &Tls) -> Result<ClientTlsConfig, Failure> {
    let read = |path: &std::path::Path| {
        std::fs::read(path)
            .map_err(|e| Failure::new(Exit::Usage, format!("{}: cannot read it: {e}; `trilithon certs issue` makes it", path.display())))
    };
    let identity = Identity::from_pem(read(&tls.cert)?, read(&tls.key)?);
    Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?)).identity(identity))
}
