//! What a collector writes its metrics into, and the text that Prometheus reads.

pub mod growing;
pub mod page;

use std::collections::BTreeMap;
use std::fmt::Write;

/// A metric family. Each is a `static` beside the collector that writes it, and stands in its `families`:
/// docs/metrics.md and the HELP lines come from there.
#[derive(Debug)]
pub struct Family {
    /// `nodewhy_<what>_<unit>[_total]`.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// The labels' names. No pod, container, message or device may be one: the number of series is bounded a node.
    pub labels: &'static [&'static str],
}

/// What a family's values do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, as read. Rates are the reader's.
    Counter,
}

impl Family {
    /// A gauge without labels.
    pub const fn gauge(name: &'static str, help: &'static str) -> Family {
        Family { name, help, kind: Kind::Gauge, labels: &[] }
    }

    /// A counter without labels.
    pub const fn counter(name: &'static str, help: &'static str) -> Family {
        Family { name, help, kind: Kind::Counter, labels: &[] }
    }

    /// With these labels.
    pub const fn by(self, labels: &'static [&'static str]) -> Family {
        Family { labels, ..self }
    }
}

/// Gathers metric families. Names follow Prometheus' conventions: `nodewhy_<what>_<unit>[_total]`.
///
/// Each value is written as text at once: a scrape has hundreds, and no form between is needed for any.
#[derive(Default)]
pub struct Sink {
    families: BTreeMap<&'static str, (&'static Family, String)>,
    writer: Option<(&'static str, &'static [&'static Family])>,
}

impl Sink {
    /// From now on this one writes, and no family but these: docs/metrics.md has them from there.
    pub(crate) fn written_by(&mut self, writer: &'static str, families: &'static [&'static Family]) {
        self.writer = Some((writer, families));
    }

    /// A value of this family, its labels' values in the order of their names. A value that could not be read is left
    /// out: never write a zero for it.
    pub fn put(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        debug_assert_eq!(family.labels.len(), labels.len(), "{}: a value for each label", family.name);
        if cfg!(debug_assertions)
            && let Some((writer, families)) = self.writer
        {
            let is_listed = families.iter().any(|listed| listed.name == family.name);
            debug_assert!(is_listed, "{} is not in the `families` of {writer}", family.name);
        }
        let (_, text) = self.families.entry(family.name).or_insert_with(|| (family, String::new()));
        text.push_str(family.name);
        for (index, (name, value)) in family.labels.iter().zip(labels).enumerate() {
            text.push(if index == 0 { '{' } else { ',' });
            text.push_str(name);
            text.push_str("=\"");
            escaped(text, value, true);
            text.push('"');
        }
        text.push_str(if family.labels.is_empty() { " " } else { "} " });
        number(text, value);
        text.push('\n');
    }

    /// As [`Sink::put`], where there is a value.
    pub fn put_some(&mut self, family: &'static Family, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.put(family, labels, value);
        }
    }

    /// The text exposition format (0.0.4), families by name.
    pub fn encode(self) -> String {
        let length = self.families.values().map(|(family, text)| text.len() + family.help.len() + 160).sum();
        let mut whole = String::with_capacity(length);
        for (family, text) in self.families.into_values() {
            for (word, about) in [("# HELP ", family.help), ("# TYPE ", family.kind.word())] {
                whole.push_str(word);
                whole.push_str(family.name);
                whole.push(' ');
                escaped(&mut whole, about, false);
                whole.push('\n');
            }
            whole.push_str(&text);
        }
        whole
    }
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

/// A quotation mark is escaped in a label's value, and not in a help text.
fn escaped(text: &mut String, value: &str, is_quoted: bool) {
    for part in value.split_inclusive(['\\', '\n', '"']) {
        let special = part.chars().next_back().filter(|last| matches!(last, '\\' | '\n' | '"'));
        let Some(special) = special.filter(|special| is_quoted || *special != '"') else {
            text.push_str(part);
            continue;
        };
        text.push_str(part.strip_suffix(special).unwrap_or(part));
        text.push_str(match special {
            '\n' => "\\n",
            '"' => "\\\"",
            _ => "\\\\",
        });
    }
}

/// As Go reads it: what is no number has names of its own.
fn number(text: &mut String, value: f64) {
    if value.is_finite() {
        // Writing to a string cannot fail.
        write!(text, "{value}").ok();
    } else if value.is_nan() {
        text.push_str("NaN");
    } else {
        text.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static B: Family = Family::counter("nodewhy_b_total", "B.").by(&["why"]);
    static A: Family = Family::gauge("nodewhy_a_bytes", "A.");

    #[test]
    fn families_are_sorted_and_label_values_escaped() {
        let mut sink = Sink::default();
        sink.put(&B, &["a\"b\n"], 2.0);
        sink.put(&A, &[], 1.5);
        sink.put_some(&A, &[], None);
        assert_eq!(
            sink.encode(),
            "# HELP nodewhy_a_bytes A.\n# TYPE nodewhy_a_bytes gauge\nnodewhy_a_bytes 1.5\n\
             # HELP nodewhy_b_total B.\n# TYPE nodewhy_b_total counter\nnodewhy_b_total{why=\"a\\\"b\\n\"} 2\n"
        );
    }

    #[test]
    fn a_help_text_keeps_its_quotation_marks_and_what_is_no_number_is_named_as_go_reads_it() {
        static C: Family = Family::gauge("nodewhy_c_ratio", "A \"C\"\\\nof two lines.").by(&["a", "b"]);
        let mut sink = Sink::default();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e21, 0.000_25] {
            sink.put(&C, &["", "\\"], value);
        }
        assert_eq!(
            sink.encode(),
            "# HELP nodewhy_c_ratio A \"C\"\\\\\\nof two lines.\n# TYPE nodewhy_c_ratio gauge\n\
             nodewhy_c_ratio{a=\"\",b=\"\\\\\"} NaN\nnodewhy_c_ratio{a=\"\",b=\"\\\\\"} +Inf\n\
             nodewhy_c_ratio{a=\"\",b=\"\\\\\"} -Inf\nnodewhy_c_ratio{a=\"\",b=\"\\\\\"} 1000000000000000000000\n\
             nodewhy_c_ratio{a=\"\",b=\"\\\\\"} 0.00025\n"
        );
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "nodewhy_b_total is not in the `families` of a")]
    fn a_family_that_its_writer_does_not_list_is_a_defect() {
        let mut sink = Sink::default();
        static LISTED: &[&Family] = &[&A];
        sink.written_by("a", LISTED);
        sink.put(&A, &[], 1.0);
        sink.put(&B, &["x"], 1.0);
    }
}
