//! What one agent told, heard again: the case that production would have made of it, without a socket and without a
//! clock.
//!
//! It is the aggregator's own view of an agent and its own making of a case. What is written here is what stands
//! between them in production: a session. Answers and events are given in the order in which they were received.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use nodewhy_diagnosis::{Case, CaseError};
use nodewhy_proto::{Event, Finding, NodeInfo, State};
use serde::de::DeserializeOwned;

use crate::Timings;
use crate::gather::{AgentView, Contact};
use crate::incident::case_now;
use crate::known::Known;
use crate::watch::ClusterView;

/// One agent, as the aggregator would know it. No cluster is watched: a case says so.
pub struct Replay {
    known: Known,
    node: String,
    timings: Timings,
    session: Session,
}

/// What was had of the agent in this session. It answers when it told all that it knows and its stream is open.
#[derive(Clone, Copy, Debug, Default)]
struct Session {
    info: bool,
    state: bool,
    findings: bool,
    stream: bool,
}

/// What was recorded is not an agent's answer, or is another's.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It can't be read.
    #[error(
        "{what}, received at {received}, can't be read: {error}; was it recorded from an agent of this version?"
    )]
    Malformed {
        /// The path, or the event.
        what: &'static str,
        /// When it was received.
        received: Timestamp,
        /// What the reader met.
        error: serde_json::Error,
    },
    /// Another node's.
    #[error(
        "{what}, received at {received}, is of the node {said}, not of {asked}: replay each agent by itself"
    )]
    AnotherNode {
        /// The path.
        what: &'static str,
        /// When it was received.
        received: Timestamp,
        /// The node that it names.
        said: String,
        /// The node that is replayed.
        asked: String,
    },
}

impl Replay {
    /// An agent that was not heard yet.
    pub fn new(node: impl Into<String>) -> Replay {
        let node = node.into();
        let agents = BTreeMap::from([(node.clone(), AgentView::default())]);
        let known = Known { agents, cluster: ClusterView::NotAsked };
        Replay { known, node, timings: Timings::default(), session: Session::default() }
    }

    /// `/api/v1/node`, asked and received then, by one clock that is not the node's.
    ///
    /// # Errors
    /// The text is no such answer, or another node's.
    pub fn node_info(
        &mut self,
        body: &str,
        asked: Timestamp,
        received: Timestamp,
    ) -> Result<(), ReplayError> {
        const WHAT: &str = "/api/v1/node";
        let info: NodeInfo = read(WHAT, body, received)?;
        self.check(WHAT, &info.id.name, received)?;
        let view = self.view();
        view.measure(asked, info.now, received);
        view.info = Some(info);
        self.session.info = true;
        self.meet();
        Ok(())
    }

    /// `/api/v1/state`.
    ///
    /// # Errors
    /// The text is no such answer, or another node's.
    pub fn state(&mut self, body: &str, asked: Timestamp, received: Timestamp) -> Result<(), ReplayError> {
        const WHAT: &str = "/api/v1/state";
        let state: State = read(WHAT, body, received)?;
        self.check(WHAT, &state.node, received)?;
        let view = self.view();
        view.measure(asked, state.now, received);
        view.hear(received);
        view.take_state(state);
        self.session.state = true;
        self.meet();
        Ok(())
    }

    /// `/api/v1/findings`.
    ///
    /// # Errors
    /// The text is no such answer.
    pub fn findings(&mut self, body: &str, asked: Timestamp, received: Timestamp) -> Result<(), ReplayError> {
        let findings: Vec<Finding> = read("/api/v1/findings", body, received)?;
        self.view().take_findings(findings, asked, received);
        self.session.findings = true;
        self.meet();
        Ok(())
    }

    /// The event stream was opened.
    pub fn opened(&mut self) {
        self.session.stream = true;
        self.meet();
    }

    /// An event's `data:`.
    ///
    /// # Errors
    /// The text is no event.
    pub fn event(&mut self, data: &str, received: Timestamp) -> Result<(), ReplayError> {
        let event: Event = read("an event", data, received)?;
        let view = self.view();
        view.take_event(event, received);
        view.hear(received);
        Ok(())
    }

    /// The event stream was cut, or could not be opened. The first time it is only opened again; an agent whose stream
    /// can't be opened is lost.
    pub fn lost(&mut self, why: &str, at: Timestamp) {
        if self.session.stream {
            self.session.stream = false;
        } else {
            self.lose(why, at);
        }
    }

    /// A question was not answered. The agent is lost when nothing was heard of it for as long as the aggregator waits
    /// for an answer: one hole is none to it.
    pub fn unanswered(&mut self, why: &str, at: Timestamp) {
        let patience = SignedDuration::try_from(self.timings.answer).unwrap_or(SignedDuration::MAX);
        if self.view().heard.is_none_or(|heard| at.duration_since(heard) >= patience) {
            self.lose(why, at);
        }
    }

    /// The case that would be made now.
    ///
    /// # Errors
    /// The clock was stepped so far that the case's window ends before it begins.
    pub fn case(&self, now: Timestamp) -> Result<Case, CaseError> {
        case_now(&self.known, &self.node, now, &self.timings)
    }

    fn view(&mut self) -> &mut AgentView {
        self.known.agents.entry(self.node.clone()).or_default()
    }

    fn meet(&mut self) {
        let Session { info, state, findings, stream } = self.session;
        if info && state && findings && stream {
            self.view().contact = Contact::Answers;
        }
    }

    fn lose(&mut self, why: &str, at: Timestamp) {
        self.view().lose(at, why.to_owned());
        self.session = Session { stream: self.session.stream, ..Session::default() };
    }

    fn check(&self, what: &'static str, said: &str, received: Timestamp) -> Result<(), ReplayError> {
        if said == self.node {
            return Ok(());
        }
        Err(ReplayError::AnotherNode { what, received, said: said.to_owned(), asked: self.node.clone() })
    }
}

fn read<T: DeserializeOwned>(what: &'static str, text: &str, received: Timestamp) -> Result<T, ReplayError> {
    serde_json::from_str(text).map_err(|error| ReplayError::Malformed { what, received, error })
}

#[cfg(test)]
mod tests {
    use nodewhy_proto::EventBody;
    use serde_json::json;

    use super::*;
    use crate::testing::{at, event, finding};

    fn met(ahead: i64) -> Replay {
        let mut replay = Replay::new("n");
        let info = json!({
            "id": {"name": "n"}, "now": at(ahead), "uptime_seconds": 1.0,
            "agent": {"version": "0", "started": at(ahead - 100), "host_root": "/"},
        });
        let runtime = json!({"outcome": "read", "every_seconds": 1.0});
        let state = json!({"node": "n", "now": at(ahead), "collectors": {"runtime": runtime}});
        replay.node_info(&info.to_string(), at(0), at(0)).unwrap();
        replay.state(&state.to_string(), at(0), at(0)).unwrap();
        replay.findings("[]", at(0), at(0)).unwrap();
        assert!(findings(&replay, 0).is_none(), "it answers once its stream is open too");
        replay.opened();
        assert_eq!(findings(&replay, 0), Some(0));
        replay
    }

    fn findings(replay: &Replay, now: i64) -> Option<usize> {
        replay.case(at(now)).unwrap().nodes["n"].findings.known().map(Vec::len)
    }

    fn began(number: u64, seconds: i64) -> String {
        let body = EventBody::FindingBegan { finding: finding("runtime_hung", seconds) };
        serde_json::to_string(&event(number, seconds, body)).unwrap()
    }

    #[test]
    fn a_case_says_that_no_cluster_is_watched_and_dates_by_our_clock() {
        let mut replay = met(3600);
        replay.event(&began(1, 3610), at(10)).unwrap();
        let case = replay.case(at(12)).unwrap();
        let node = &case.nodes["n"];
        assert_eq!(node.findings.known().unwrap()[0].began, at(10));
        assert!(node.facts.why_missing().unwrap().contains("no cluster is watched"));
        assert!(case.cluster.why_missing().unwrap().contains("no cluster is watched"));
    }

    #[test]
    fn a_hole_is_no_loss_and_a_silence_is() {
        let mut replay = met(0);
        replay.unanswered("no answer in 2 s", at(3));
        replay.lost("the stream ended", at(3));
        assert_eq!(findings(&replay, 4), Some(0));
        replay.unanswered("no answer in 2 s", at(5));
        let case = replay.case(at(6)).unwrap();
        assert!(case.nodes["n"].collectors.why_missing().unwrap().contains("no answer in 2 s"));
        assert_eq!(findings(&replay, 6), None, "silence is no empty list");
        // It answers again when all of it was told again, not before.
        replay.findings("[]", at(7), at(7)).unwrap();
        replay.opened();
        assert_eq!(findings(&replay, 7), None);
        let mut again = met(0);
        again.lost("the stream ended", at(1));
        again.lost("connecting: refused", at(2));
        assert_eq!(findings(&again, 2), None);
        let mut never = Replay::new("n");
        never.unanswered("connecting: refused", at(0));
        assert_eq!(findings(&never, 0), None);
    }

    #[test]
    fn what_is_no_answer_or_anothers_is_an_error() {
        let mut replay = met(0);
        let error =
            replay.state(r#"{"node":"m","now":"2026-11-21T07:00:00Z","collectors":{}}"#, at(1), at(1));
        assert!(error.unwrap_err().to_string().contains("the node m, not of n"));
        let whole = began(1, 1);
        for end in 0..whole.len() {
            assert!(replay.event(&whole[..end], at(1)).is_err());
        }
        assert_eq!(findings(&replay, 1), Some(0));
    }
}
