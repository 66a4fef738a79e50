//! The WAN carries packets as its links say.

use super::*;
use tokio::net::UdpSocket;

/// Answers each datagram.
fn echo(site: &Site, port: u16) {
    let address = (site.address(), port);
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    drop(site.runtime().spawn(move || async move {
        let socket = UdpSocket::bind(address).await.expect("bind");
        ready.send(()).expect("ready");
        let mut buffer = [0; 2000];
        while let Ok((bytes, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..bytes], from).await;
        }
    }));
    is_ready.recv().expect("the echo is ready");
}

/// Round trips of `count` datagrams; those that came back within a second.
fn ping(from: &Site, to: &Site, port: u16, bytes: usize, count: usize) -> Vec<Duration> {
    let (own, address) = (from.address(), (to.address(), port));
    let job = move || async move {
        let socket = UdpSocket::bind((own, 0)).await.expect("bind");
        let clock = crate::record::RunClock::start();
        let (mut times, mut buffer) = (Vec::new(), [0; 2000]);
        for _ in 0..count {
            let sent = clock.now();
            let _ = socket.send_to(&vec![0; bytes], address).await;
            if tokio::time::timeout(Duration::from_millis(300), socket.recv_from(&mut buffer)).await.is_ok() {
                times.push(clock.now().since(sent));
            }
        }
        times
    };
    from.runtime().spawn(job).blocking_recv().expect("the pings end")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn the_design_is_as_far_apart_as_it_says() {
    let (_dir, spec) = spec("far", Preset::Design);
    let world = World::up(&spec).expect("up");
    let [dc1, dc2, dc3] = world.sites() else { panic!("three sites") };
    world.sites().iter().for_each(|site| echo(site, 7));
    for (from, to, millis) in [(dc1, dc2, 15.0), (dc1, dc3, 40.0), (dc3, dc2, 40.0)] {
        let times = ping(from, to, 7, 50, 30);
        let (best, usual) = (times.iter().min().expect("answers").as_secs_f64() * 1000.0, median(times).as_secs_f64() * 1000.0);
        println!("{} → {}: {usual:.2} ms, at best {best:.2} ms", from.name(), to.name());
        // Twice the jitter of each way below, and above it what a busy machine adds even to the best.
        assert!((millis * 0.9..millis + 2.0).contains(&best), "{best} is not {millis}");
    }
    world.down().expect("down");
}

/// On a busy machine the last answer may still be under way when nobody waits for it any more.
fn settled<T: PartialEq>(look: impl Fn() -> T) -> T {
    const PAUSE: Duration = Duration::from_millis(200);
    const LOOKS: usize = 50;
    let mut seen = look();
    for _ in 0..LOOKS {
        std::thread::sleep(PAUSE);
        let now = look();
        if now == seen {
            return now;
        }
        seen = now;
    }
    panic!("it never settles");
}

#[test]
fn a_lan_is_near_and_cuts_have_a_direction_a_port_and_a_size() {
    let (_dir, spec) = spec("cut", Preset::Lan);
    let world = World::up(&spec).expect("up");
    let [dc1, dc2, _] = world.sites() else { panic!("three sites") };
    world.sites().iter().for_each(|site| [7, 8].iter().for_each(|port| echo(site, *port)));
    let time = median(ping(dc1, dc2, 7, 50, 50));
    println!("side by side: {time:?}");
    assert!(time < Duration::from_millis(5), "{time:?}");

    let wan = world.wan();
    let before = settled(|| wan.counters(dc2, dc1));
    wan.cut(dc1, dc2);
    assert_eq!(ping(dc1, dc2, 7, 50, 3), []);
    assert!(wan.counters(dc1, dc2).cut >= 3);
    assert_eq!(wan.counters(dc2, dc1), before, "the other direction is not cut, and nothing came to answer");
    wan.heal();
    assert_eq!(ping(dc1, dc2, 7, 50, 3).len(), 3);

    wan.change(dc1, dc2, |link| link.cut_ports = [7].into());
    assert_eq!(ping(dc1, dc2, 7, 50, 2), []);
    assert_eq!(ping(dc1, dc2, 8, 50, 2).len(), 2);
    wan.heal();

    wan.change(dc1, dc2, |link| link.mtu = Some(600));
    assert_eq!((ping(dc1, dc2, 7, 700, 2).len(), ping(dc1, dc2, 7, 500, 2).len()), (0, 2));
    world.down().expect("down");
}

#[test]
fn bandwidth_limits_and_its_absence_does_not() {
    let (_dir, spec) = spec("rate", Preset::Lan);
    let world = World::up(&spec).expect("up");
    let free = throughput(&world, 200 << 20);
    world.wan().change(0, 1, |link| link.bits_per_second = Some(20_000_000));
    let limited = throughput(&world, 5 << 20);
    println!("{free:.0} Mbit/s free, {limited:.1} Mbit/s limited to 20");
    assert!(free > 200.0 && (14.0..=20.5).contains(&limited), "{free} {limited}");
    world.down().expect("down");
}

/// Mbit/s of one TCP stream from the first to the second datacenter.
fn throughput(world: &World, bytes: u64) -> f64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = (world.sites()[1].address(), 9);
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let received = world.sites()[1].runtime().spawn(move || async move {
        let listener = tokio::net::TcpListener::bind(address).await.expect("bind");
        ready.send(()).expect("ready");
        let (mut stream, _) = listener.accept().await.expect("accept");
        let (clock, mut buffer, mut count) = (crate::record::RunClock::start(), vec![0; 1 << 17], 0);
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            count += n as u64;
        }
        assert_eq!(count, bytes);
        count as f64 * 8.0 / clock.now().0 as f64
    });
    is_ready.recv().expect("listening");
    drop(world.sites()[0].runtime().spawn(move || async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        let chunk = vec![0; 1 << 17];
        for _ in 0..bytes >> 17 {
            stream.write_all(&chunk).await.expect("write");
        }
        stream.shutdown().await.expect("shutdown");
    }));
    received.blocking_recv().expect("received")
}

#[test]
fn a_reset_port_refuses_at_once() {
    let (_dir, spec) = spec("rst", Preset::Lan);
    let world = World::up(&spec).expect("up");
    world.wan().change("dc1", "dc2", |link| link.reset_ports = [9].into());
    let address = (world.sites()[1].address(), 9);
    let refused = world.sites()[0].runtime().spawn(move || async move { tokio::net::TcpStream::connect(address).await.map(drop) });
    let error = refused.blocking_recv().expect("answered").expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(world.wan().counters("dc1", "dc2").cut >= 1);
    world.down().expect("down");
}
