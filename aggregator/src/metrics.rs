//! The aggregator's own metrics, in a registry of its own.

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// Everything that `/metrics` tells. Labels are nodes and fixed words: series are bounded by the fleet.
pub(crate) struct Metrics {
    registry: Registry,
    /// Events taken in from agents.
    pub(crate) events: IntCounter,
    /// What an agent or the API server said and was not taken in, by `reason`.
    pub(crate) dropped: IntCounterVec,
    /// New tries, by what was `followed`: `agent`, `nodes`, `leases`, `events`.
    pub(crate) reconnects: IntCounterVec,
    /// Incidents opened since the start.
    pub(crate) opened: IntCounter,
    /// Revisions written since the start.
    pub(crate) revisions: IntCounter,
    /// Incidents that are open now.
    pub(crate) open: IntGauge,
    /// How long one explanation took.
    pub(crate) explain_seconds: Histogram,
    /// Seconds since an agent was last heard, by node. Absent for one that never was.
    pub(crate) agent_age_seconds: GaugeVec,
    /// 1 while incidents reach the store, 0 while they are kept in memory alone.
    pub(crate) store_works: IntGauge,
    /// Seconds since the API server was last heard. Absent before it was.
    pub(crate) view_age_seconds: GaugeVec,
}

impl Metrics {
    /// # Errors
    /// A name is used twice or is not one that Prometheus takes.
    pub(crate) fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let metrics = Metrics {
            events: IntCounter::new(
                "nodewhy_aggregator_events_received_total",
                "Events taken in from agents.",
            )?,
            dropped: IntCounterVec::new(
                Opts::new(
                    "nodewhy_aggregator_dropped_total",
                    "What an agent or the API server said and was not taken in: repeat, malformed, too_long, \
                     another_node.",
                ),
                &["reason"],
            )?,
            reconnects: IntCounterVec::new(
                Opts::new(
                    "nodewhy_aggregator_reconnects_total",
                    "New tries after a failure, by what is followed.",
                ),
                &["followed"],
            )?,
            opened: IntCounter::new("nodewhy_aggregator_incidents_opened_total", "Incidents opened.")?,
            revisions: IntCounter::new(
                "nodewhy_aggregator_revisions_total",
                "Revisions of verdicts recorded.",
            )?,
            open: IntGauge::new("nodewhy_aggregator_incidents_open", "Incidents that are open now.")?,
            explain_seconds: Histogram::with_opts(
                HistogramOpts::new("nodewhy_aggregator_explain_seconds", "How long one explanation took.")
                    .buckets(vec![0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0]),
            )?,
            agent_age_seconds: GaugeVec::new(
                Opts::new(
                    "nodewhy_aggregator_agent_age_seconds",
                    "Seconds since a node's agent was last heard.",
                ),
                &["node"],
            )?,
            store_works: IntGauge::new(
                "nodewhy_aggregator_store_works",
                "1 while incidents reach the store, 0 while they are kept in memory alone.",
            )?,
            view_age_seconds: GaugeVec::new(
                Opts::new(
                    "nodewhy_aggregator_api_view_age_seconds",
                    "Seconds since the API server was last heard, by what is watched.",
                ),
                &["watch"],
            )?,
            registry,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        registry.register(Box::new(metrics.reconnects.clone()))?;
        registry.register(Box::new(metrics.opened.clone()))?;
        registry.register(Box::new(metrics.revisions.clone()))?;
        registry.register(Box::new(metrics.open.clone()))?;
        registry.register(Box::new(metrics.explain_seconds.clone()))?;
        registry.register(Box::new(metrics.agent_age_seconds.clone()))?;
        registry.register(Box::new(metrics.store_works.clone()))?;
        registry.register(Box::new(metrics.view_age_seconds.clone()))?;
        let build = Gauge::with_opts(
            Opts::new("nodewhy_aggregator_build_info", "Always 1; the version is a label.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1.0);
        registry.register(Box::new(build))?;
        Ok(metrics)
    }

    /// Counts one thing that was not taken in.
    pub(crate) fn drop_one(&self, reason: &str) {
        self.dropped.with_label_values(&[reason]).inc();
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// The encoder refuses a family.
    pub(crate) fn encode(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}
