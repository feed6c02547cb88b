//! Text from outside made safe to read: what is invisible or reorders is shown by its number, what
//! is long is shortened with the whole behind it; figures and times for people. Escaping for HTML
//! is the template engine's.

use std::time::SystemTime;

use maud::{Markup, html};

use super::Page;

/// Longest name that is shown whole, in characters.
const NAME: usize = 64;
/// Of a longer one: so many from its beginning, and from its end, where versions stand.
const HEAD: usize = 44;
const TAIL: usize = 16;

/// A state, as icon and colour; a word always stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// As it should be.
    Good,
    /// Works, and somebody should look.
    Warn,
    /// Does not work.
    Bad,
    /// Not known yet.
    Busy,
    /// Not in use.
    Off,
}

impl Mark {
    pub(super) fn class(self) -> &'static str {
        match self {
            Mark::Good => "good",
            Mark::Warn => "warn",
            Mark::Bad => "bad",
            Mark::Busy => "busy",
            Mark::Off => "off",
        }
    }

    /// Of an endpoint's state.
    pub(super) fn of_state(state: &str) -> Self {
        match state {
            "up" => Mark::Good,
            "stalled" => Mark::Warn,
            "down" => Mark::Bad,
            _ => Mark::Busy,
        }
    }
}

/// The icon of a state.
pub(super) fn icon(mark: Mark) -> Markup {
    let class = mark.class();
    html! { svg class={ "i " (class) } viewBox="0 0 16 16" aria-hidden="true" { use href={ "#i-" (class) } {} } }
}

/// Text whose control, bidirectional and invisible characters are shown by number, so that
/// nothing can look like something else.
pub(super) fn visible(raw: &str) -> String {
    let hides = |c: char| {
        matches!(c,
            '\u{0}'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}'
            | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    let mut shown = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '\t' => shown.push(' '),
            c if hides(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// The beginning and the end of a long text; `None` where it is short enough.
fn shortened(text: &str, limit: usize, tail: usize) -> Option<String> {
    let count = text.chars().count();
    if count <= limit {
        return None;
    }
    let head = limit.saturating_sub(tail + 1);
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    Some(format!("{start}…{end}"))
}

/// A short form for places with a fixed width, such as pictures.
pub(super) fn fitted(text: &str, limit: usize) -> String {
    shortened(text, limit, limit / 4).unwrap_or_else(|| text.into())
}

impl Page<'_> {
    /// A name from outside: isolated from the direction of what surrounds it.
    pub(super) fn name(&self, raw: &str) -> Markup {
        match shortened(raw, NAME, TAIL) {
            None => html! { bdi { (raw) } },
            Some(short) => html! { bdi title=(self.title(raw)) { (short) } },
        }
    }

    /// A sentence that may carry such names.
    pub(super) fn sentence(&self, raw: &str, limit: usize) -> Markup {
        match shortened(raw, limit, 0) {
            None => html! { bdi { (raw) } },
            Some(short) => html! { bdi title=(self.title(raw)) { (short) } },
        }
    }

    /// The whole of a shortened text, as long as there is room for it on the page.
    fn title(&self, text: &str) -> String {
        let left = self.titles.get();
        if text.len() <= left {
            self.titles.set(left - text.len());
            return text.into();
        }
        let start: String = text.chars().take(NAME + HEAD).collect();
        format!("{start}… ({} bytes; the whole is in /status)", text.len())
    }

    /// A time with its age.
    pub(super) fn moment(&self, at: &str) -> Markup {
        html! { time datetime=(at) { (self.at(at)) } @if let Some(age) = self.age(at) { " " span .age { "(" (age) ")" } } }
    }

    /// A time; with its date where it is not today's.
    pub(super) fn at(&self, at: &str) -> String {
        let today = rfc3339(self.now);
        match (at.get(..10), today.get(..10)) {
            (Some(date), Some(now)) if date != now => format!("{date} {}", clock_time(at)),
            _ => clock_time(at).to_string(),
        }
    }

    fn age(&self, at: &str) -> Option<String> {
        let at = humantime::parse_rfc3339(at).ok()?;
        let seconds = self.now.duration_since(at).unwrap_or_default().as_secs();
        Some(match seconds {
            0..60 => format!("{seconds} s"),
            60..3600 => format!("{} min", seconds / 60),
            3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
            _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
        })
    }
}

/// A time of the system's clock as the document writes it.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Hours, minutes and seconds of an RFC 3339 time.
pub(super) fn clock_time(at: &str) -> &str {
    at.get(11..19).unwrap_or(at)
}

/// Bytes in GiB, to three figures or so.
pub(super) fn gib(bytes: u64) -> String {
    let gib = bytes as f64 / (1u64 << 30) as f64;
    match gib {
        0.0 => "0 GiB".into(),
        g if g < 0.01 => "< 0.01 GiB".into(),
        g if g < 10.0 => format!("{g:.2} GiB"),
        g if g < 1000.0 => format!("{g:.1} GiB"),
        g => format!("{g:.0} GiB"),
    }
}

/// Bytes with thin spaces between the thousands.
pub(super) fn grouped(bytes: u64) -> String {
    let digits = bytes.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// A duration in milliseconds as the document gives it.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// `1 model`, `2 models`.
pub(super) fn count(n: usize, one: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_or_reorders_is_shown_by_its_number() {
        assert_eq!(visible("iris"), "iris");
        assert_eq!(visible("nv\u{202e}sirI"), "nv\\u{202e}sirI");
        assert_eq!(
            visible("a\u{0}b\u{200f}\u{2066}\u{feff}"),
            "a\\u{0}b\\u{200f}\\u{2066}\\u{feff}"
        );
        // A fix may have lines.
        assert_eq!(visible("two\nlines\tand\rmore"), "two\nlines and\\u{d}more");
        // Letters of any script, and joiners inside words, stay.
        assert_eq!(visible("می‌خواهم שלום"), "می‌خواهم שלום");
    }

    #[test]
    fn a_long_name_keeps_its_beginning_and_its_end() {
        let name = format!("{}-v17", "x".repeat(10_000));
        let short = shortened(&name, NAME, TAIL).unwrap();
        assert_eq!(short.chars().count(), NAME);
        assert!(short.starts_with("xxx") && short.ends_with("-v17") && short.contains('…'));
        assert_eq!(shortened(&"é".repeat(NAME), NAME, TAIL), None);
        assert_eq!(fitted("mlserver 1.7.1", 20), "mlserver 1.7.1");
        assert_eq!(fitted(&name, 20).chars().count(), 20);
    }

    #[test]
    fn bytes_are_shown_in_gib_and_whole() {
        for (bytes, short, long) in [
            (0, "0 GiB", "0"),
            (1_000_000, "< 0.01 GiB", "1\u{202f}000\u{202f}000"),
            (4 << 30, "4.00 GiB", "4\u{202f}294\u{202f}967\u{202f}296"),
            (96 << 30, "96.0 GiB", "103\u{202f}079\u{202f}215\u{202f}104"),
        ] {
            assert_eq!(
                (gib(bytes).as_str(), grouped(bytes).as_str()),
                (short, long)
            );
        }
    }
}
