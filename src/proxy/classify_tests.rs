//! Tables of statements and what they must be taken for.

use super::*;
use proptest::prelude::*;

fn kind(text: &str) -> Kind {
    classify(text.as_bytes(), false).kind
}

#[test]
fn tables_are_sorted() {
    assert!(SYNTAX.is_sorted());
    assert!(CATALOGUE.is_sorted());
    assert!(FUNCTIONS.lines().is_sorted());
}

#[test]
fn proved_reads() {
    for text in [
        "SELECT 1",
        "select abalance from pgbench_accounts where aid = 5;",
        "  -- hint\n /* x */ SELECT count(*), max(a) FROM t WHERE lower(b) = 'x' GROUP BY c HAVING sum(d) > 3",
        "(select 1) union all (select 2)",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "with recursive t(n) as (values (1) union all select n + 1 from t where n < 5) select sum(n) from t",
        "VALUES (1), (2)",
        "TABLE t",
        "select * from generate_series(1, 10) as g(i)",
        "select coalesce(a, nullif(b, 1)), cast(c as numeric(10, 2)), extract(year from d) from t where e in (1, 2) and exists (select 1)",
        "select pg_catalog.lower('A')",
        "select substring(a for 3) from t",
        "select relname from pg_catalog.pg_class where relkind in ('r') order by 1",
        "select 'insert into t' as \"delete\"",
        "explain select 1",
        "explain (costs off) select * from t",
        "show search_path",
        "select now(), row_number() over (partition by a order by b) from t limit 5",
        "select count(*) filter (where a > 1) from t",
        "select array(select 1), row(1, 2), t.a from t where a = any($1)",
    ] {
        assert_eq!(kind(text), Kind::Read, "{text}");
    }
}

#[test]
fn everything_doubtful_goes_to_the_primary() {
    for text in [
        "insert into t values (1)",
        "select * from t for update",
        "select * from t for no key update",
        "select * from t for share",
        "with x as (delete from t returning *) select * from x",
        "select * into u from t",
        "select nextval('s')",
        "select currval('s'), lastval()",
        "select my_function(1)",
        "select other.lower('x')",
        "select \"Lower\"('x')",
        "select * from pg_stat_activity",
        "select pg_is_in_recovery()",
        "select pg_advisory_xact_lock(1)",
        "select txid_current()",
        "select inet_server_addr()",
        "select lo_create(0)",
        "select set_config('a.b', 'c', true)",
        "explain analyze select 1",
        "explain insert into t values (1)",
        "show transaction_read_only",
        "show in_hot_standby",
        "do $$ begin end $$",
        "call p()",
        "copy t from stdin",
        "create table t (a int)",
        "vacuum",
        "merge into t using u on true when matched then delete",
        "lock table t",
        "notify x",
        "fetch all from c",
        "execute p",
        "commit prepared 'x'",
        "rollback prepared 'x'",
        "begin isolation level nonsense",
        "begin;;begin read only deferrable",
    ] {
        assert!(matches!(kind(text), Kind::Write | Kind::SelfCommitting | Kind::Opaque), "{text}: {:?}", kind(text));
    }
}

#[test]
fn what_may_commit_before_its_end_is_told_apart() {
    for (text, by_itself) in [
        ("call p(1)", true),
        ("DO $$ begin commit; end $$", true),
        ("commit prepared 'x'", true),
        ("rollback prepared 'x'", true),
        ("vacuum (analyze) t", true),
        ("analyze", true),
        ("cluster t", true),
        ("reindex (concurrently) table t", true),
        ("create database d", true),
        ("drop database if exists d", true),
        ("create tablespace s location '/x'", true),
        ("alter database d set tablespace s", true),
        ("alter system set work_mem = '1GB'", true),
        ("create unique index concurrently i on t (a)", true),
        ("drop index concurrently i", true),
        ("alter table t detach partition u concurrently", true),
        ("alter subscription s refresh publication", true),
        ("create table t (a int)", false),
        ("drop index i", false),
        ("insert into t values (1)", false),
        ("refresh materialized view concurrently m", false),
        ("execute p", false),
    ] {
        assert_eq!(kind(text) == Kind::SelfCommitting, by_itself, "{text}: {:?}", kind(text));
    }
}

#[test]
fn several_statements_or_an_open_quote_are_opaque() {
    for text in ["select 1; select 2", "begin; insert into t values (1); commit", "select 'a", "select U&\"d\\0061t\"(1)", "/* select 1"] {
        assert_eq!(kind(text), Kind::Opaque, "{text}");
    }
    assert_eq!(kind("select 1;; ;"), Kind::Read);
    assert_eq!(kind(" ; -- nothing"), Kind::Empty);
}

#[test]
fn transactions_are_told_apart() {
    let any = |tag| Kind::Begin { access: Access::Any, tag };
    let read_only = |tag| Kind::Begin { access: Access::ReadOnly, tag };
    for (text, expected) in [
        ("BEGIN", any(BeginTag::Begin)),
        ("begin work", any(BeginTag::Begin)),
        ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", read_only(BeginTag::StartTransaction)),
        ("begin read only", read_only(BeginTag::Begin)),
        ("begin read only, read write", any(BeginTag::Begin)),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", any(BeginTag::Begin)),
        ("commit", Kind::Commit { plain: true }),
        ("END TRANSACTION", Kind::Commit { plain: true }),
        ("commit and chain", Kind::Commit { plain: false }),
        ("prepare transaction 'x'", Kind::Commit { plain: false }),
        ("rollback", Kind::Rollback { plain: true }),
        ("abort work", Kind::Rollback { plain: true }),
        ("rollback to savepoint a", Kind::Control),
        ("rollback work to a", Kind::Control),
        ("savepoint a", Kind::Control),
        ("set transaction read only", Kind::SetReadOnly),
    ] {
        assert_eq!(kind(text), expected, "{text}");
    }
}

#[test]
fn session_state_pins() {
    for (text, pins) in [
        ("set search_path = x", true),
        ("SET SESSION AUTHORIZATION x", true),
        ("set session characteristics as transaction read only", true),
        ("set role x", true),
        ("set local search_path = x", false),
        ("set transaction isolation level serializable", false),
        ("set constraints all deferred", false),
        ("listen x", true),
        ("prepare p as select 1", true),
        ("prepare transaction 'x'", false),
        ("create temp table t (a int)", true),
        ("create or replace temporary view v as select 1", true),
        ("create local temp table t (a int)", true),
        ("select 1 as a into temp t", true),
        ("create table pg_temp.t (a int)", true),
        ("create table temp (temp int)", false),
        ("declare c cursor with hold for select 1", true),
        ("declare c cursor for select 1", false),
        ("select pg_advisory_lock(1)", true),
        ("select pg_catalog.pg_try_advisory_lock(1)", true),
        ("select pg_advisory_xact_lock(1)", false),
        ("select set_config('a.b', 'c', false)", true),
        ("insert into t values (1)", false),
        ("select 1; set a.b = 1", true),
        ("load 'x'", true),
    ] {
        assert_eq!(classify(text.as_bytes(), false).pins, pins, "{text}");
    }
}

#[test]
fn a_backslash_hides_nothing_unless_the_session_says_so() {
    let text = br"select '\'; delete from t; --'";
    assert_eq!(classify(text, false).kind, Kind::Opaque);
    assert_eq!(classify(text, true).kind, Kind::Read);
}

proptest! {
    #[test]
    fn no_text_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = classify(&text, false);
    }

    #[test]
    fn a_write_is_never_hidden_by_what_stands_around_it(
        before in prop::sample::select(vec!["select 1", "select 'x''y'", "select $a$;$a$", "/* ' */ select 1", "-- '\nselect 1", "select E'\\''", "with a as (select 1) select 2"]),
        write in prop::sample::select(vec!["insert into t values (1)", "delete from t", "select f(1)", "drop table t", "update t set a = 1"]),
        space in "[ \n\t]{0,3}",
    ) {
        let text = format!("{before};{space}{write}");
        prop_assert_eq!(kind(&text), Kind::Opaque);
        // DROP in a WITH is a syntax error, whoever is asked.
        let text = format!("with x as ({write}) {before}");
        prop_assert!(write.starts_with("drop") || kind(&text) != Kind::Read, "{}", text);
    }
}
