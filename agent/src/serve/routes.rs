//! Every path of the API, with its parameters: requests are routed by this list, and it is what
//! `/api/v1/openapi.json` describes.

use std::collections::BTreeMap;

use crate::board::Board;
use crate::host::Host;
use crate::serve::asks::Desk;

/// A path.
pub(super) struct Route {
    /// `/api/v1/state`.
    pub(super) path: &'static str,
    /// What it shows, in a sentence.
    pub(super) about: &'static str,
    /// The parameters of its query, each with what it means; another one is refused.
    pub(super) parameters: Parameters,
    /// What answers.
    pub(super) source: Source,
}

/// What answers.
pub(super) enum Source {
    Metrics,
    Healthz,
    Readyz,
    Node,
    State,
    Findings,
    Events,
    Kmsg,
    OpenApi,
    /// A part of this collector's newest reading.
    Page(&'static str),
    /// What this collector reads when it is asked.
    Ask(Desk),
    /// The same, while the collector is switched off.
    Off(&'static str),
}

impl Route {
    /// Whether it may be asked by whoever comes.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.source, Source::Metrics | Source::Healthz | Source::Readyz)
    }
}

type Parameters = &'static [(&'static str, &'static str)];

/// The agent's own.
fn own() -> [Route; 9] {
    const NONE: Parameters = &[];
    const READINGS: Parameters = &[("readings", "`false` leaves the readings out; `true` is the default")];
    const AFTER: Parameters =
        &[("after", "the id of the last event that was received; the header Last-Event-ID goes before it")];
    let route = |path, about, parameters, source| Route { path, about, parameters, source };
    [
        route(
            "/metrics",
            "What the collectors read, and how they do, for Prometheus.",
            NONE,
            Source::Metrics,
        ),
        route("/healthz", "Whether the agent's program answers.", NONE, Source::Healthz),
        route("/readyz", "Whether every collector has tried to read once.", NONE, Source::Readyz),
        route("/api/v1/node", "Which node this is, and what runs on it.", NONE, Source::Node),
        route("/api/v1/state", "Every collector's outcome and newest reading.", READINGS, Source::State),
        route(
            "/api/v1/findings",
            "What is abnormal now, then what ended within 15 minutes.",
            NONE,
            Source::Findings,
        ),
        route(
            "/api/v1/events",
            "What happened, as server-sent events: what is kept after a cursor, then whatever happens. Without a \
             cursor all that is kept comes first. A hole is told as an event `gap`.",
            AFTER,
            Source::Events,
        ),
        route(
            "/api/v1/kmsg",
            "The newest records of the kernel log, as they were understood.",
            NONE,
            Source::Kmsg,
        ),
        route("/api/v1/openapi.json", "This document.", NONE, Source::OpenApi),
    ]
}

/// The list: the agent's own paths, then each collector's. Starts the threads that read what is asked for.
pub(super) fn routes(board: &Board, host: &Host) -> std::io::Result<BTreeMap<&'static str, Route>> {
    let mut routes: BTreeMap<&'static str, Route> = own().map(|route| (route.path, route)).into();
    for (collector, enabled) in board.collectors() {
        let name = collector.name();
        for (path, about) in collector.pages() {
            routes.insert(path, Route { path, about, parameters: &[], source: Source::Page(name) });
        }
        for ask in collector.asks() {
            let source = if enabled {
                Source::Ask(Desk::open(name, ask, host, board.clock())?)
            } else {
                Source::Off(name)
            };
            let route = Route { path: ask.path, about: ask.about, parameters: ask.parameters, source };
            routes.insert(ask.path, route);
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::own;
    use crate::collect::COLLECTORS;

    #[test]
    fn no_two_paths_are_the_same_and_each_is_described() {
        let mut seen: BTreeSet<&str> = own().iter().map(|route| route.path).collect();
        for collector in COLLECTORS {
            let pages = collector.pages().into_iter();
            let asks = collector.asks().iter().map(|ask| (ask.path, ask.about));
            for (path, about) in pages.chain(asks) {
                assert!(seen.insert(path), "{path} of {} stands twice", collector.name());
                assert!(path.starts_with("/api/v1/") && !path.ends_with('/'), "{path}");
                assert!(about.ends_with('.'), "{path}: {about:?} is no sentence");
            }
        }
    }
}
