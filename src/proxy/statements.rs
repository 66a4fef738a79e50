//! Prepared statements and portals, as far as the proxy must know them: what executing one may do, and whether the server's session
//! holds something that the client relies on.
//!
//! A name means what the server made of it, and the server may refuse: until its answer has come, a name that is used again in a
//! later batch may mean either statement, and counts as the worse of the two. Within one batch there is no doubt: where the Parse
//! fails, so does everything behind it.
//!
//! Of statements that were named on a standby the Parse itself is kept: a client that wants the primary later takes them along. Pure.

use super::classify::Class;
use super::protocol::Effect;
use crate::wire::message::split_cstr;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A message that changes what a name means, not answered yet.
#[derive(Debug)]
enum Pending {
    Parse {
        name: Box<[u8]>,
        class: Class,
        batch: u64,
        /// The message's body, where it may be needed again.
        body: Option<Box<[u8]>>,
    },
    /// No name: of a portal.
    Close { name: Option<Box<[u8]>>, batch: u64 },
}

impl Pending {
    fn batch(&self) -> u64 {
        match self {
            Pending::Parse { batch, .. } | Pending::Close { batch, .. } => *batch,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Statements {
    unnamed: Option<Class>,
    named: HashMap<Box<[u8]>, Class>,
    portals: HashMap<Box<[u8]>, Effect>,
    pending: VecDeque<Pending>,
    /// Number of messages sent that ReadyForQuery answers: what they end fails as a whole.
    batch: u64,
    /// The batch of an unnamed Parse that no Bind followed.
    unbound: Option<u64>,
    /// By name, what the server that is a standby was told to parse.
    portable: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// Bytes of texts that a client may take along: as much as a driver's cache of statements holds.
const PORTABLE_BYTES_MAX: usize = 1 << 20;

impl Statements {
    /// Whether the server's session holds statements the client relies on.
    #[must_use]
    pub fn has_named(&self) -> bool {
        !self.named.is_empty() || self.pending.iter().any(|p| matches!(p, Pending::Parse { name, .. } if !name.is_empty()))
    }

    /// Whether an unnamed statement was made for a Bind that is still to come.
    #[must_use]
    pub fn awaits_bind(&self) -> bool {
        self.unbound.is_some()
    }

    /// A Parse of `name` was sent; `body` is that of the message where it may be needed again.
    pub fn parse_sent(&mut self, name: &[u8], class: Class, body: Option<&[u8]>) {
        if name.is_empty() {
            self.unbound = Some(self.batch);
        }
        let body = body.filter(|_| !name.is_empty()).map(Into::into);
        self.pending.push_back(Pending::Parse { name: name.into(), class, batch: self.batch, body });
    }

    /// Whether the client can take so much more along.
    #[must_use]
    pub fn has_room_for(&self, body_len: usize) -> bool {
        let pending = self.pending.iter().map(|pending| match pending {
            Pending::Parse { body, .. } => body.as_ref().map_or(0, |body| body.len()),
            Pending::Close { .. } => 0,
        });
        self.portable.values().map(|body| body.len()).chain(pending).sum::<usize>() + body_len <= PORTABLE_BYTES_MAX
    }

    /// The bodies of the Parse messages that make the named statements again, which are the next server's from now on.
    pub fn unpack(&mut self) -> impl Iterator<Item = Box<[u8]>> {
        std::mem::take(&mut self.portable).into_values()
    }

    /// A Parse was answered: the name means the new statement now.
    pub fn parse_answered(&mut self) {
        while let Some(first) = self.pending.pop_front() {
            if let Pending::Parse { name, class, body, .. } = first {
                if let Some(body) = body {
                    self.portable.insert(name.clone(), body);
                }
                match name.is_empty() {
                    true => self.unnamed = Some(class),
                    false => drop(self.named.insert(name, class)),
                }
                return;
            }
        }
    }

    /// A Bind was sent; nothing is assumed about a statement nobody saw.
    pub fn bind_sent(&mut self, portal: &[u8], statement: &[u8]) {
        if statement.is_empty() {
            self.unbound = None;
        }
        let effect = Effect::of(self.class(statement).kind);
        // A second Bind of a name fails and leaves the first; the unnamed portal is always replaced.
        let first = self.portals.get(portal).copied().filter(|_| !portal.is_empty());
        self.portals.insert(portal.into(), first.map_or(effect, |first| first.max(effect)));
    }

    /// What executing the portal may do.
    #[must_use]
    pub fn executed(&self, portal: &[u8]) -> Effect {
        self.portals.get(portal).copied().unwrap_or(Effect::Opaque)
    }

    /// A Close was sent.
    pub fn close_sent(&mut self, body: &[u8]) {
        let name = match body.split_first() {
            Some((b'S', name)) => split_cstr(name).map(|(name, _)| name.into()),
            _ => None,
        };
        self.pending.push_back(Pending::Close { name, batch: self.batch });
    }

    /// A Close was answered: only now is the statement gone (after an error the server skips it).
    pub fn close_answered(&mut self) {
        while let Some(first) = self.pending.pop_front() {
            if let Pending::Close { name, .. } = first {
                if let Some(name) = name {
                    self.named.remove(&name);
                    self.portable.remove(&name);
                }
                return;
            }
        }
    }

    /// A Query was sent: it takes the unnamed statement away.
    pub fn query_sent(&mut self) {
        self.unbound = None;
    }

    /// A Sync or Query was sent: what follows is carried out also where something before it fails.
    pub fn sync_sent(&mut self) {
        self.batch += 1;
    }

    /// The server reads COPY data and ignores the last Syncs that were sent.
    pub fn syncs_ignored(&mut self, syncs: usize) {
        self.batch -= (syncs as u64).min(self.batch);
        for pending in &mut self.pending {
            let (Pending::Parse { batch, .. } | Pending::Close { batch, .. }) = pending;
            *batch = self.batch.min(*batch);
        }
    }

    /// ReadyForQuery came, and `due` more are to come. What is left of the batches before them had no answer, because an error came first:
    /// which of it took effect is not followed up. Every name may mean the worst that was asked for, and no Close counts.
    pub fn batches_answered(&mut self, due: usize) {
        let present = self.batch.saturating_sub(due as u64);
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.batch() < present) {
            if let Pending::Parse { name, class, batch, .. } = pending {
                if name.is_empty() && self.unbound == Some(batch) {
                    self.unbound = None;
                }
                let known = if name.is_empty() { self.unnamed } else { self.named.get(&name).copied() };
                let class = known.map_or(class, |known| worse(known, class));
                match name.is_empty() {
                    true => self.unnamed = Some(class),
                    false => drop(self.named.insert(name, class)),
                }
            }
        }
    }

    /// The transaction ended: its portals are gone.
    pub fn transaction_ended(&mut self) {
        self.portals.clear();
    }

    /// DEALLOCATE ALL or DISCARD ALL was answered; what was sent behind it is still to come.
    pub fn deallocated(&mut self) {
        self.unnamed = None;
        self.named.clear();
        self.portals.clear();
        self.portable.clear();
    }

    /// The session goes on at another server, and its named statements with it: what has no name stays behind.
    pub fn moved(&mut self) {
        self.unnamed = None;
        self.unbound = None;
        self.portals.clear();
    }

    /// The server is no longer this session's.
    pub fn clear(&mut self) {
        *self = Statements { batch: self.batch, ..Statements::default() };
    }

    fn class(&self, statement: &[u8]) -> Class {
        let known = if statement.is_empty() { self.unnamed } else { self.named.get(statement).copied() };
        let mut worst = known;
        for pending in &self.pending {
            match pending {
                Pending::Parse { name, class, batch, .. } if &**name == statement => {
                    let certain = *batch == self.batch;
                    worst = Some(worst.filter(|_| !certain).map_or(*class, |w| worse(w, *class)));
                }
                Pending::Parse { .. } | Pending::Close { .. } => {}
            }
        }
        worst.unwrap_or(Class::OPAQUE)
    }
}

fn worse(a: Class, b: Class) -> Class {
    let kind = if Effect::of(a.kind) >= Effect::of(b.kind) { a.kind } else { b.kind };
    Class { kind, pins: a.pins || b.pins }
}

#[cfg(test)]
mod tests {
    use super::super::classify::Kind;
    use super::*;

    const READ: Class = Class { kind: Kind::Read, pins: false };
    const WRITE: Class = Class { kind: Kind::Write, pins: false };

    fn effect(statements: &mut Statements, name: &[u8]) -> Effect {
        statements.bind_sent(b"", name);
        statements.executed(b"")
    }

    #[test]
    fn a_statement_is_gone_when_its_close_is_answered() {
        let mut statements = Statements::default();
        statements.parse_sent(b"s", READ, None);
        statements.close_sent(b"Ss\0");
        assert!(statements.has_named());
        statements.parse_answered();
        statements.close_answered();
        assert!(!statements.has_named());
        statements.parse_sent(b"t", READ, None);
        statements.close_sent(b"St\0");
        statements.sync_sent();
        statements.batches_answered(0);
        statements.close_answered();
        assert!(statements.has_named(), "a Close that the server skipped took no effect");
    }

    #[test]
    fn a_name_closed_and_parsed_again_in_one_batch_stays_known() {
        let mut statements = Statements::default();
        statements.parse_sent(b"s", WRITE, None);
        statements.sync_sent();
        statements.parse_answered();
        statements.close_sent(b"Ss\0");
        statements.parse_sent(b"s", READ, None);
        assert_eq!(effect(&mut statements, b"s"), Effect::Read);
        statements.close_answered();
        statements.parse_answered();
        assert!(statements.has_named());
        assert_eq!(effect(&mut statements, b"s"), Effect::Read);
    }

    #[test]
    fn a_name_whose_second_parse_is_refused_keeps_its_first_meaning() {
        let mut statements = Statements::default();
        statements.parse_sent(b"s", WRITE, None);
        statements.sync_sent();
        statements.parse_answered();
        statements.parse_sent(b"s", READ, None);
        assert_eq!(effect(&mut statements, b"s"), Effect::Read, "if the Parse fails, what follows in its batch is skipped");
        statements.sync_sent();
        assert_eq!(effect(&mut statements, b"s"), Effect::Write, "sent before the answer is known");
        statements.batches_answered(0);
        assert_eq!(effect(&mut statements, b"s"), Effect::Write, "42P05: the first statement is still there");
    }

    #[test]
    fn an_unnamed_parse_that_was_skipped_leaves_the_one_before() {
        let mut statements = Statements::default();
        statements.parse_sent(b"", WRITE, None);
        statements.sync_sent();
        statements.parse_answered();
        statements.parse_sent(b"", READ, None);
        statements.sync_sent();
        statements.batches_answered(0);
        assert_eq!(effect(&mut statements, b""), Effect::Write);
        statements.parse_sent(b"", READ, None);
        statements.sync_sent();
        statements.parse_answered();
        assert_eq!(effect(&mut statements, b""), Effect::Read, "an answered Parse ends the doubt");
    }

    #[test]
    fn nothing_is_assumed_about_a_statement_nobody_saw() {
        assert_eq!(effect(&mut Statements::default(), b"made by PREPARE"), Effect::Opaque);
    }

    #[test]
    fn what_was_sent_behind_discard_all_is_still_to_come() {
        let mut statements = Statements::default();
        statements.sync_sent();
        statements.parse_sent(b"s", READ, None);
        statements.deallocated();
        assert!(statements.has_named());
        statements.parse_answered();
        assert!(statements.has_named());
        assert_eq!(effect(&mut statements, b"s"), Effect::Read);
        statements.deallocated();
        assert!(!statements.has_named());
    }

    #[test]
    fn an_error_is_none_of_a_later_batch() {
        let mut statements = Statements::default();
        statements.parse_sent(b"bad", READ, None);
        statements.sync_sent();
        statements.close_sent(b"Sbad\0");
        statements.sync_sent();
        statements.parse_sent(b"s", READ, None);
        statements.sync_sent();
        statements.batches_answered(2);
        statements.close_answered();
        statements.batches_answered(1);
        assert!(statements.has_named(), "the answer to Close is not that to Parse");
        statements.parse_answered();
        statements.batches_answered(0);
        assert!(statements.has_named());
    }

    #[test]
    fn an_unnamed_statement_waits_for_its_bind() {
        let mut statements = Statements::default();
        for ends in [false, true] {
            statements.parse_sent(b"", READ, None);
            statements.sync_sent();
            assert!(statements.awaits_bind());
            statements.parse_answered();
            statements.batches_answered(0);
            assert!(statements.awaits_bind(), "answered, and to be bound");
            if ends {
                statements.query_sent()
            } else {
                statements.bind_sent(b"", b"")
            }
            assert!(!statements.awaits_bind());
        }
        statements.parse_sent(b"", READ, None);
        statements.sync_sent();
        statements.batches_answered(0);
        assert!(!statements.awaits_bind(), "a Parse that failed made none");
    }

    #[test]
    fn a_client_takes_along_what_was_made_and_not_closed() {
        let mut statements = Statements::default();
        for name in [&b"a"[..], b"b", b""] {
            statements.parse_sent(name, READ, Some(name));
            statements.parse_answered();
        }
        statements.parse_sent(b"refused", READ, Some(b"refused"));
        statements.sync_sent();
        statements.batches_answered(0);
        statements.parse_sent(b"a", READ, Some(b"refused: it is there"));
        statements.close_sent(b"Sb\0");
        statements.sync_sent();
        statements.batches_answered(0);
        let kept = |statements: &Statements| statements.portable.values().cloned().collect::<Vec<_>>();
        assert_eq!(kept(&statements), [Box::from(*b"a"), Box::from(*b"b")], "that Close was skipped");
        statements.close_sent(b"Sb\0");
        statements.close_answered();
        assert!(statements.has_room_for(PORTABLE_BYTES_MAX - 1) && !statements.has_room_for(PORTABLE_BYTES_MAX));
        assert_eq!(statements.unpack().collect::<Vec<_>>(), [Box::from(*b"a")]);
        assert!(statements.has_named(), "on the next server");
        assert_eq!(statements.unpack().count(), 0);
    }
}
