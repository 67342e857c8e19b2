//! What a collector writes its metrics into, and the text that Prometheus reads.

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
}

impl Sink {
    /// A value of this family, its labels' values in the order of their names. A value that could not be read is left
    /// out: never write a zero for it.
    pub fn put(&mut self, family: &'static Family, labels: &[&str], value: f64) {
        debug_assert_eq!(family.labels.len(), labels.len(), "{}: a value for each label", family.name);
        let pairs: Vec<(&str, &str)> = family.labels.iter().copied().zip(labels.iter().copied()).collect();
        match family.kind {
            Kind::Gauge => self.gauge_with(family.name, family.help, &pairs, value),
            Kind::Counter => self.counter_with(family.name, family.help, &pairs, value),
        }
    }

    /// As [`Sink::put`], where there is a value.
    pub fn put_some(&mut self, family: &'static Family, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.put(family, labels, value);
        }
    }

    /// A value that goes up and down. A value that could not be read is left out: never write a zero for it.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: f64) {
        self.gauge_with(name, help, &[], value);
    }

    /// A gauge with labels. No pod, container, message or device may be one: series are bounded a node.
    pub fn gauge_with(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.push(name, help, MetricType::GAUGE, metric);
    }

    /// A value that only grows, as read: `…_total`. Rates are the reader's.
    pub fn counter(&mut self, name: &'static str, help: &str, value: f64) {
        self.counter_with(name, help, &[], value);
    }

    /// A counter with labels.
    pub fn counter_with(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.push(name, help, MetricType::COUNTER, metric);
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

    fn push(&mut self, name: &'static str, help: &str, kind: MetricType, metric: Metric) {
        let family = self.families.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        family.mut_metric().push(metric);
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let mut metric = Metric::default();
    metric.set_label(
        labels
            .iter()
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value((*value).to_owned());
                pair
            })
            .collect(),
    );
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_sorted_and_label_values_escaped() {
        let mut sink = Sink::default();
        sink.counter_with("nodewhy_b_total", "B.", &[("why", "a\"b\n")], 2.0);
        sink.gauge("nodewhy_a_bytes", "A.", 1.5);
        assert_eq!(
            sink.encode().unwrap(),
            "# HELP nodewhy_a_bytes A.\n# TYPE nodewhy_a_bytes gauge\nnodewhy_a_bytes 1.5\n\
             # HELP nodewhy_b_total B.\n# TYPE nodewhy_b_total counter\nnodewhy_b_total{why=\"a\\\"b\\n\"} 2\n"
        );
    }
}
