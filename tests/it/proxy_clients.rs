//! Ordinary clients through the proxy: psql, pgbench, tokio-postgres; each protocol, COPY, pipelines, cancellation.

use crate::proxy_support::{Front, Pair, eventually, program, psql};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_and_pgbench_work_through_the_proxy_in_every_protocol() {
    let pair = Pair::start();
    let front = Front::start(&pair, |_| {}).await;
    assert_eq!(psql(front.primary(), "select pg_is_in_recovery()"), "f");
    assert_eq!(psql(front.standby(), "select pg_is_in_recovery()"), "t");
    assert_eq!(psql(front.auto(), "select 40 + 2"), "42");
    let init = program("pgbench", front.primary(), &["-i", "-q", "-s", "1", "postgres"]);
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    pair.caught_up().await;
    for mode in
        [&["-M", "simple"][..], &["-M", "extended"], &["-M", "prepared"], &["-C", "-M", "simple"], &["-S"], &["-S", "-M", "extended"]]
    {
        for port in [front.auto(), front.primary()] {
            let mut args = mode.to_vec();
            args.extend(["-n", "-c", "4", "-j", "2", "-t", "20", "postgres"]);
            let out = program("pgbench", port, &args);
            let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success(), "{mode:?}: {errors}");
            assert!(text.contains("processed: 80/80"), "{mode:?}: {text} {errors}");
        }
    }
    assert_eq!(psql(front.primary(), "select count(*) = 4 * 2 * 20 * 4 from pgbench_history"), "t");
    eventually("every client has left", || front.handle.stats().clients == 0).await;
    assert_eq!(front.handle.stats().in_flight, 0);
}
