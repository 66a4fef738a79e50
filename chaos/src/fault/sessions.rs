//! Client sessions of a fault's own, in a datacenter's runtime: held open, busy, or merely knocking. They end when the fault heals.

use super::aim::Target;
use super::injected::{Ctx, Injected};
use anyhow::{Context as _, Result, anyhow, bail};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_util::sync::CancellationToken;

/// A statement that opens a fault's situation.
const STATEMENT_LIMIT: Duration = Duration::from_secs(8);

/// Counts what sessions lived through.
#[derive(Clone, Default)]
pub struct Tally(Arc<AtomicU64>);

impl Tally {
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where and as whom to log in.
#[derive(Clone)]
pub struct Login {
    pub address: SocketAddr,
    password: String,
}

impl Login {
    /// Superuser at `port` of the datacenter that the session lives in.
    pub fn at(i: &Injected<'_>, port: u16) -> Login {
        Login::of(i.ctx, port)
    }

    /// The same without a fault.
    pub fn of(ctx: &Ctx<'_>, port: u16) -> Login {
        Login { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), password: ctx.cluster.password().to_owned() }
    }

    /// Log in and do `work`; the connection is driven meanwhile.
    pub async fn with<T>(&self, work: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T> {
        let connecting = TcpStream::connect(self.address);
        let stream = tokio::time::timeout(STATEMENT_LIMIT, connecting).await.context("no connection within 8 s")??;
        self.over(stream, work).await
    }

    /// The same over a stream of the caller's.
    pub async fn over<S, T>(&self, stream: S, work: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut config = Config::new();
        // Named as the workload's own clients: a proxy gives a server connection only to clients with equal parameters.
        config.user("postgres").password(&self.password).dbname("postgres").application_name("chaos").ssl_mode(SslMode::Disable);
        let in_words = |error: Error| anyhow!(crate::cluster::in_words(&error));
        let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(in_words)?;
        tokio::select! {
            done = work(&client) => done.map_err(in_words),
            ended = connection => match ended {
                Ok(()) => bail!("the server closed the connection"),
                Err(error) => Err(in_words(error)),
            },
        }
    }
}

/// Ends all sessions of a fault; a token for futures that are to end with it.
pub fn until_heal(i: &mut Injected<'_>) -> CancellationToken {
    let token = CancellationToken::new();
    let stop = token.clone();
    i.undo("end its sessions", move || {
        stop.cancel();
        Ok(())
    });
    token
}

/// Run `statements` in a session on the target's own Postgres, and keep it open. Returns when all were answered.
///
/// # Errors
/// One failed, or was not answered in eight seconds.
pub fn hold<'a>(i: &mut Injected<'a>, target: Target<'a>, statements: &'static [&'static str]) -> Result<()> {
    let port = i.ctx.cluster.ports().postgres;
    hold_at(i, target, port, statements)
}

/// The same at any port of the target's datacenter.
///
/// # Errors
/// As of [`hold`].
pub fn hold_at<'a>(i: &mut Injected<'a>, target: Target<'a>, port: u16, statements: &'static [&'static str]) -> Result<()> {
    let (login, token) = (Login::at(i, port), until_heal(i));
    let (answered, answer) = tokio::sync::oneshot::channel();
    let session = move || async move {
        let mut answered = Some(answered);
        let kept = login.with(async |client| {
            for statement in statements {
                client.simple_query(statement).await?;
            }
            let _ = answered.take().map(|a| a.send(Ok(())));
            token.cancelled().await;
            Ok(())
        });
        let ended = kept.await;
        if let (Some(answered), Err(error)) = (answered, ended) {
            let _ = answered.send(Err(error));
        }
    };
    drop(target.site.runtime().spawn(session));
    let waited = target.site.runtime().spawn(move || tokio::time::timeout(STATEMENT_LIMIT, answer));
    let heard = waited.blocking_recv().context("the datacenter's runtime has ended")?;
    heard.context("no answer within 8 s")?.context("the session ended")?.with_context(|| format!("on {}", target.name()))
}

/// Run `sql` over and over in `sessions` sessions on the target's own Postgres until the fault heals; errors are what it is for.
pub fn run<'a>(i: &mut Injected<'a>, target: Target<'a>, sql: &'static str, sessions: usize) -> (Tally, Tally) {
    let port = i.ctx.cluster.ports().postgres;
    run_at(i, target, port, sql, sessions)
}

/// The same at any port of the target's datacenter. Counts successes and failures.
pub fn run_at<'a>(i: &mut Injected<'a>, target: Target<'a>, port: u16, sql: &'static str, sessions: usize) -> (Tally, Tally) {
    const PAUSE: Duration = Duration::from_millis(100);
    let token = until_heal(i);
    let (done, failed) = (Tally::default(), Tally::default());
    for _ in 0..sessions {
        let (login, token, done, failed) = (Login::at(i, port), token.clone(), done.clone(), failed.clone());
        let session = move || async move {
            let toil = async {
                loop {
                    let once = login.with(async |client| {
                        loop {
                            client.simple_query(sql).await?;
                            done.add();
                            tokio::time::sleep(PAUSE).await;
                        }
                    });
                    let _: Result<()> = once.await;
                    failed.add();
                    tokio::time::sleep(PAUSE).await;
                }
            };
            let _: Option<()> = token.run_until_cancelled(toil).await;
        };
        drop(target.site.runtime().spawn(session));
    }
    (done, failed)
}

/// Open `count` TCP connections to the target's proxy, say nothing, and keep them.
///
/// # Errors
/// The datacenter's runtime has ended.
pub fn knock<'a>(i: &mut Injected<'a>, target: Target<'a>, count: usize) -> Result<Tally> {
    let (address, token) = (SocketAddr::from((Ipv4Addr::LOCALHOST, i.ctx.cluster.ports().primary)), until_heal(i));
    let open = Tally::default();
    let opened = open.clone();
    let session = move || async move {
        let mut kept = Vec::with_capacity(count);
        for _ in 0..count {
            if let Ok(Ok(stream)) = tokio::time::timeout(STATEMENT_LIMIT, TcpStream::connect(address)).await {
                opened.add();
                kept.push(stream);
            }
            if token.is_cancelled() {
                return;
            }
        }
        token.cancelled().await;
    };
    drop(target.site.runtime().spawn(session));
    Ok(open)
}
