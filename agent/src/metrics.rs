//! What a collector writes its metrics into, and the text that Prometheus reads.

pub mod growing;
pub mod page;

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

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
#[derive(Default)]
pub struct Sink {
    families: BTreeMap<&'static str, MetricFamily>,
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
        if let Some((writer, families)) = self.writer {
            let is_listed = families.iter().any(|listed| listed.name == family.name);
            debug_assert!(is_listed, "{} is not in the `families` of {writer}", family.name);
        }
        let mut metric = Metric::default();
        metric.set_label(family.labels.iter().zip(labels).map(|(name, value)| pair(name, value)).collect());
        match family.kind {
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
        }
        self.families.entry(family.name).or_insert_with(|| empty(family)).mut_metric().push(metric);
    }

    /// As [`Sink::put`], where there is a value.
    pub fn put_some(&mut self, family: &'static Family, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.put(family, labels, value);
        }
    }

    /// The text exposition format, families by name.
    ///
    /// # Errors
    /// A family without a metric or with a bad name.
    pub fn encode(self) -> Result<String, prometheus::Error> {
        let families: Vec<MetricFamily> = self.families.into_values().collect();
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&families, &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

fn empty(family: &Family) -> MetricFamily {
    let mut empty = MetricFamily::default();
    empty.set_name(family.name.to_owned());
    empty.set_help(family.help.to_owned());
    empty.set_field_type(match family.kind {
        Kind::Gauge => MetricType::GAUGE,
        Kind::Counter => MetricType::COUNTER,
    });
    empty
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
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
            sink.encode().unwrap(),
            "# HELP nodewhy_a_bytes A.\n# TYPE nodewhy_a_bytes gauge\nnodewhy_a_bytes 1.5\n\
             # HELP nodewhy_b_total B.\n# TYPE nodewhy_b_total counter\nnodewhy_b_total{why=\"a\\\"b\\n\"} 2\n"
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
