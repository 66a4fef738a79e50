//! `trilithon --config F status` means `trilithon status --config F`: people write both. PURE.

use std::ffi::OsString;

/// Options of every verb that asks a cluster, all with a value.
const SHARED: &[&str] = &["-c", "--config", "-e", "--endpoint", "-o", "--output"];

/// The words with shared options that precede the verb moved behind it.
#[must_use]
pub fn verb_first(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut ordered: Vec<OsString> = words.next().into_iter().collect();
    let mut early = Vec::new();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        if SHARED.contains(&text.as_str()) {
            early.push(word);
            early.extend(words.next());
        } else if SHARED.iter().any(|option| option.starts_with("--") && text.starts_with(&format!("{option}="))) {
            early.push(word);
        } else {
            ordered.push(word);
            break;
        }
    }
    ordered.extend(words);
    // What follows `--` is no option any more.
    let end = ordered.iter().position(|word| word == "--").unwrap_or(ordered.len());
    ordered.splice(end..end, early);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(line: &str) -> String {
        let words = verb_first(line.split(' ').map(OsString::from));
        words.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_before_the_verb_follow_it() {
        assert_eq!(ordered("trilithon --config f -o json status"), "trilithon status --config f -o json");
        assert_eq!(ordered("trilithon --endpoint=a:1 config show"), "trilithon config show --endpoint=a:1");
        assert_eq!(ordered("trilithon -o json query -- select"), "trilithon query -o json -- select");
        assert_eq!(ordered("trilithon node --config f"), "trilithon node --config f");
        assert_eq!(ordered("trilithon --version"), "trilithon --version");
    }
}
