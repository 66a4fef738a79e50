//! What a statement may do, judged from its text alone: primary unless proved a read.
//!
//! Every doubt costs performance, never safety: an unknown function, an open quote, several statements in one string make a write. What
//! a text cannot show (a view that calls `nextval`, an operator that writes) the standby refuses with 25006, and the session learns.
//! It does not parse; it looks at words, calls and the ends of statements. Pure.
//!
//! Entry point: [`classify`].

use super::lexer::{Lexer, Token};

/// What the proxy must know about a query string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    pub kind: Kind,
    /// Leaves something in the session that a later transaction may rely on.
    pub pins: bool,
}

/// What it may do to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing at all: an empty string.
    Empty,
    /// Reads, as far as its text shows: may run on a standby, and twice where the server refuses what the text does not show.
    Read,
    /// Opens a transaction in a form that cannot fail.
    Begin { access: Access, tag: BeginTag },
    /// Decides a transaction: COMMIT, END, PREPARE TRANSACTION.
    Commit { plain: bool },
    /// Gives a transaction up.
    Rollback { plain: bool },
    /// Changes settings or savepoints, not data: SET, SAVEPOINT, RELEASE, ROLLBACK TO, CLOSE, …
    Control,
    /// `SET TRANSACTION READ ONLY`: shows that the transaction only reads.
    SetReadOnly,
    /// A write that outside a transaction block may commit before it ends: PostgreSQL refuses most of these within one
    /// (`PreventInTransactionBlock`).
    SelfCommitting,
    /// Anything else.
    Write,
    /// Several statements, or one too long or too odd to judge: may even commit in its middle.
    Opaque,
}

/// What BEGIN announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// READ ONLY, and not SERIALIZABLE (which a standby refuses).
    ReadOnly,
    Any,
}

/// Which command tag answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeginTag {
    Begin,
    StartTransaction,
}

impl Class {
    /// The class of a text that nobody looked at.
    pub const OPAQUE: Class = Class { kind: Kind::Opaque, pins: true };

    const fn of(kind: Kind) -> Class {
        Class { kind, pins: false }
    }
}

/// Judges a query string; `backslash_escapes` is what `standard_conforming_strings = off` means.
#[must_use]
pub fn classify(text: &[u8], backslash_escapes: bool) -> Class {
    let mut all: Option<Class> = None;
    let mut lexer = Lexer::new(text, backslash_escapes).peekable();
    while lexer.peek().is_some() {
        let statement = Statement::take(&mut lexer);
        if statement.broken {
            return Class::OPAQUE;
        }
        let Some(one) = statement.class() else { continue };
        all = Some(match all {
            None => one,
            Some(before) => Class { kind: Kind::Opaque, pins: before.pins || one.pins },
        });
    }
    all.unwrap_or(Class::of(Kind::Empty))
}

/// Words at the start of a statement that are looked at one by one.
const LEAD: usize = 12;

/// One statement, boiled down.
struct Statement<'a> {
    lead: [Option<Token<'a>>; LEAD],
    /// Number of tokens.
    len: usize,
    broken: bool,
    /// Something in it may write or is not known.
    suspect: bool,
    pins: bool,
    holds_cursor: bool,
    analyze: bool,
    /// A word of what PostgreSQL does outside of blocks only: DATABASE, CONCURRENTLY …
    outside_blocks: bool,
}

impl<'a> Statement<'a> {
    fn take(tokens: &mut impl Iterator<Item = Token<'a>>) -> Statement<'a> {
        let mut statement = Statement {
            lead: [None; LEAD],
            len: 0,
            broken: false,
            suspect: false,
            pins: false,
            holds_cursor: false,
            analyze: false,
            outside_blocks: false,
        };
        // The three tokens before the present one, newest first.
        let mut last: [Option<Token<'a>>; 3] = [None; 3];
        for token in tokens {
            if token == Token::Symbol(b';') {
                break;
            }
            if let Some(slot) = statement.lead.get_mut(statement.len) {
                *slot = Some(token);
            }
            statement.len += 1;
            statement.note(token, &last);
            last = [Some(token), last[0], last[1]];
        }
        statement
    }

    fn note(&mut self, token: Token<'a>, last: &[Option<Token<'a>>; 3]) {
        match token {
            Token::Broken => self.broken = true,
            Token::Word(word) | Token::Quoted(word) => {
                let mut buffer = [0u8; 64];
                let Some(lower) = lowered(word, &mut buffer) else { return };
                self.note_name(lower);
                if matches!(token, Token::Word(_)) {
                    self.note_keyword(lower, last);
                }
            }
            Token::Symbol(b'(') => self.suspect |= is_unknown_call(last),
            Token::Symbol(_) | Token::Literal => {}
        }
    }

    fn note_name(&mut self, name: &str) {
        if name.starts_with("pg_") && CATALOGUE.binary_search(&name).is_err() && !is_known_function(name) {
            // System activity, advisory locks, temporary schemas: they differ from node to node.
            self.suspect = true;
        }
        let locks = matches!(name, "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" | "pg_try_advisory_lock_shared");
        self.pins |= locks || matches!(name, "set_config" | "setseed" | "pg_temp" | "dblink_connect" | "dblink_connect_u");
    }

    fn note_keyword(&mut self, word: &str, last: &[Option<Token<'a>>; 3]) {
        let after = |previous: &str| last[0].is_some_and(|token| token.is(previous));
        match word {
            "insert" | "update" | "delete" | "merge" | "into" => self.suspect = true,
            "share" | "no" | "key" if after("for") => self.suspect = true,
            "temp" | "temporary" => {
                // CREATE [OR REPLACE] [GLOBAL | LOCAL] TEMP …, SELECT … INTO TEMP …
                self.pins |= ["create", "replace", "global", "local", "into"].iter().any(|previous| after(previous));
            }
            "database" | "tablespace" | "concurrently" | "subscription" | "system" => self.outside_blocks = true,
            "hold" if after("with") => self.holds_cursor = true,
            "analyze" | "analyse" => self.analyze = true,
            _ => {}
        }
    }

    fn word(&self, at: usize) -> Option<Token<'a>> {
        self.lead.get(at).copied().flatten()
    }

    fn at(&self, at: usize, words: &[&str]) -> bool {
        self.word(at).is_some_and(|token| words.iter().any(|word| token.is(word)))
    }

    /// `None` for an empty statement.
    fn class(&self) -> Option<Class> {
        let first = self.word(0)?;
        let mut buffer = [0u8; 64];
        let word = match first {
            Token::Word(word) => lowered(word, &mut buffer).unwrap_or_default(),
            Token::Symbol(b'(') => "select",
            _ => "",
        };
        let mut class = Class { kind: self.kind(word), pins: self.pins };
        class.pins |= match word {
            "set" => !matches!(class.kind, Kind::SetReadOnly) && !self.at(1, &["local", "transaction", "constraints"]),
            "prepare" => !self.at(1, &["transaction"]),
            "declare" => self.holds_cursor,
            "listen" | "load" => true,
            _ => false,
        };
        Some(class)
    }

    fn kind(&self, word: &str) -> Kind {
        match word {
            "select" | "with" | "values" | "table" if !self.suspect => Kind::Read,
            "explain" if !self.suspect && !self.analyze && self.explains_a_read() => Kind::Read,
            "show" if !self.shows_the_role() => Kind::Read,
            "begin" | "start" => self.begin(word),
            "commit" | "end" if !self.at(1, &["prepared"]) => Kind::Commit { plain: self.is_plain_end() },
            "prepare" if self.at(1, &["transaction"]) => Kind::Commit { plain: false },
            "commit" | "end" | "rollback" | "abort" if self.at(1, &["prepared"]) => Kind::SelfCommitting,
            "rollback" | "abort" if self.names_savepoint() => Kind::Control,
            "rollback" | "abort" => Kind::Rollback { plain: self.is_plain_end() },
            "set" if self.sets_read_only() => Kind::SetReadOnly,
            "set" | "reset" | "savepoint" | "release" | "close" | "listen" | "unlisten" | "deallocate" | "discard" | "prepare" => {
                Kind::Control
            }
            _ if self.commits_by_itself(word) => Kind::SelfCommitting,
            _ => Kind::Write,
        }
    }

    /// Doubt says yes: the words that tell stand anywhere in CREATE, DROP and ALTER.
    fn commits_by_itself(&self, word: &str) -> bool {
        match word {
            "call" | "do" | "vacuum" | "analyze" | "analyse" | "cluster" | "repack" | "reindex" => true,
            "create" | "drop" | "alter" => self.outside_blocks,
            _ => false,
        }
    }

    fn explains_a_read(&self) -> bool {
        let words = self.lead.iter().flatten();
        words.filter(|t| ["select", "with", "values", "table"].iter().any(|w| t.is(w))).count() > 0
    }

    /// Clients ask these to find out whether they talk to the primary.
    fn shows_the_role(&self) -> bool {
        self.at(1, &["transaction_read_only", "default_transaction_read_only", "in_hot_standby", "all"]) || self.at(1, &["trilithon"])
    }

    fn is_plain_end(&self) -> bool {
        self.len == 1 || (self.len == 2 && self.at(1, &["work", "transaction"]))
    }

    fn names_savepoint(&self) -> bool {
        self.at(1, &["to"]) || (self.at(1, &["work", "transaction"]) && self.at(2, &["to"]))
    }

    fn sets_read_only(&self) -> bool {
        self.at(1, &["transaction"]) && self.at(2, &["read"]) && self.at(3, &["only"]) && self.len == 4
    }

    fn begin(&self, word: &str) -> Kind {
        let (mut at, tag) = match word {
            "begin" if self.at(1, &["work", "transaction"]) => (2, BeginTag::Begin),
            "begin" => (1, BeginTag::Begin),
            _ if self.at(1, &["transaction"]) => (2, BeginTag::StartTransaction),
            _ => return Kind::Write,
        };
        let (mut read_only, mut serializable) = (false, false);
        while at < self.len {
            let step = if self.at(at, &["read"]) && self.at(at + 1, &["only", "write"]) {
                read_only = self.at(at + 1, &["only"]);
                2
            } else if self.at(at, &["isolation"]) && self.at(at + 1, &["level"]) && self.at(at + 2, &["serializable"]) {
                serializable = true;
                3
            } else if self.at(at, &["isolation"]) && self.at(at + 1, &["level"]) && self.is_level(at + 2) {
                4
            } else if self.word(at) == Some(Token::Symbol(b',')) && at + 1 < self.len {
                1
            } else {
                return Kind::Write;
            };
            at += step;
        }
        let access = if read_only && !serializable { Access::ReadOnly } else { Access::Any };
        Kind::Begin { access, tag }
    }

    fn is_level(&self, at: usize) -> bool {
        (self.at(at, &["repeatable"]) && self.at(at + 1, &["read"]))
            || (self.at(at, &["read"]) && self.at(at + 1, &["committed", "uncommitted"]))
    }
}

/// Whether the parenthesis after `last` opens a call of something that is not known to be harmless.
fn is_unknown_call(last: &[Option<Token<'_>>; 3]) -> bool {
    let (name, is_quoted) = match last[0] {
        Some(Token::Word(name)) => (name, false),
        Some(Token::Quoted(name)) => (name, true),
        _ => return false,
    };
    let mut buffer = [0u8; 64];
    let qualified = last[1] == Some(Token::Symbol(b'.'));
    let Some(lower) = lowered(name, &mut buffer) else { return true };
    if is_quoted && lower.as_bytes() != name {
        return true;
    }
    if qualified {
        return !last[2].is_some_and(|schema| schema.is("pg_catalog")) || !is_known_function(lower);
    }
    // `AS t (a, b)` names columns.
    let alias = last[1].is_some_and(|before| before.is("as") || before.is("with") || before.is("recursive"));
    let syntax = !is_quoted && SYNTAX.binary_search(&lower).is_ok();
    !alias && !syntax && !is_known_function(lower)
}

fn lowered<'b>(word: &[u8], buffer: &'b mut [u8; 64]) -> Option<&'b str> {
    let out = buffer.get_mut(..word.len())?;
    out.copy_from_slice(word);
    out.make_ascii_lowercase();
    std::str::from_utf8(out).ok()
}

/// Functions of pg_catalog (PostgreSQL 15) of which no variant is volatile and none tells about this node or session; and `random`,
/// `clock_timestamp` and `gen_random_uuid`, which are volatile but change nothing. Sorted.
const FUNCTIONS: &str = include_str!("functions.txt");

fn is_known_function(name: &str) -> bool {
    static SORTED: std::sync::LazyLock<Vec<&'static str>> = std::sync::LazyLock::new(|| FUNCTIONS.lines().collect());
    SORTED.binary_search(&name).is_ok()
}

/// Words that stand before a parenthesis without being called, and the calls that are grammar. Sorted.
const SYNTAX: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "as",
    "between",
    "bit",
    "by",
    "case",
    "cast",
    "char",
    "character",
    "coalesce",
    "cross",
    "cube",
    "dec",
    "decimal",
    "distinct",
    "else",
    "except",
    "exists",
    "explain",
    "extract",
    "filter",
    "float",
    "from",
    "greatest",
    "group",
    "grouping",
    "having",
    "ilike",
    "in",
    "intersect",
    "interval",
    "is",
    "isnull",
    "join",
    "lateral",
    "least",
    "like",
    "limit",
    "materialized",
    "nchar",
    "normalize",
    "not",
    "notnull",
    "nullif",
    "numeric",
    "offset",
    "on",
    "or",
    "order",
    "over",
    "overlay",
    "partition",
    "position",
    "recursive",
    "rollup",
    "row",
    "rows",
    "select",
    "sets",
    "similar",
    "some",
    "substring",
    "then",
    "time",
    "timestamp",
    "to",
    "treat",
    "trim",
    "union",
    "using",
    "values",
    "varbit",
    "varchar",
    "varying",
    "when",
    "where",
    "window",
    "with",
    "within",
    "xmlattributes",
    "xmlconcat",
    "xmlelement",
    "xmlforest",
    "zone",
];

/// Catalogues and views that say the same on each member. Sorted.
const CATALOGUE: &[&str] = &[
    "pg_aggregate",
    "pg_am",
    "pg_amop",
    "pg_amproc",
    "pg_attrdef",
    "pg_attribute",
    "pg_auth_members",
    "pg_authid",
    "pg_cast",
    "pg_catalog",
    "pg_class",
    "pg_collation",
    "pg_constraint",
    "pg_conversion",
    "pg_database",
    "pg_default_acl",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_group",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_init_privs",
    "pg_language",
    "pg_matviews",
    "pg_namespace",
    "pg_opclass",
    "pg_operator",
    "pg_opfamily",
    "pg_partitioned_table",
    "pg_policies",
    "pg_policy",
    "pg_proc",
    "pg_publication",
    "pg_publication_rel",
    "pg_publication_tables",
    "pg_range",
    "pg_rewrite",
    "pg_roles",
    "pg_rules",
    "pg_seclabel",
    "pg_seclabels",
    "pg_sequence",
    "pg_shadow",
    "pg_shdepend",
    "pg_shdescription",
    "pg_subscription",
    "pg_tables",
    "pg_tablespace",
    "pg_transform",
    "pg_trigger",
    "pg_ts_config",
    "pg_ts_dict",
    "pg_type",
    "pg_user",
    "pg_user_mapping",
    "pg_views",
];

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
