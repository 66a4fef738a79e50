//! A datacenter's processes: frozen, killed, limited, and with clocks of their own.

use super::*;

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

    clock.set_drift_ppm(0).and_then(|()| clock.set_wall(0)).expect("healed");
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

#[test]
fn limits_starve_and_kill() {
    let (_dir, spec) = spec("limits", Preset::Lan);
    let world = World::up(&spec).expect("up");
    let site = &world.sites()[0];
    site.limit_cpu(Some(0.1)).expect("limited");
    let mut busy = site.command("sh").args(["-c", "while :; do :; done"]).spawn().expect("starts");
    std::thread::sleep(Duration::from_secs(1));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", busy.id())).expect("runs");
    let ticks: u64 = stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(11)?.parse().ok()).expect("user time");
    assert!(ticks < 30, "{ticks} hundredths of a second in one, at a tenth of a core");
    site.limit_cpu(None).expect("free again");
    site.limit_memory(Some(32 << 20)).expect("limited");
    let hungry = site.command("sh").args(["-c", "head -c 200M /dev/zero | tail -c 150M > /dev/null"]).status();
    assert!(!hungry.expect("starts").success());
    site.limit_memory(None).expect("free again");
    site.kill().expect("dies");
    busy.wait().expect("ended");
    world.down().expect("down");
}
