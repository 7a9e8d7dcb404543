//! Text for terminals: widths, wrapping, numbers and times for people, and the few colours.

use std::borrow::Cow;

use anstyle::{AnsiColor, Color, Style as Ansi};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Makes foreign text harmless: control characters and marks that reorder text become visible escapes.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers_the_terminal) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        if steers_the_terminal(letter) {
            safe.extend(letter.escape_unicode());
        } else {
            safe.push(letter);
        }
    }
    Cow::Owned(safe)
}

fn steers_the_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Columns that `text` takes on a terminal.
#[must_use]
pub fn width(text: &str) -> usize {
    text.width()
}

/// Sets `text` to lines of at most `columns`; a word that is longer is cut.
#[must_use]
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(8);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = width(word);
        if used > 0 && used + 1 + length > columns {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        for letter in word.chars() {
            let letter_width = letter.width().unwrap_or(0);
            if used + letter_width > columns {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(letter);
            used += letter_width;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// `text` cut to `columns`, with an ellipsis where something is missing.
#[must_use]
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut used = 1;
    for letter in text.chars() {
        used += letter.width().unwrap_or(0);
        if used > columns {
            break;
        }
        short.push(letter);
    }
    short.push('…');
    short
}

/// `text` with spaces behind it up to `columns`.
#[must_use]
pub fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{:missing$}", "")
}

/// A number with its thousands apart: `12,034`.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut apart = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

/// A number with its noun: `1 attempt`, `2,000 attempts`.
#[must_use]
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { many })
}

/// A length of time for people: `41 µs`, `0.2 ms`, `312.4 ms`, `60.00 s`, `4 min 12 s`, `2 h 5 min`, `3 d 4 h`.
#[must_use]
pub fn span(us: u64) -> String {
    const MS: u64 = 1_000;
    const SECOND: u64 = 1_000 * MS;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // Rounding must not reach the next unit, hence the limits just below each.
    match us {
        0..100 => format!("{us} µs"),
        100..999_950 => format!("{}.{} ms", (us + 50) / MS, (us + 50) % MS / 100),
        999_950..119_995_000 => {
            let hundredths = (us + 5_000) / 10_000;
            format!("{}.{:02} s", hundredths / 100, hundredths % 100)
        }
        119_995_000..HOUR => two_units((us + SECOND / 2) / SECOND, 60, "min", "s"),
        HOUR..DAY => two_units((us + MINUTE / 2) / MINUTE, 60, "h", "min"),
        _ => two_units((us + HOUR / 2) / HOUR, 24, "d", "h"),
    }
}

fn two_units(small: u64, per_large: u64, large_unit: &str, small_unit: &str) -> String {
    let (large, rest) = (small / per_large, small % per_large);
    if rest == 0 {
        format!("{large} {large_unit}")
    } else {
        format!("{large} {large_unit} {rest} {small_unit}")
    }
}

/// A size for people: `812 B`, `1.2 MB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1_000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// The few colours of the terminal output.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// With or without colour.
    #[must_use]
    pub fn new(colour: bool) -> Self {
        Self { colour }
    }

    /// The name of a cause.
    #[must_use]
    pub fn cause(self, text: &str) -> String {
        self.paint(
            Ansi::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Red))),
            text,
        )
    }

    /// What the eye should find first.
    #[must_use]
    pub fn strong(self, text: &str) -> String {
        self.paint(Ansi::new().bold(), text)
    }

    /// What is there for completeness.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.paint(Ansi::new().dimmed(), text)
    }

    /// What the reader can do.
    #[must_use]
    pub fn remedy(self, text: &str) -> String {
        self.paint(Ansi::new().fg_color(Some(Color::Ansi(AnsiColor::Green))), text)
    }

    /// What makes the output less trustworthy.
    #[must_use]
    pub fn warning(self, text: &str) -> String {
        self.paint(Ansi::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow))), text)
    }

    fn paint(self, style: Ansi, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_read_well() {
        let cases = [
            (0, "0 µs"),
            (99, "99 µs"),
            (100, "0.1 ms"),
            (207, "0.2 ms"),
            (312_449, "312.4 ms"),
            (999_949, "999.9 ms"),
            (999_950, "1.00 s"),
            (3_000_000, "3.00 s"),
            (60_000_000, "60.00 s"),
            (119_994_999, "119.99 s"),
            (119_995_000, "2 min"),
            (252_000_000, "4 min 12 s"),
            (3_600_000_000, "1 h"),
            (7_500_000_000, "2 h 5 min"),
            (273_600_000_000, "3 d 4 h"),
        ];
        for (us, expected) in cases {
            assert_eq!(span(us), expected);
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(12_345_678), "12,345,678");
        assert_eq!(count(1, "attempt", "attempts"), "1 attempt");
        assert_eq!(count(2, "attempt", "attempts"), "2 attempts");
        assert_eq!(size(812), "812 B");
        assert_eq!(size(1_000), "1.0 kB");
        assert_eq!(size(1_240_000), "1.2 MB");
        assert_eq!(size(5_000_000_000_000), "5.0 TB");
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(printable("ev\x1b[2Jil\u{202e}"), "ev\\u{1b}[2Jil\\u{202e}");
        assert_eq!(printable("naïve → ok"), "naïve → ok");
    }

    proptest! {
        #[test]
        fn wrapping_keeps_every_letter_and_the_width(words in "[a-zé→ ]{0,200}", columns in 8usize..60) {
            let lines = wrap(&words, columns);
            prop_assert!(lines.iter().all(|line| width(line) <= columns));
            let letters = |text: &str| text.chars().filter(|letter| !letter.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&words));
        }

        #[test]
        fn cutting_keeps_the_width(text in "\\PC{0,60}", columns in 1usize..60) {
            prop_assert!(width(&cut(&text, columns)) <= columns);
        }
    }
}
