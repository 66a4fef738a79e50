//! Real worlds, as root.

use super::*;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UdpSocket;

fn spec(name: &str, preset: Preset) -> (tempfile::TempDir, Spec) {
    let dir = tempfile::Builder::new().prefix("chaos-world-").tempdir().expect("a folder");
    let spec = Spec { name: name.to_owned(), dir: dir.path().join("w"), sites: 3, preset, seed: 7, ..Spec::default() };
    (dir, spec)
}

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
        let time = median(ping(from, to, 7, 50, 30)).as_secs_f64() * 1000.0;
        println!("{} → {}: {time:.2} ms", from.name(), to.name());
        assert!((time - millis).abs() < 2.0, "{time} is not {millis}");
    }
    world.down().expect("down");
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
    let before = wan.counters(dc2, dc1);
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

#[test]
fn a_datacenter_freezes_thaws_and_dies_as_one() {
    let (_dir, spec) = spec("dies", Preset::Lan);
    let world = World::up(&spec).expect("up");
    let site = world.site("dc2").expect("dc2");
    let file = site.dir().join("count");
    let line = format!("ip -o address show wan0; while :; do echo x >> {}; sleep 0.01; done", file.display());
    let mut child = site.command("sh").args(["-c", &line]).stdout(std::process::Stdio::null()).spawn().expect("starts");
    let size = || std::fs::metadata(&file).map_or(0, |file| file.len());
    assert!(external::wait_until(Duration::from_secs(5), || size() > 4));
    assert!(site.pids().contains(&child.id()));
    site.freeze().expect("freezes");
    let frozen = size();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(size(), frozen);
    site.thaw().expect("thaws");
    assert!(external::wait_until(Duration::from_secs(5), || size() > frozen));
    site.kill().expect("dies");
    assert!(site.pids().is_empty());
    assert!(!child.wait().expect("ended").success());
    world.down().expect("down");
}

/// What of a world in `dir` the kernel still knows.
fn traces(dir: &std::path::Path) -> Vec<String> {
    let dir = dir.to_str().expect("a path");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mut traces: Vec<String> = mounts.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect();
    let loops = std::fs::read_dir("/sys/block").expect("devices").flatten();
    traces.extend(
        loops.filter_map(|entry| std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()).filter(|file| file.contains(dir)),
    );
    traces
}

fn cgroups_of(name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cgroup::mounted().expect("cgroup2")).expect("cgroups").flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains(&format!("trilithon-chaos-{name}-"))).collect()
}

#[test]
fn teardown_leaves_nothing_but_logs_even_after_a_panic() {
    let (dir, spec) = spec("gone", Preset::Lan);
    let panicked = std::thread::Builder::new().spawn({
        let spec = spec.clone();
        move || {
            let world = World::up(&spec).expect("up");
            assert_eq!(cgroups_of("gone").len(), 1);
            assert!(!traces(&spec.dir).is_empty());
            let mut child = world.sites()[0].command("sleep").arg("1000").spawn().expect("starts");
            std::fs::write(world.sites()[0].logs().join("a.log"), "kept").expect("written");
            let _ = child.try_wait();
            panic!("as a harness might");
        }
    });
    assert!(panicked.expect("a thread").join().is_err());
    assert_eq!(traces(dir.path()), [] as [String; 0]);
    assert_eq!(cgroups_of("gone"), [] as [PathBuf; 0]);
    assert!(spec.dir.join("dc1/logs/a.log").exists());
    assert!(!spec.dir.join("world.json").exists());
}

/// A world with disks, whose commands run by `sh` in dc1.
fn world_with_disk(name: &str) -> (tempfile::TempDir, World) {
    let (dir, spec) = spec(name, Preset::Lan);
    let world = World::up(&Spec { sites: 1, disks: true, ..spec }).expect("up");
    (dir, world)
}

/// Whether this shell line succeeded in `site`, in its folder.
fn sh(site: &Site, line: &str) -> bool {
    let line = format!("cd {} && {{ {line}; }}", site.dir().display());
    let output = site.command("sh").args(["-c", &line]).output().expect("starts");
    print!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_loses_the_rest() {
    let (_dir, world) = world_with_disk("lost");
    let [site] = world.sites() else { panic!("one site") };
    let disk = site.disk().expect("a disk");
    let clock = crate::record::RunClock::start();
    assert!(sh(site, "dd if=/dev/zero of=w bs=8k count=500 oflag=dsync status=none; rm w"));
    println!("{} µs for a synced write of 8 KiB", clock.now().0 / 500);
    let clock = crate::record::RunClock::start();
    assert!(sh(site, "dd if=/dev/zero of=w bs=1M count=300 conv=fsync status=none; rm w; sync ."));
    println!("{} MB/s written", 300_000_000 / clock.now().0);
    // Two things can be lost: what the kernel has not written yet (b), and what the disk has not flushed (c).
    assert!(sh(site, "echo synced > a && head -c 1M /dev/zero > c && sync a c . && cp c b"));
    assert!(sh(
        site,
        "yes | head -c 1M > /dev/shm/chaos-ones-$$ && dd if=/dev/shm/chaos-ones-$$ of=c bs=1M oflag=direct conv=notrunc status=none; rm /dev/shm/chaos-ones-$$"
    ));
    assert!(sh(site, "grep -q y c"));
    let file = site.dir().join("b");
    let mut holder = site.command("sh").arg("-c").arg(format!("exec 3<> {}; sleep 1000", file.display())).spawn().expect("starts");
    let lost = site.power_loss(None).expect("lost");
    holder.wait().expect("dead");
    assert!(disk.needs_remount() && !site.dir().exists());
    disk.remount().expect("recovers");
    assert!(lost >= 256, "{lost}");
    assert!(sh(site, "grep -q synced a && test ! -s b && test -s c && ! grep -q y c"), "what was synced is there, the rest is not");
    println!("{lost} blocks lost; {:?}", disk.counters());

    // Torn: ext4 still recovers, since a torn cache is what its journal is for.
    assert!(sh(site, "for i in $(seq 100); do echo $i > $i; done; echo 2 > c; sync c; dd if=/dev/zero of=d bs=1M count=5 status=none"));
    site.power_loss(Some(7)).expect("torn");
    disk.remount().expect("recovers");
    assert!(sh(site, "grep 2 c"));
    world.down().expect("down");
}

#[test]
fn fsyncs_and_writes_fail_are_slow_hang_and_recover() {
    let (_dir, world) = world_with_disk("eio");
    let [site] = world.sites() else { panic!("one site") };
    let disk = site.disk().expect("a disk");
    assert!(sh(site, "echo 1 > a && sync a"));
    disk.fsync_delay(Duration::from_millis(400));
    let clock = crate::record::RunClock::start();
    assert!(sh(site, "echo 2 > a && sync a"));
    assert!(clock.now().0 > 400_000 && disk.counters().delayed_fsyncs > 0);
    disk.heal().expect("healed");

    disk.hang(true);
    let mut child = site.command("sync").arg(site.dir().join("a")).spawn().expect("starts");
    assert!(sh(site, "true"));
    let mut write = site.command("dd");
    write.arg("if=/dev/zero").arg(format!("of={}", site.dir().join("h").display()));
    let mut write = write.args(["bs=1M", "count=1", "oflag=direct", "status=none"]).spawn().expect("starts");
    assert!(external::wait_until(Duration::from_secs(5), || disk.counters().hung > 0));
    assert!(write.try_wait().expect("asked").is_none());
    disk.heal().expect("healed");
    assert!(write.wait().expect("ended").success() && child.wait().expect("ended").success());

    disk.fail_fsyncs(true);
    assert!(!sh(site, "echo 3 > a && sync a"));
    assert!(disk.counters().failed_fsyncs > 0);
    disk.heal().expect("healed");
    disk.remount().expect("remounts");
    assert!(sh(site, "echo 4 > a && sync a"));

    disk.fail_writes(true);
    assert!(!sh(site, "dd if=/dev/zero of=e bs=1M count=1 oflag=direct status=none"));
    disk.heal().expect("healed");
    disk.remount().expect("remounts");

    disk.full(1 << 20).expect("full");
    assert!(!sh(site, "dd if=/dev/zero of=f bs=1M count=10 status=none"));
    disk.free().expect("freed");
    assert!(sh(site, "dd if=/dev/zero of=f bs=1M count=10 status=none"));
    disk.read_only().expect("read-only");
    assert!(!sh(site, "echo 5 > a") && disk.needs_remount());
    disk.remount().expect("remounts");
    assert!(sh(site, "echo 6 > a"));
    world.down().expect("down");
}

#[test]
fn a_hung_disk_can_be_taken_down() {
    let (dir, world) = world_with_disk("hung");
    let [site] = world.sites() else { panic!("one site") };
    site.disk().expect("a disk").hang(true);
    let mut child =
        site.command("sh").arg("-c").arg(format!("echo x > {0}; sync {0}", site.dir().join("a").display())).spawn().expect("starts");
    world.down().expect("down");
    child.wait().expect("ended");
    assert_eq!(traces(dir.path()), [] as [String; 0]);
}

#[test]
fn clocks_jump_and_drift_for_libc_and_for_the_vdso() {
    let (_dir, spec) = spec("clock", Preset::Lan);
    let world = World::up(&Spec { clocks: true, sites: 1, ..spec }).expect("up");
    let [site] = world.sites() else { panic!("one site") };
    let clock = site.clock().expect("a clock");
    let seconds = |command: &mut std::process::Command| -> f64 {
        let text = command.output().expect("starts").stdout;
        String::from_utf8_lossy(&text).trim().parse().expect("a number")
    };
    let date = |site: &Site| seconds(site.command("date").arg("+%s.%N"));
    let truth = || seconds(std::process::Command::new("date").arg("+%s.%N"));
    assert!((date(site) - truth()).abs() < 1.0);
    clock.set_wall(-3600).expect("jumps");
    assert!((date(site) - truth() + 3600.0).abs() < 1.0);

    clock.heal().expect("healed");
    clock.set_drift_ppm(50_000).expect("drifts");
    let own = own_boottime(site);
    std::thread::sleep(Duration::from_secs(2));
    let (passed, drifted) = (2.0, own_boottime(site) - own);
    println!("{passed} s were {drifted:.3} s");
    assert!(drifted > 2.09 && drifted < 2.5, "{drifted}");
    world.down().expect("down");
}

/// CLOCK_BOOTTIME as a program without libc's clocks reads it: this test program, which asks the vDSO by itself.
fn own_boottime(site: &Site) -> f64 {
    let mut command = site.command(std::env::current_exe().expect("a path"));
    command.args(["--exact", "world::tests::as_a_child", "--nocapture"]).env("CHAOS_TEST_CHILD", "boottime");
    let text = String::from_utf8(command.output().expect("starts").stdout).expect("text");
    text.lines().find_map(|line| line.split("boottime ").nth(1)?.parse().ok()).expect("a number")
}

/// No test of its own: what other tests start as a process.
#[test]
fn as_a_child() {
    match std::env::var("CHAOS_TEST_CHILD").as_deref() {
        Ok("boottime") => {
            let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            println!("\nboottime {}.{:09}", t.tv_sec, t.tv_nsec);
        }
        Ok("interactive") => {
            let dir = std::env::var("CHAOS_TEST_DIR").expect("a folder");
            up_interactive(&Spec { name: "talk".to_owned(), dir: dir.into(), sites: 2, ..Spec::default() }).expect("down");
        }
        Ok("leave") => {
            let dir = std::env::var("CHAOS_TEST_DIR").expect("a folder");
            let spec = Spec { name: "left".to_owned(), dir: dir.into(), sites: 2, disks: true, ..Spec::default() };
            let world = World::up(&spec).expect("up");
            let mut child = world.sites()[0].command("sh");
            child.arg("-c").arg(format!("while :; do echo x >> {}; done", world.sites()[0].dir().join("a").display()));
            let _child = child.spawn().expect("starts");
            println!("\nworld is up");
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        _ => {}
    }
}

/// Talks to an interactive world; what it said.
fn talk(input: &str, end: impl FnOnce(&std::process::Child)) -> String {
    use std::io::{BufRead, BufReader, Read, Write};
    let dir = tempfile::Builder::new().prefix("chaos-world-").tempdir().expect("a folder");
    let mut child = std::process::Command::new(std::env::current_exe().expect("a path"));
    child.args(["--exact", "world::tests::as_a_child", "--nocapture"]);
    child.env("CHAOS_TEST_CHILD", "interactive").env("CHAOS_TEST_DIR", dir.path().join("w"));
    let mut child = child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().expect("starts");
    let (mut to, mut from) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
    to.write_all(input.as_bytes()).expect("said");
    let mut said = String::new();
    // The last line of a status.
    while !said.contains("dc2: 0 processes") {
        assert!(from.read_line(&mut said).expect("read") > 0, "{said}");
    }
    end(&child);
    from.read_to_string(&mut said).expect("read");
    assert!(child.wait().expect("ended").success(), "{said}");
    assert_eq!(traces(dir.path()), [] as [String; 0]);
    said
}

#[test]
fn an_interactive_world_obeys_until_quit_or_ctrl_c() {
    let input = "cut dc1 dc2\ndelay dc1 dc9 4ms\nnonsense\ndisk dc1 crash\nstatus\n";
    let said = talk(&format!("{input}quit\n"), |_| {});
    for words in ["nsenter --net=", "dc1 → dc2: cut", "no datacenter \"dc9\"", "not understood", "no disks", "taking the world down"] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let interrupt = |child: &std::process::Child| {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    };
    assert!(talk(input, interrupt).contains("taking the world down"));
}

#[test]
fn what_a_killed_harness_left_is_taken_down_by_the_next() {
    let dir = tempfile::Builder::new().prefix("chaos-world-").tempdir().expect("a folder");
    let world = dir.path().join("w");
    let mut harness = std::process::Command::new(std::env::current_exe().expect("a path"));
    harness.args(["--exact", "world::tests::as_a_child", "--nocapture"]);
    harness.env("CHAOS_TEST_CHILD", "leave").env("CHAOS_TEST_DIR", &world).stdout(std::process::Stdio::piped());
    let mut harness = harness.spawn().expect("starts");
    let out = std::io::BufReader::new(harness.stdout.take().expect("piped"));
    std::io::BufRead::lines(out).find(|line| line.as_ref().is_ok_and(|line| line == "world is up")).expect("up").expect("up");
    assert!(World::clean_left_over(&world).is_err(), "its owner lives");
    harness.kill().expect("killed");
    harness.wait().expect("ended");
    assert!(!traces(&world).is_empty());
    // Another test's start may come first: it does the same.
    assert!(external::wait_until(Duration::from_secs(30), || World::clean_left_over(&world).is_ok() && traces(&world).is_empty()));
    assert_eq!(cgroups_of("left"), [] as [PathBuf; 0]);
}

#[test]
fn a_living_owner_keeps_its_world() {
    let (_dir, spec) = spec("mine", Preset::Lan);
    let world = World::up(&spec).expect("up");
    let error = World::up(&spec).expect_err("refused");
    assert!(format!("{error:#}").contains("a world is up in"), "{error:#}");
    assert!(World::clean_left_over(&spec.dir).is_err());
    assert_eq!(world.sites().len(), 3);
    world.down().expect("down");
    assert!(!World::clean_left_over(&spec.dir).expect("nothing there"));
}
