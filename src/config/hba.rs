//! PURE: lines of pg_hba.conf that cannot be right. With one that it cannot read PostgreSQL does not start, and at a reload it keeps the old
//! ones without telling anybody but its log. Refused here is only what every supported release refuses, or what would swallow the next line;
//! the rest is asked of PostgreSQL itself (`postgres::hba`).

use super::reader::Refusal;
use std::net::IpAddr;

const METHODS: &[&str] = &[
    "trust",
    "reject",
    "md5",
    "password",
    "scram-sha-256",
    "gss",
    "sspi",
    "ident",
    "peer",
    "pam",
    "bsd",
    "ldap",
    "cert",
    "radius",
    "oauth",
];
const INCLUDES: &[&str] = &["include", "include_if_exists", "include_dir"];
const HOSTS: &[&str] = &["host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

/// Why `line` will not do.
pub(super) fn check(line: &str) -> Result<(), Refusal> {
    if line.contains(['\n', '\r']) {
        return Err(("has several lines".into(), "write each line as an entry of its own".into()));
    }
    if line.trim_end().ends_with('\\') {
        return Err(("ends with a backslash, which joins it with the next line".into(), "write all of it in one entry".into()));
    }
    let fields = fields(line)?;
    let Some(kind) = fields.first() else { return Ok(()) };
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    match kind.as_str() {
        "local" => method(&fields, 3),
        kind if HOSTS.contains(&kind) => match fields.get(3) {
            Some(address) => method(&fields, 4 + masks(address, fields.get(4).copied())?),
            None => Err(too_few()),
        },
        kind if INCLUDES.contains(&kind) => {
            if fields.len() == 2 {
                Ok(())
            } else {
                Err(too_few())
            }
        }
        kind => {
            let near = HOSTS.iter().chain(["local"].iter()).find(|known| strsim::damerau_levenshtein(known, kind) <= 2);
            let hint = near.map_or(String::new(), |near| format!(" (did you mean {near}?)"));
            Err((format!("{kind:?} is no connection type"), format!("begin it with local, {}{hint}", HOSTS.join(", "))))
        }
    }
}

fn too_few() -> Refusal {
    let remedy = "write it as in \"host all all 10.0.0.0/8 scram-sha-256\": type, databases, users, address (not after local), method";
    ("has too few fields".into(), remedy.into())
}

/// Fields as PostgreSQL splits them: at blanks that are not in quotes and not after a comma; `#` begins a comment.
fn fields(line: &str) -> Result<Vec<String>, Refusal> {
    let (mut fields, mut field, mut quoted, mut listed) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                if !field.is_empty() && !listed {
                    fields.push(std::mem::take(&mut field));
                }
                continue;
            }
            c => field.push(c),
        }
        listed = c == ',' && !quoted;
    }
    if quoted {
        return Err(("has a quotation mark that is not closed".into(), "close it, or leave it out".into()));
    }
    if !field.is_empty() {
        fields.push(field);
    }
    Ok(fields)
}

/// How many fields (0 or 1) a netmask takes after `address`. What is no number is a name, and any name will do.
fn masks(address: &str, next: Option<&str>) -> Result<usize, Refusal> {
    let wrong =
        |what: String| (what, "write an address as in 10.1.2.3/32, 10.0.0.0/8 or fd00::/8, or all, samenet, a host's name".to_owned());
    if let Some((host, bits)) = address.split_once('/') {
        // Old forms like 10.1/16 are numbers, too.
        if !host.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | 'x' | 'X')) && !host.contains('%') {
            return Err(wrong(format!("{address} is a name with a mask")));
        }
        let most = if host.contains(':') { 128 } else { 32 };
        return match bits.parse::<u8>() {
            Ok(bits) if bits <= most => Ok(0),
            Ok(_) | Err(_) => Err(wrong(format!("{address} has no number of bits from 0 to {most}"))),
        };
    }
    let numbers: Vec<Option<u64>> = address.split('.').map(|part| part.parse().ok()).collect();
    if numbers.len() == 4 && numbers.iter().all(Option::is_some) && address.parse::<IpAddr>().is_err() {
        return Err(wrong(format!("{address} is no address")));
    }
    let Ok(ip) = address.parse::<IpAddr>() else { return Ok(0) };
    match next.map(str::parse::<IpAddr>) {
        Some(Ok(mask)) if mask.is_ipv4() == ip.is_ipv4() => Ok(1),
        Some(_) | None => Err(wrong(format!("{address} has no mask"))),
    }
}

/// The method and its options, from the field `at` on.
fn method(fields: &[&str], at: usize) -> Result<(), Refusal> {
    let method = *fields.get(at).ok_or_else(too_few)?;
    let local = fields[0] == "local";
    if !METHODS.contains(&method) {
        return Err((format!("{method:?} is no authentication method"), format!("write one of {}", METHODS.join(", "))));
    }
    let misplaced = match method {
        "peer" => (!local).then_some("local"),
        "gss" => local.then_some("host"),
        "cert" => (fields[0] != "hostssl").then_some("hostssl"),
        _ => None,
    };
    if let Some(kind) = misplaced {
        return Err((format!("{method} works with {kind} only"), format!("begin the line with {kind}, or use scram-sha-256")));
    }
    match fields[at + 1..].iter().find(|option| !option.contains('=')) {
        Some(option) => Err((format!("{option:?} is no option of a method"), "write options as name=value".into())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn every_form_that_postgresql_reads_is_taken() {
        let good = [
            "",
            "# a comment with \"half a quote",
            "local all all trust",
            "local   \"my db\",other, third  +admins,@file peer map=x",
            "host all all 10.0.0.0/8 scram-sha-256 # why",
            "host all all 10.0.0.0 255.0.0.0 md5",
            "host all all 10.1/16 md5",
            "host all all fd00::/8 reject",
            "host all all ::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff trust",
            "hostssl all all .example.com cert clientcert=verify-full map=\"a b\"",
            "hostnossl sameuser /^adm.*$ samenet reject",
            "hostgssenc all all all gss include_realm=0",
            "host replication backup samehost scram-sha-256",
            "host all all db1.example.com ldap ldapserver=ldap.example.com ldapprefix=\"cn=\" ldapsuffix=\", dc=example\"",
            "include_if_exists more.conf",
        ];
        for line in good {
            assert_eq!(check(line), Ok(()), "{line}");
        }
    }

    #[test]
    fn what_keeps_a_server_from_starting_is_refused_with_its_reason() {
        let bad = [
            ("hots all all all md5", "\"hots\" is no connection type"),
            ("host all all", "has too few fields"),
            ("host all all all", "has too few fields"),
            ("local all all", "has too few fields"),
            ("host all all 10.0.0.0/33 md5", "10.0.0.0/33 has no number of bits"),
            ("host all all 10.0.0.0/x md5", "10.0.0.0/x has no number of bits"),
            ("host all all fd00::/129 md5", "fd00::/129 has no number of bits"),
            ("host all all db.example.com/24 md5", "db.example.com/24 is a name with a mask"),
            ("host all all 10.0.0.300 md5", "10.0.0.300 is no address"),
            ("host all all 10.0.0.1 md5", "10.0.0.1 has no mask"),
            ("host all all 10.0.0.1 ffff:: md5", "10.0.0.1 has no mask"),
            ("host all all all scram-sha256", "\"scram-sha256\" is no authentication method"),
            ("host all all 0.0.0.0/0 peer", "peer works with local only"),
            ("host all all all cert", "cert works with hostssl only"),
            ("host all all all md5 md5", "\"md5\" is no option"),
            ("host \"all all all md5", "quotation mark"),
            ("local all all trust \\", "backslash"),
            ("local all all\ntrust", "several lines"),
        ];
        for (line, why) in bad {
            let (problem, _) = check(line).expect_err(line);
            assert!(problem.contains(why), "{line}: {problem}");
        }
    }
}
