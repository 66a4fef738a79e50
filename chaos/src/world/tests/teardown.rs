//! Nothing stays, however a harness ends.

use super::*;

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

/// A harness in a process of its own, whose world in `dir` is up, with one disk hung.
fn harness(dir: &std::path::Path) -> std::process::Child {
    let mut harness = std::process::Command::new(std::env::current_exe().expect("a path"));
    harness.args(["--exact", "world::tests::as_a_child", "--nocapture"]);
    harness.env("CHAOS_TEST_CHILD", "leave").env("CHAOS_TEST_DIR", dir).stdout(std::process::Stdio::piped());
    let mut harness = harness.spawn().expect("starts");
    let out = std::io::BufReader::new(harness.stdout.as_mut().expect("piped"));
    std::io::BufRead::lines(out).find(|line| line.as_ref().is_ok_and(|line| line == "world is up")).expect("up").expect("up");
    harness
}

#[test]
fn what_a_killed_harness_left_is_taken_down_by_the_next() {
    let dir = tempfile::Builder::new().prefix("chaos-world-").tempdir().expect("a folder");
    let world = dir.path().join("w");
    let mut harness = harness(&world);
    assert!(World::clean_left_over(&world).is_err(), "its owner lives");
    harness.kill().expect("killed");
    harness.wait().expect("ended");
    assert!(!traces(&world).is_empty());
    // Another test's start may come first: it does the same.
    assert!(external::wait_until(Duration::from_secs(30), || World::clean_left_over(&world).is_ok() && traces(&world).is_empty()));
    assert_eq!(cgroups_of(&format!("left-{}", harness.id())), [] as [PathBuf; 0]);
}

#[test]
fn a_second_ctrl_c_takes_everything_down_although_nobody_listens_and_a_disk_hangs() {
    let dir = tempfile::Builder::new().prefix("chaos-world-").tempdir().expect("a folder");
    let mut harness = harness(&dir.path().join("w"));
    let pid = rustix::process::Pid::from_child(&harness);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    std::thread::sleep(Duration::from_millis(300));
    assert!(harness.try_wait().expect("asked").is_none());
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("interrupted");
    assert_eq!(harness.wait().expect("ended").code(), Some(130));
    assert_eq!(traces(dir.path()), [] as [String; 0]);
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
