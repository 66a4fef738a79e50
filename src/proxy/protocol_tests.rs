//! Conversations, written as what goes (`>`) and what comes (`<`).

use super::*;
use proptest::prelude::*;

/// `>Qw` a writing Query, `>Qv` one that reads a view, `>Ec` a committing Execute, `<ZT` ReadyForQuery in a transaction, `>S` a Sync …
fn talk(script: &str) -> Tracker {
    let mut tracker = Tracker::default();
    for step in script.split_whitespace() {
        let bytes = step.as_bytes();
        if bytes[0] == b'<' {
            tracker.received(bytes[1], bytes.get(2).copied().unwrap_or(b'I'));
        } else {
            let effect = match bytes.get(2) {
                Some(b'v') => Effect::Read,
                Some(b'w') => Effect::Write,
                Some(b's') => Effect::SelfCommitting,
                Some(b'c') => Effect::Commit,
                Some(b'o') => Effect::Opaque,
                Some(b'r') => Effect::GiveUp,
                _ => Effect::Nothing,
            };
            tracker.sent(bytes[1], effect);
        }
    }
    tracker
}

#[test]
fn a_server_may_go_only_when_everything_was_answered() {
    for (script, idle) in [
        ("", true),
        (">Q", false),
        (">Q <T <D <C <Z", true),
        (">Q <C <ZT", false),
        (">Q >Q <C <Z", false),
        (">Q >Q <C <Z <C <Z", true),
        (">P >B >E", false),
        (">P >B >E >H <1 <2 <C", false),
        (">P >B >E >S <1 <2 <C", false),
        (">P >B >D >E >S <1 <2 <T <D <C <Z", true),
        (">P >B >E >S <E <Z", true),
        (">P <E >B >E >S <Z", true),
        (">P <E >B >E", false),
        (">S <Z", true),
        (">P >S >P >S <E <Z <1 <Z", true),
    ] {
        assert_eq!(talk(script).is_idle(), idle, "{script}");
    }
}

#[test]
fn a_sync_sent_before_copy_data_is_not_answered() {
    assert!(talk(">P >B >E >S <1 <2 <G >d >c >S <C <Z").is_idle());
    assert!(talk(">P >B >E <1 <2 <G >S >d >c >S <C <Z").is_idle());
    assert!(talk(">Q <G >d >c <C <Z").is_idle());
    assert!(talk(">Q <G >d <E <Z >d >c").is_idle());
    assert!(talk(">P >B >E >S <1 <2 <G >d <E >d >c >S <Z").is_idle());
    assert!(!talk(">P >B >E >S <1 <2 <G >d >c >S <C").is_idle());
}

#[test]
fn a_lost_server_leaves_exactly_what_is_known() {
    for (script, fate) in [
        ("", Fate::Idle),
        (">Q", Fate::NotApplied),
        (">Qw", Fate::Unknown),
        (">Qc", Fate::Unknown),
        (">Q <C <ZT", Fate::NotApplied),
        (">Q <C <ZT >Qw", Fate::NotApplied),
        (">Q <C <ZT >Qw <C <ZT >Qc", Fate::Unknown),
        (">Q <C <ZT >Qw <C <ZT >Qc <C <Z", Fate::Idle),
        (">Q <C <ZT >Qw <E <ZE >Qc", Fate::NotApplied),
        (">P >B >Ew", Fate::NotApplied),
        (">P >B >Ew >S", Fate::Unknown),
        (">P >B >Ew >S <1 <2 <C", Fate::Unknown),
        (">P >B >E >S", Fate::NotApplied),
        (">Q <C <ZT >P >B >Ew >S", Fate::NotApplied),
        (">Q <C <ZT >P >B >Ec", Fate::Unknown),
        (">Q <C <ZT >P >B >Ec >S <1 <2 <C", Fate::Unknown),
        (">P >B >E >P >B >Ec >H <1 <2 <C <1 <2 <C", Fate::Unknown),
        (">Qw <G", Fate::NotApplied),
        (">Qw <G >d", Fate::NotApplied),
        (">Qw <G >d >c", Fate::Unknown),
        (">F", Fate::Unknown),
        (">P >B >Es", Fate::Unknown),
        (">P >B >Es >H <1 <2 <C", Fate::Unknown),
        (">P >B >Es >S <1 <2 <E", Fate::Unknown),
        (">P >B >Ew >P >B >Es", Fate::Unknown),
        (">Qs", Fate::Unknown),
        (">Q <C <ZT >P >B >Es >S", Fate::NotApplied),
        (">Q <C <ZT >P >B >Er >P >B >Es", Fate::Unknown),
        (">Qv", Fate::Unknown),
        (">Qv <T <D", Fate::Unknown),
        (">Qv <C <Z", Fate::Idle),
        (">Q <C <ZT >Qv", Fate::NotApplied),
        (">Q <C <ZT >Qr >Qv", Fate::Unknown),
        (">P >B >Ev", Fate::NotApplied),
        (">P >B >Ev >S", Fate::Unknown),
        (">P >B >Er >P >B >Ev >S", Fate::Unknown),
        (">Q <C <ZT >Qr", Fate::NotApplied),
        (">Q <C <ZT >Qr >Qw", Fate::Unknown),
        (">Q <C <ZT >P >B >Er >P >B >Ew >S", Fate::Unknown),
        (">Qw <E <ZE >P >B >Er >P >B >Ew >S", Fate::Unknown),
        (">Qw <E <ZE >Qo", Fate::Unknown),
        (">Qw <E <ZE >Qw", Fate::NotApplied),
        (">Qw <E <ZE >Q >Qc", Fate::Unknown),
        (">Qw <E <ZE >P >B >E >P >B >Ec >S <1 <2 <C", Fate::Unknown),
        (">Qw <E <ZE >P >B >Ec >P >B >Ew >S <1 <2 <C", Fate::Unknown),
        (">Qw <E <ZE >P >B >Ec >S", Fate::NotApplied),
        (">Qo", Fate::Unknown),
        (">Qo <C <G >d", Fate::Unknown),
    ] {
        assert_eq!(talk(script).fate(true), fate, "{script}");
        let on_standby = if fate == Fate::Idle { Fate::Idle } else { Fate::NotApplied };
        assert_eq!(talk(script).fate(false), on_standby, "{script} on a standby");
    }
}

#[test]
fn readies_are_counted_for_each_sync_point() {
    assert_eq!(talk(">Q >Q >P >S").readies_due(), 3);
    assert_eq!(talk(">P <E >S").readies_due(), 1);
}

proptest! {
    #[test]
    fn no_order_of_messages_panics(steps in proptest::collection::vec((any::<bool>(), prop::sample::select(b"QFPBDECSHdcf123TnsIGZ".to_vec())), 0..60)) {
        let mut tracker = Tracker::default();
        for (client, tag) in steps {
            let due = client && tracker.sent(tag, Effect::Write);
            prop_assert!(!due || tracker.readies_due() > 0);
            if !client { tracker.received(tag, b'I') }
            let _ = (tracker.fate(true), tracker.readies_due());
        }
    }

    #[test]
    fn batches_answered_in_full_leave_an_idle_server(batches in proptest::collection::vec((1usize..4, any::<bool>(), any::<bool>()), 1..8)) {
        let mut tracker = Tracker::default();
        for (statements, pipelined, fails) in &batches {
            for _ in 0..*statements {
                for tag in *b"PBDE" { tracker.sent(tag, Effect::Write); }
            }
            if *pipelined { tracker.sent(b'H', Effect::Nothing); }
            tracker.sent(b'S', Effect::Nothing);
            prop_assert!(!tracker.is_settled());
            if *fails { tracker.received(b'E', 0) } else {
                for _ in 0..*statements { for tag in *b"12TDC" { tracker.received(tag, 0); } }
            }
            prop_assert_eq!(tracker.fate(true), Fate::Unknown);
            tracker.received(b'Z', b'I');
            prop_assert!(tracker.is_idle());
        }
    }
}
