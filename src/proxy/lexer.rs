//! PostgreSQL's lexical rules, as far as one must know them to find words, function calls and the ends of statements.
//!
//! Follows scan.l: nested comments, `''` and `E''` strings, dollar quotes, quoted identifiers, parameters. It never fails: text that
//! PostgreSQL would refuse (an open quote) ends in `Token::Broken`, upon which nothing is proved about it. Pure.

/// One lexical element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A key word or identifier without quotes, as written.
    Word(&'a [u8]),
    /// An identifier in quotes, without them.
    Quoted(&'a [u8]),
    /// A string, number or parameter.
    Literal,
    /// Any other single byte: operators and punctuation.
    Symbol(u8),
    /// An open quote or comment: the rest is unknown.
    Broken,
}

impl Token<'_> {
    /// Whether it is this key word (given in lower case).
    #[must_use]
    pub fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(w) if w.eq_ignore_ascii_case(word.as_bytes()))
    }
}

/// Iterates over the tokens of a text.
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// `standard_conforming_strings = off`: a backslash escapes in plain strings too.
    backslash_escapes: bool,
}

impl<'a> Lexer<'a> {
    /// `backslash_escapes` is what `standard_conforming_strings = off` means.
    #[must_use]
    pub fn new(text: &'a [u8], backslash_escapes: bool) -> Lexer<'a> {
        Lexer { text, at: 0, backslash_escapes }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_space(&mut self) -> Result<(), ()> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C, _) => self.at += 1,
                (b'-', b'-') => {
                    while self.at < self.text.len() && !matches!(self.peek(0), b'\n' | b'\r') {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => self.skip_comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn skip_comment(&mut self) -> Result<(), ()> {
        let mut depth = 0u32;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => (depth, self.at) = (depth + 1, self.at + 2),
                (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                _ => self.at += 1,
            }
            if depth == 0 {
                return Ok(());
            }
        }
        Err(())
    }

    /// After the opening quote; `escapes` says whether a backslash hides the next byte.
    fn string(&mut self, quote: u8, escapes: bool) -> Option<&'a [u8]> {
        let start = self.at;
        while self.at < self.text.len() {
            let byte = self.peek(0);
            if byte == quote && self.peek(1) == quote && self.at + 1 < self.text.len() {
                self.at += 2;
            } else if byte == quote {
                self.at += 1;
                return Some(&self.text[start..self.at - 1]);
            } else if byte == b'\\' && escapes {
                self.at += 2;
            } else {
                self.at += 1;
            }
        }
        None
    }

    /// At a `$` that is not inside a word: a parameter, a dollar quote, or just the sign.
    fn dollar(&mut self) -> Token<'a> {
        if self.peek(1).is_ascii_digit() {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return Token::Literal;
        }
        let rest = &self.text[self.at..];
        let tag_len = rest[1..].iter().take_while(|b| is_word(**b) && **b != b'$').count();
        if rest.get(tag_len + 1) != Some(&b'$') {
            self.at += 1;
            return Token::Symbol(b'$');
        }
        let (tag, body) = rest.split_at(tag_len + 2);
        match body.windows(tag.len()).position(|window| window == tag) {
            Some(end) => {
                self.at += tag.len() + end + tag.len();
                Token::Literal
            }
            None => self.broken(),
        }
    }

    fn broken(&mut self) -> Token<'a> {
        self.at = self.text.len();
        Token::Broken
    }

    fn literal(&mut self, prefix: usize, escapes: bool) -> Token<'a> {
        self.at += prefix + 1;
        match self.string(b'\'', escapes) {
            Some(_) => Token::Literal,
            None => self.broken(),
        }
    }

    fn word(&mut self) -> Token<'a> {
        let start = self.at;
        while self.at < self.text.len() && is_word(self.peek(0)) {
            self.at += 1;
        }
        Token::Word(&self.text[start..self.at])
    }

    fn number(&mut self) -> Token<'a> {
        // Coarse: `1e5`, `1.5` and even `1a` are one literal; `1..2` keeps its dots apart.
        while is_word(self.peek(0)) || (self.peek(0) == b'.' && self.peek(1).is_ascii_digit()) {
            self.at += 1;
        }
        Token::Literal
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        if self.skip_space().is_err() {
            return Some(self.broken());
        }
        if self.at >= self.text.len() {
            return None;
        }
        Some(match (self.peek(0), self.peek(1)) {
            (b'\'', _) => self.literal(0, self.backslash_escapes),
            (b'E' | b'e', b'\'') => self.literal(1, true),
            (b'B' | b'b' | b'X' | b'x' | b'N' | b'n', b'\'') => self.literal(1, self.backslash_escapes),
            (b'U' | b'u', b'&') if self.peek(2) == b'\'' => self.literal(2, self.backslash_escapes),
            // An identifier with Unicode escapes may spell anything.
            (b'U' | b'u', b'&') if self.peek(2) == b'"' => self.broken(),
            (b'"', _) => {
                self.at += 1;
                match self.string(b'"', false) {
                    Some(name) => Token::Quoted(name),
                    None => self.broken(),
                }
            }
            (b'$', _) => self.dollar(),
            (b'0'..=b'9', _) => self.number(),
            (byte, _) if is_word_start(byte) => self.word(),
            (0, _) => self.broken(),
            (byte, _) => {
                self.at += 1;
                Token::Symbol(byte)
            }
        })
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        Lexer::new(text.as_bytes(), false)
            .map(|token| match token {
                Token::Word(w) | Token::Quoted(w) => String::from_utf8_lossy(w).into_owned(),
                Token::Literal => "'".to_owned(),
                Token::Symbol(s) => char::from(s).to_string(),
                Token::Broken => "!".to_owned(),
            })
            .collect()
    }

    #[test]
    fn quotes_and_comments_hide_their_contents() {
        assert_eq!(words("select 'a;b''c' -- ;\n, \"x;\"\"y\" /* ; /* ; */ ; */ from t"), ["select", "'", ",", "x;\"\"y", "from", "t"]);
        assert_eq!(words(r"E'\';' || '\' || U&'a;' || x'0;'"), ["'", "|", "|", "'", "|", "|", "'", "|", "|", "'"]);
        assert_eq!(words("$$;$$ $a$ $$ ; $a$ $1 a$b$ 1.5e3"), ["'", "'", "'", "a$b$", "'"]);
    }

    #[test]
    fn open_quotes_are_broken() {
        for text in ["'abc", "\"abc", "/* abc", "$$abc", "$a$ $b$", "E'\\'", "U&\"d\\0061t\""] {
            assert_eq!(words(text).last().map(String::as_str), Some("!"), "{text}");
        }
    }

    #[test]
    fn a_backslash_escapes_only_where_postgres_says_so() {
        let text = br"'\'; drop table t --'";
        assert_eq!(Lexer::new(text, false).count(), 5);
        assert_eq!(Lexer::new(text, true).count(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_end(text in proptest::collection::vec(any::<u8>(), 0..200), escapes in any::<bool>()) {
            prop_assert!(Lexer::new(&text, escapes).count() <= text.len() + 1);
        }

        #[test]
        fn any_punctuation_ends(text in "[-'\"$/*;a\\\\E \n]{0,60}", escapes in any::<bool>()) {
            prop_assert!(Lexer::new(text.as_bytes(), escapes).count() <= text.len() + 1);
        }
    }
}
