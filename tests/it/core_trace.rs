//! Traces of the core, without a cluster: what is written is read back and asked again, and nothing that was changed stays unseen.

use std::sync::Arc;
use trilithon::cluster::{ClusterState, Command, Member, MemberKind, Proposal, Secrets, Settings, Tags, apply};
use trilithon::ha::{Entry, LocalState, NodeObservation, PostgresState, Replay, ReplayReport, Scribe, Seen, View, converge, decide};
use trilithon::types::{ClusterId, Millis, NodeId, NodeName, RequestId};

fn member(n: u64) -> (NodeId, Member) {
    let (name, addresses, tags) = (NodeName(format!("dc{n}")), Default::default(), Tags::default());
    (NodeId(n), Member { name, datacenter: String::new(), kind: MemberKind::Data, addresses, tags })
}

/// A few commands, and what the core makes of each state, as a node would write it.
fn entries() -> Vec<Entry> {
    let mut state = Arc::new(ClusterState::default());
    let mut entries = vec![Entry::State(state.clone())];
    let secrets = Secrets { superuser: "do-not-tell".into(), replication: "do-not-tell".into() };
    let commands = [
        Command::Create {
            cluster: ClusterId(u128::MAX),
            name: "t".into(),
            members: (1..=3).map(member).collect(),
            settings: Settings::default(),
        },
        Command::SetSecrets { secrets },
        Command::ClaimBootstrap { node: NodeId(2) },
        // Refused: also a refusal is an answer.
        Command::ClaimBootstrap { node: NodeId(3) },
    ];
    for command in commands {
        let before = state.clone();
        let proposal = Proposal { expect: Some(before.revision), request: Some(RequestId(u128::MAX - entries.len() as u128)), command };
        let outcome = apply(Arc::make_mut(&mut state), &proposal);
        entries.push(Entry::Applied { before, proposal, outcome, after: state.clone() });
        let seen = |n| {
            let mut observation = NodeObservation { node: NodeId(n), ..NodeObservation::default() };
            observation.postgres.state = PostgresState::Absent;
            (NodeId(n), Seen { at: Millis(5), observation })
        };
        let view = View { now: Millis(7), observations: (1..=3).map(seen).collect(), ..View::default() };
        let decision = decide(&state, &view);
        entries.push(Entry::Decided { on: state.clone(), view, decision });
        let mut local = LocalState { me: NodeId(2), ..LocalState::default() };
        local.postgres.state = PostgresState::Absent;
        let step = converge(&state, &local);
        entries.push(Entry::Stepped { on: state.clone(), local, step });
    }
    entries
}

fn written() -> String {
    let mut scribe = Scribe::default();
    entries().into_iter().map(|entry| scribe.lines(entry)).collect()
}

#[test]
fn a_trace_gives_the_same_answers_again_and_tells_no_password() {
    let text = written();
    let report = Replay::text(&text);
    assert_eq!(report, ReplayReport { applied: 4, decided: 4, stepped: 4, ..ReplayReport::default() });
    assert!(!text.contains("do-not-tell"));
}

#[test]
fn a_changed_or_missing_line_of_a_trace_is_found() {
    let text = written();
    let changes = [
        ("\"claim_bootstrap\"", "\"abandon_bootstrap\""),
        ("\"Bootstrapping\":{\"node\":2}", "\"Bootstrapping\":{\"node\":3}"),
        ("\"ClaimBootstrap\":{\"node\":2}", "\"ClaimBootstrap\":{\"node\":3}"),
        ("\"InitDb\"", "\"Detach\""),
        ("\"Err\":{\"Refused\":\"another", "\"Err\":{\"Refused\":\"Another"),
        ("\"name\":\"t\"", "\"name\":\"T\""),
        ("\"state\":\"absent\"", "\"state\":\"unknown\""),
    ];
    let mut found = 0;
    for (from, to) in changes {
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(from)) {
            let changed: String =
                lines.iter().enumerate().map(|(i, l)| if i == n { line.replace(from, to) } else { (*l).to_owned() } + "\n").collect();
            let report = Replay::text(&changed);
            found += u32::from(report.disagreements > 0);
            let matters = report.disagreements > 0 || from.contains("absent");
            assert!(matters, "line {}: {from} as {to} is not found\n{line}", n + 1);
        }
    }
    assert!(found >= 6, "{found} changes were tried");
    let without = |n: usize| text.lines().enumerate().filter(|(i, _)| *i != n).map(|(_, l)| format!("{l}\n")).collect::<String>();
    for n in 0..text.lines().count() - 1 {
        assert!(Replay::text(&without(n)).disagreements > 0, "line {} is missing and nobody notices", n + 1);
    }
}

#[test]
fn a_trace_with_entries_dropped_begins_anew_and_says_so() {
    let mut scribe = Scribe::default();
    let mut text = String::new();
    for (n, entry) in entries().into_iter().enumerate() {
        match n {
            4..=7 => {}
            8 => text += &(scribe.dropped(4) + &scribe.lines(entry)),
            _others => text += &scribe.lines(entry),
        }
    }
    let report = Replay::text(&text);
    assert_eq!((report.disagreements, report.dropped), (0, 4), "{:?}", report.shown);
    assert!(report.unchecked <= 2, "{report:?}");
    let torn = &text[..text.len() - 9];
    assert_eq!((Replay::text(torn).torn, Replay::text(torn).disagreements), (true, 0));
}
