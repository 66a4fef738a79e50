//! Small texts: durations, instants and counts for people, and escaping for markup.

use crate::record::At;

/// `text` for an element's content or a quoted attribute. Control characters, which XML forbids, become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A duration in milliseconds with about three digits: `840 ms`, `2.41 s`, `12.4 s`, `1 min 03 s`.
pub fn millis(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..9_995 => format!("{:.2} s", ms as f64 / 1e3),
        9_995..59_950 => format!("{:.1} s", ms as f64 / 1e3),
        _ => {
            let seconds = (ms + 500) / 1_000;
            match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
                (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
                (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
            }
        }
    }
}

/// [`millis`], or a dash for what was not seen.
pub fn millis_or_dash(ms: Option<u64>) -> String {
    ms.map_or_else(|| "–".to_owned(), millis)
}

/// Milliseconds between two instants; zero where they are in the wrong order.
pub fn millis_between(from: At, to: At) -> u64 {
    to.0.saturating_sub(from.0) / 1_000
}

/// An instant of the run: `02:13.4`, `1:02:13.4`.
pub fn instant(at: At) -> String {
    let tenths = at.0 / 100_000;
    let (hours, minutes, seconds, tenth) = (tenths / 36_000, tenths / 600 % 60, tenths / 10 % 60, tenths % 10);
    if hours == 0 { format!("{minutes:02}:{seconds:02}.{tenth}") } else { format!("{hours}:{minutes:02}:{seconds:02}.{tenth}") }
}

/// [`instant`] without the tenths, for axes and totals.
pub fn whole_instant(at: At) -> String {
    let text = instant(at);
    text.split_once('.').map_or_else(|| text.clone(), |(whole, _)| whole.to_owned())
}

/// A count with separators: `1,204,331`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 fault`, `2 faults`.
pub fn plural(n: usize, one: &str) -> String {
    format!("{} {one}{}", count(n as u64), if n == 1 { "" } else { "s" })
}

/// On one line, and without control characters, which could move a terminal's cursor.
pub fn flat(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// At most `chars` characters, the last an ellipsis where some were left off.
pub fn clipped(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    let mut clipped: String = text.chars().take(chars.saturating_sub(1)).collect();
    clipped.push('…');
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_names_is_escaped_and_control_characters_are_replaced() {
        assert_eq!(escape("<b a=\"x\">'&\u{1b}\n"), "&lt;b a=&quot;x&quot;&gt;&#39;&amp;\u{fffd}\n");
    }

    #[test]
    fn durations_keep_about_three_digits() {
        let texts = [0, 840, 2_414, 9_994, 9_995, 12_440, 59_949, 59_950, 63_000, 3_725_000].map(millis);
        let expected = ["0 ms", "840 ms", "2.41 s", "9.99 s", "10.0 s", "12.4 s", "59.9 s", "1 min 00 s", "1 min 03 s", "1 h 02 min"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn instants_show_hours_only_when_there_are_any() {
        assert_eq!(instant(At(133_400_000)), "02:13.4");
        assert_eq!(instant(At(3_733_400_000)), "1:02:13.4");
        assert_eq!(whole_instant(At(133_400_000)), "02:13");
    }

    #[test]
    fn counts_are_grouped_and_long_texts_clipped() {
        assert_eq!([0, 999, 1_000, 1_204_331].map(count), ["0", "999", "1,000", "1,204,331"]);
        assert_eq!(clipped("freeze_datacenter", 7), "freeze…");
        assert_eq!(plural(1, "fault") + &plural(2, "fault"), "1 fault2 faults");
    }
}
