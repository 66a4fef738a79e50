//! Just enough of Rust's grammar for the house rules: text without comments and strings, paths that are used, functions.
//! No parser: a crate that parses Rust would cost more to build than these lines to read.

/// Source text in which comments, strings and characters are blanked; lines and columns are kept.
pub struct Code(String);

/// One function with a body.
pub struct Function {
    pub name: String,
    /// First line, from 1.
    pub line: usize,
    pub lines: usize,
}

impl Code {
    pub fn of(text: &str) -> Code {
        let mut out = Vec::with_capacity(text.len());
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let end = skip(bytes, at);
            if end == at {
                out.push(bytes[at]);
                at += 1;
            } else {
                out.extend(bytes[at..end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
                at = end;
            }
        }
        Code(String::from_utf8(out).expect("blanking replaces whole tokens"))
    }

    /// Up to the unit tests, which may do what code may not.
    pub fn without_tests(self) -> Code {
        Code(self.0.split("#[cfg(test)]").next().unwrap_or("").to_owned())
    }

    /// Lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.0.lines().enumerate().map(|(n, line)| (n + 1, line))
    }

    fn line_at(&self, offset: usize) -> usize {
        self.0.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count() + 1
    }

    /// Every function that has a body.
    pub fn functions(&self) -> Vec<Function> {
        let text = &self.0;
        let mut found = Vec::new();
        for (at, _) in text.match_indices("fn ") {
            let starts_word = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            let name: String = text[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !starts_word || name.is_empty() {
                continue;
            }
            if let Some(end) = body_end(text, at) {
                let line = self.line_at(at);
                found.push(Function { name, line, lines: self.line_at(end) + 1 - line });
            }
        }
        found
    }
}

/// End of the comment, string or character that begins at `at`, or `at`.
fn skip(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + block_comment(rest),
        [b'"', ..] => at + string(rest),
        [b'r', b'"' | b'#', ..] if !after_word => raw_string(rest, 1).map_or(at, |n| at + n),
        [b'b', b'r', b'"' | b'#', ..] if !after_word => raw_string(rest, 2).map_or(at, |n| at + n),
        [b'\'', b'\\', ..] => at + 3 + rest[3..].iter().position(|b| *b == b'\'').map_or(0, |n| n + 1),
        [b'\'', ..] => at + character(rest),
        _ => at,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut i) = (0_usize, 0);
    while i < rest.len() {
        match &rest[i..] {
            [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
            [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn string(rest: &[u8]) -> usize {
    let mut i = 1;
    while i < rest.len() && rest[i] != b'"' {
        i += if rest[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(rest.len())
}

/// `r"…"`, `r##"…"##`; `None` for a raw identifier like `r#type`.
fn raw_string(rest: &[u8], prefix: usize) -> Option<usize> {
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let body = prefix + hashes + 1;
    let end = rest[body..].windows(close.len()).position(|w| w == close)?;
    Some(body + end + close.len())
}

/// Length of `'x'`, zero for a lifetime.
fn character(rest: &[u8]) -> usize {
    let wide = std::str::from_utf8(&rest[1..rest.len().min(5)]).or_else(|e| std::str::from_utf8(&rest[1..=e.valid_up_to()]));
    let Some(c) = wide.ok().and_then(|t| t.chars().next()) else { return 0 };
    if rest.get(1 + c.len_utf8()) == Some(&b'\'') { c.len_utf8() + 2 } else { 0 }
}

/// Offset of the brace that closes the body of the function at `at`; `None` for a declaration.
fn body_end(text: &str, at: usize) -> Option<usize> {
    let (mut depth, mut parens) = (0_i32, 0_i32);
    for (i, b) in text.bytes().enumerate().skip(at) {
        match b {
            b'(' | b'[' => parens += 1,
            b')' | b']' => parens -= 1,
            b';' if depth == 0 && parens == 0 => return None,
            // `fn(…) -> T` as a type ends where its surroundings do.
            b',' | b'}' if depth == 0 && parens < 0 => return None,
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(i),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Every path that the code names with its line: `use` trees expanded, and `crate::…`, `std::…` and the like in expressions.
pub fn use_paths(code: &Code) -> Vec<(usize, Vec<String>)> {
    let text = &code.0;
    let mut found = Vec::new();
    for (at, _) in text.match_indices("use ") {
        let before = text[..at].trim_end_matches([' ', '\n']);
        let is_item = before.is_empty() || before.ends_with([';', '}', '{', ']', ')']) || before.ends_with("pub");
        if let (true, Some(end)) = (is_item, text[at..].find(';')) {
            let line = code.line_at(at);
            let mut paths = Vec::new();
            expand(&text[at + 4..at + end], &[], &mut paths);
            found.extend(paths.into_iter().map(|p| (line, p)));
        }
    }
    found.extend(inline_paths(code));
    found
}

/// `a::{b, c::{d, e}}` → a::b, a::c::d, a::c::e
fn expand(tree: &str, prefix: &[String], out: &mut Vec<Vec<String>>) {
    for part in split_top(tree) {
        let part = part.trim();
        let (head, group) = part.split_once('{').map_or((part, None), |(head, rest)| (head, rest.rsplit_once('}').map(|(g, _)| g)));
        let mut path = prefix.to_vec();
        let head = head.split(" as ").next().unwrap_or(head);
        path.extend(head.split("::").map(str::trim).filter(|s| !s.is_empty() && *s != "self").map(str::to_owned));
        match group {
            Some(group) => expand(group, &path, out),
            None if !path.is_empty() => out.push(path),
            None => {}
        }
    }
}

/// Split at commas outside of braces.
fn split_top(tree: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0_i32, 0, Vec::new());
    for (i, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[from..]);
    parts.into_iter().filter(|p| !p.trim().is_empty()).collect()
}

/// Paths of at least two segments in expressions and types.
fn inline_paths(code: &Code) -> Vec<(usize, Vec<String>)> {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    for (n, line) in code.lines() {
        for path in line.split(|c| !word(c)).filter(|p| p.contains("::") && !p.starts_with(':')) {
            let segments: Vec<String> = path.split("::").filter(|s| !s.is_empty() && !s.contains(':')).map(str::to_owned).collect();
            if segments.len() > 1 {
                found.push((n, segments));
            }
        }
    }
    found
}
