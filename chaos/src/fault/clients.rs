//! Faults of clients: too many, too slow, too large, too rude. The cluster's other clients must hardly notice.

use super::aim::Target;
use super::injected::Injected;
use super::kinds::{Aim, Family, Fault, Phase};
use super::sessions::{self, Login, Tally};
use anyhow::Result;
use rand::Rng as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const fn fault(name: &'static str, about: &'static str, inject: super::kinds::Inject) -> Fault {
    Fault::new(Family::Clients, name, Aim::Clients, about, inject)
}

const DURING_CHANGES: &[Phase] = &[Phase::Steady, Phase::Election, Phase::Promotion, Phase::Drain];

pub(super) const FAULTS: &[Fault] = &[
    fault("connection-storm", "Ten thousand clients connect to one proxy at once, log in and stay: more than it admits.", storm)
        .hold(10, 30)
        .phases(DURING_CHANGES),
    fault("reconnect-herd", "Hundreds of clients lose their connections at the same instant and come back, again and again.", herd)
        .hold(10, 30)
        .phases(DURING_CHANGES),
    fault("slow-readers", "Clients ask for 64 MB each and read a few bytes a second.", slow_readers).hold(10, 30).phases(DURING_CHANGES),
    fault("half-open-clients", "Clients stop in the middle of a message and are silent from then on.", half_open).hold(10, 30),
    fault(
        "idle-in-transaction-herd",
        "Clients take every server connection of a proxy's pool into transactions and do nothing.",
        idle_herd,
    )
    .hold(8, 20)
    .phases(&[Phase::Steady, Phase::Drain]),
    fault("huge-parameters", "Statements with parameters of 5 MB each.", huge).hold(8, 20).phases(DURING_CHANGES),
    fault("malformed-startup", "Startup packets with wrong lengths, versions and contents, and plain noise.", malformed).hold(5, 15),
    fault("cancel-requests-of-strangers", "Hundreds of cancel requests a second with keys that nobody was given.", strangers).hold(5, 15),
    fault("connections-exhausted", "Superusers take every connection that Postgres of the primary has, past the proxies.", exhaust)
        .hold(10, 30)
        .phases(DURING_CHANGES),
];

/// Start `session` as many times in each datacenter, all within a second.
fn everywhere<F: Future<Output = ()> + 'static>(
    i: &mut Injected<'_>,
    count_in_all: usize,
    session: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<()> {
    let targets = i.all_targets();
    from(i, &targets, count_in_all, session)
}

/// The same, in some of the datacenters.
fn from<F: Future<Output = ()> + 'static>(
    i: &mut Injected<'_>,
    targets: &[Target<'_>],
    count_in_all: usize,
    session: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<()> {
    let token = sessions::until_heal(i);
    for (at, target) in targets.iter().enumerate() {
        let (token, session) = (token.clone(), session.clone());
        let numbers: Vec<usize> = (at..count_in_all).step_by(targets.len()).collect();
        let all = move || async move {
            let mut set = tokio::task::JoinSet::new();
            for number in numbers {
                set.spawn_local(session(number));
            }
            let ended = async { while set.join_next().await.is_some() {} };
            let _: Option<()> = token.run_until_cancelled(ended).await;
        };
        drop(target.site.runtime().spawn(all));
    }
    Ok(())
}

fn prove_count<'a>(i: &mut Injected<'a>, tally: Tally, least: u64, words: &'static str) {
    i.prove(format!("{least} {words}"), move || (tally.get() >= least).then(|| format!("{} {words}", tally.get())));
}

fn storm(i: &mut Injected<'_>) -> Result<()> {
    let (count, login) = (i.ctx.scale.connections, Login::at(i, i.ctx.cluster.ports().primary));
    let (inside, refused) = (Tally::default(), Tally::default());
    let counting = (inside.clone(), refused.clone());
    // All at one proxy: spread over three, none of them would have to refuse anybody.
    let targets = i.all_targets();
    let one = targets[i.rng.random_range(0..targets.len())];
    from(i, &[one], count, move |_| {
        let (login, inside, refused) = (login.clone(), inside.clone(), refused.clone());
        async move {
            let stay = login.with(async |client| {
                client.simple_query("SELECT 1").await?;
                inside.add();
                std::future::pending::<()>().await;
                Ok(())
            });
            if stay.await.is_err() {
                refused.add();
            }
        }
    })?;
    let (inside, refused) = counting;
    let least = count as u64 * 9 / 10;
    i.prove(format!("{least} clients answered, some of them let in"), move || {
        let (inside, refused) = (inside.get(), refused.get());
        (inside > 0 && inside + refused >= least).then(|| format!("{inside} clients got in at {}, {refused} were refused", one.name()))
    });
    Ok(())
}

fn herd(i: &mut Injected<'_>) -> Result<()> {
    const CLIENTS: usize = 300;
    let (login, seen) = (Login::at(i, i.ctx.cluster.ports().auto), Tally::default());
    let counting = seen.clone();
    let clock = i.ctx.clock;
    everywhere(i, CLIENTS, move |_| {
        let (login, seen) = (login.clone(), seen.clone());
        async move {
            loop {
                let once = login.with(async |client| {
                    client.simple_query("SELECT 1").await?;
                    Ok(())
                });
                if tokio::time::timeout(Duration::from_secs(3), once).await.is_ok_and(|r| r.is_ok()) {
                    seen.add();
                }
                // All come back at the same full second and a half.
                let beat = 1_500_000 - clock.now().0 % 1_500_000;
                tokio::time::sleep(Duration::from_micros(beat)).await;
            }
        }
    })?;
    prove_count(i, counting, 2 * CLIENTS as u64, "logins of the herd");
    Ok(())
}

fn slow_readers(i: &mut Injected<'_>) -> Result<()> {
    const CLIENTS: usize = 12;
    const SQL: &str = "SELECT repeat('x', 8192) FROM generate_series(1, 8192)";
    let (login, read) = (Login::at(i, i.ctx.cluster.ports().auto), Tally::default());
    let counting = read.clone();
    everywhere(i, CLIENTS, move |_| {
        let (login, read) = (login.clone(), read.clone());
        async move {
            // The slowness is between socket and driver: what nobody takes fills the socket's buffers, and then the proxy's.
            let (near, far) = tokio::io::duplex(4096);
            let Ok(stream) = TcpStream::connect(login.address).await else { return };
            let reading = login.over(near, async |client| client.simple_query(SQL).await.map(drop));
            tokio::select! {
                _ = reading => {}
                _ = trickle(stream, far, &read) => {}
            }
        }
    })?;
    prove_count(i, counting, CLIENTS as u64, "pieces of 4 kB were read by slow readers");
    Ok(())
}

/// Pass bytes on, those from the server slowly once the login is over.
async fn trickle(stream: TcpStream, far: tokio::io::DuplexStream, read: &Tally) -> std::io::Result<()> {
    const LOGIN_BYTES: usize = 2_000;
    let (mut from_server, mut to_server) = stream.into_split();
    let (mut from_client, mut to_client) = tokio::io::split(far);
    let down = async {
        let mut buffer = [0u8; 4096];
        let mut seen = 0;
        loop {
            let n = from_server.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            to_client.write_all(&buffer[..n]).await?;
            seen += n;
            if seen > LOGIN_BYTES {
                read.add();
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    };
    tokio::select! {
        ended = down => ended,
        ended = tokio::io::copy(&mut from_client, &mut to_server) => ended.map(drop),
    }
}

fn half_open(i: &mut Injected<'_>) -> Result<()> {
    const CLIENTS: usize = 200;
    let (address, open) = (proxy(i), Tally::default());
    let counting = open.clone();
    everywhere(i, CLIENTS, move |number| {
        let open = open.clone();
        async move {
            let Ok(mut stream) = TcpStream::connect(address).await else { return };
            // A startup packet of 64 bytes, of which between none and eight are ever sent.
            let packet = [0, 0, 0, 64, 0, 3, 0, 0];
            if stream.write_all(&packet[..number % 9]).await.is_ok() {
                open.add();
            }
            std::future::pending::<()>().await;
        }
    })?;
    prove_count(i, counting, CLIENTS as u64 / 2, "clients stopped in the middle of a message");
    Ok(())
}

fn idle_herd(i: &mut Injected<'_>) -> Result<()> {
    // As many as a pool holds by default, in each datacenter.
    const CLIENTS: usize = 60;
    let (login, held) = (Login::at(i, i.ctx.cluster.ports().primary), Tally::default());
    let counting = held.clone();
    everywhere(i, CLIENTS, move |_| {
        let (login, held) = (login.clone(), held.clone());
        async move {
            let idle = login.with(async |client| {
                client.batch_execute("BEGIN; SELECT 1").await?;
                held.add();
                std::future::pending::<()>().await;
                Ok(())
            });
            let _: Result<()> = idle.await;
        }
    })?;
    prove_count(i, counting, 20, "transactions stand idle");
    Ok(())
}

fn huge(i: &mut Injected<'_>) -> Result<()> {
    const CLIENTS: usize = 6;
    const BYTES: usize = 5 << 20;
    let (login, done) = (Login::at(i, i.ctx.cluster.ports().auto), Tally::default());
    let counting = done.clone();
    everywhere(i, CLIENTS, move |number| {
        let (login, done) = (login.clone(), done.clone());
        async move {
            let value = "v".repeat(BYTES + number);
            loop {
                let once = login.with(async |client| {
                    let row = client.query_one("SELECT length($1::text)", &[&value]).await?;
                    Ok(row.get::<_, i32>(0))
                });
                if once.await.is_ok_and(|length| usize::try_from(length) == Ok(value.len())) {
                    done.add();
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    })?;
    prove_count(i, counting, CLIENTS as u64, "statements with 5 MB were answered");
    Ok(())
}

/// What a proxy may see on its port on a public network; each must end the connection and nothing else.
const RUDENESS: &[&[u8]] = &[
    // A length below its own size; one of two gigabytes; none at all.
    &[0, 0, 0, 3],
    &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
    &[0, 0, 0, 0],
    // Protocol 9.9; parameters without an end; a name without a value.
    &[0, 0, 0, 9, 0, 9, 0, 9, 0],
    b"\0\0\0\x13\0\x03\0\0user\0postgres",
    b"\0\0\0\x0e\0\x03\0\0user\0\0",
    // Other protocols.
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    // A request for encryption, then noise where a startup packet belongs.
    &[0, 0, 0, 8, 4, 210, 22, 47, 255, 255, 255, 255, 255, 255, 255, 255],
    // A password before a startup packet.
    b"p\0\0\0\x08abc\0",
];

fn malformed(i: &mut Injected<'_>) -> Result<()> {
    const CLIENTS: usize = 33;
    let (address, ended) = (proxy(i), Tally::default());
    let counting = ended.clone();
    everywhere(i, CLIENTS, move |number| {
        let ended = ended.clone();
        async move {
            for turn in number.. {
                let Ok(mut stream) = TcpStream::connect(address).await else { return };
                let _ = stream.write_all(RUDENESS[turn % RUDENESS.len()]).await;
                let _ = stream.shutdown().await;
                let mut answer = Vec::new();
                let end = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer));
                if end.await.is_ok() {
                    ended.add();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    })?;
    prove_count(i, counting, 100, "malformed connections were ended");
    Ok(())
}

fn strangers(i: &mut Injected<'_>) -> Result<()> {
    const CLIENTS: usize = 15;
    let (address, sent) = (proxy(i), Tally::default());
    let counting = sent.clone();
    everywhere(i, CLIENTS, move |number| {
        let sent = sent.clone();
        async move {
            for turn in 0_u32.. {
                let mut packet = vec![0, 0, 0, 16, 4, 210, 22, 46];
                packet.extend((number as u32).to_be_bytes());
                packet.extend(turn.wrapping_mul(2_654_435_761).to_be_bytes());
                if let Ok(mut stream) = TcpStream::connect(address).await
                    && stream.write_all(&packet).await.is_ok()
                {
                    sent.add();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    })?;
    prove_count(i, counting, 500, "cancel requests with invented keys");
    Ok(())
}

fn exhaust(i: &mut Injected<'_>) -> Result<()> {
    let primary = i.ctx.cluster.primary().and_then(|name| super::aim::named(i.ctx, &name).ok());
    let Some(primary) = primary else { anyhow::bail!("there is no primary at this moment") };
    let most: usize = primary.value("SHOW max_connections")?.parse()?;
    let (inside, refused) = fill(i, primary, most + 20);
    i.prove("Postgres refused a connection", move || {
        let (inside, refused) = (inside.get(), refused.get());
        let all = refused > 0 && inside + refused >= most as u64;
        all.then(|| format!("{inside} direct connections of {most}, {refused} more were refused"))
    });
    Ok(())
}

fn fill<'a>(i: &mut Injected<'a>, target: Target<'a>, count: usize) -> (Tally, Tally) {
    let (login, token) = (Login::at(i, i.ctx.cluster.ports().postgres), sessions::until_heal(i));
    let counts = (Tally::default(), Tally::default());
    for _ in 0..count {
        let (login, token, (inside, refused)) = (login.clone(), token.clone(), counts.clone());
        let session = move || async move {
            let stay = login.with(async |client| {
                client.simple_query("SELECT 1").await?;
                inside.add();
                token.cancelled().await;
                Ok(())
            });
            if stay.await.is_err() {
                refused.add();
            }
        };
        drop(target.site.runtime().spawn(session));
    }
    counts
}

/// The proxy of the datacenter that a client lives in.
fn proxy(i: &Injected<'_>) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, i.ctx.cluster.ports().primary))
}
