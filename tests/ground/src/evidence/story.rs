//! What an agent served, understood: the input of every judgement. Pure.

use jiff::Timestamp;
use nodewhy_proto::{Event, Finding, NodeInfo, State};
use serde::de::DeserializeOwned;

use super::{Answer, Heard, Served, Stream};

/// What one agent said, in order of receipt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Story {
    /// Who it is, and how its clocks stand.
    pub infos: Vec<Asked<NodeInfo>>,
    /// Every collector's outcome and reading.
    pub states: Vec<Asked<State>>,
    /// Findings, as lists.
    pub findings: Vec<Asked<Vec<Finding>>>,
    /// Events; those that were told again after a reconnect stand here again.
    pub events: Vec<Asked<Event>>,
    /// Where the agent was silent, or said what nobody understands: when, and why.
    pub holes: Vec<(Timestamp, String)>,
}

/// Something that was said, and when it was asked for and received, by the harness's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked<T> {
    /// For an event: when it was received.
    pub asked: Timestamp,
    /// When it was received.
    pub received: Timestamp,
    /// What was said.
    pub said: T,
}

impl Story {
    /// All of it.
    pub fn of(served: &Served) -> Story {
        let mut story = Story::default();
        for answer in &served.node {
            story.take_node(answer);
        }
        for answer in &served.state {
            story.take_state(answer);
        }
        for answer in &served.findings {
            story.take_findings(answer);
        }
        for heard in &served.events {
            story.take_heard(heard);
        }
        story.holes.sort();
        story
    }

    /// `/api/v1/node`.
    pub fn take_node(&mut self, answer: &Answer) {
        let taken = self.understood("/api/v1/node", answer);
        self.infos.extend(taken);
    }

    /// `/api/v1/state`.
    pub fn take_state(&mut self, answer: &Answer) {
        let taken = self.understood("/api/v1/state", answer);
        self.states.extend(taken);
    }

    /// `/api/v1/findings`.
    pub fn take_findings(&mut self, answer: &Answer) {
        let taken = self.understood("/api/v1/findings", answer);
        self.findings.extend(taken);
    }

    /// `/api/v1/events`.
    pub fn take_heard(&mut self, heard: &Heard) {
        let received = heard.received;
        match &heard.what {
            Stream::Opened { .. } => {}
            Stream::Lost { why } => self.holes.push((received, format!("/api/v1/events: {why}"))),
            Stream::Event { data, .. } => match serde_json::from_str(data) {
                Ok(said) => self.events.push(Asked { asked: received, received, said }),
                Err(error) => self.holes.push((received, format!("an event is not understood: {error}"))),
            },
        }
    }

    /// The boot in which the story begins.
    pub fn first_boot(&self) -> Option<&str> {
        self.infos.iter().find_map(|info| info.said.id.boot_id.as_deref())
    }

    /// What the agent said of its clocks nearest to this time of the harness.
    pub fn info_near(&self, received: Timestamp) -> Option<&Asked<NodeInfo>> {
        self.infos.iter().min_by_key(|info| info.received.duration_since(received).abs())
    }

    fn understood<T: DeserializeOwned>(&mut self, path: &str, answer: &Answer) -> Option<Asked<T>> {
        let said = answer.body().and_then(|body| {
            serde_json::from_str(body).map_err(|error| format!("the answer is not understood: {error}"))
        });
        match said {
            Ok(said) => Some(Asked { asked: answer.asked, received: answer.received, said }),
            Err(why) => {
                self.holes.push((answer.received, format!("{path}: {why}")));
                None
            }
        }
    }
}
