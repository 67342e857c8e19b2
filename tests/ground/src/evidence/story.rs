//! What an agent served, understood: the input of every judgement. Pure.

use jiff::Timestamp;
use nodewhy_proto::{Event, EventBody, Finding, NodeInfo, State};
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
        let mut story = Story::without_states(served);
        for answer in &served.state {
            story.take_state(answer);
        }
        story.holes.sort();
        story
    }

    /// All but the states, which are nearly all there is to understand: for whoever needs no reading.
    pub fn without_states(served: &Served) -> Story {
        let mut story = Story::default();
        for answer in &served.node {
            story.take_node(answer);
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
            Stream::Event { data, .. } => match serde_json::from_str::<Event>(data) {
                Ok(Event { body: EventBody::Unknown, source, .. }) => {
                    let why = format!("an event of {source} is of a kind that this program does not know");
                    self.holes.push((received, why));
                }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::at;
    use super::super::{Said, Stream};
    use super::*;

    fn answer(second: i64, status: u16, body: impl ToString) -> Answer {
        let said = Said::Body { status, body: body.to_string() };
        Answer { asked: at(second * 1000), received: at(second * 1000 + 7), said }
    }

    fn info(boot_id: Option<&str>) -> Value {
        json!({
            "id": {"name": "node", "boot_id": boot_id}, "now": at(0), "uptime_seconds": 100.0,
            "agent": {"version": "0.1.0", "started": at(0), "host_root": "/"},
        })
    }

    fn heard(millis: i64, what: Stream) -> Heard {
        Heard { received: at(millis), what }
    }

    fn event(millis: i64, body: &Value) -> Heard {
        let mut event = json!({
            "id": "boot/1", "cursor": "1-1", "at": at(0), "boot_seconds": 100.0, "source": "agent",
        });
        event.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        heard(millis, Stream::Event { id: Some("1-1".to_owned()), data: event.to_string() })
    }

    #[test]
    fn what_was_served_is_understood_and_keeps_the_harness_s_times() {
        let stepped = json!({"kind": "clock_stepped", "seconds": -3600.0});
        let served = Served {
            node: vec![
                answer(0, 200, info(None)),
                answer(1, 200, info(Some("first"))),
                answer(9, 200, info(Some("second"))),
            ],
            state: vec![answer(2, 200, json!({"node": "node", "now": at(2000), "collectors": {}}))],
            findings: vec![answer(3, 200, "[]")],
            // Told again after a reconnect: both stand here.
            events: vec![heard(0, Stream::Opened { after: None }), event(10, &stepped), event(20, &stepped)],
            ..Served::default()
        };
        let story = Story::of(&served);
        assert_eq!(story.holes, []);
        let without = Story::without_states(&served);
        assert_eq!(without, Story { states: vec![], ..story.clone() });
        assert_eq!(story.first_boot(), Some("first"));
        assert_eq!((story.states[0].asked, story.states[0].received), (at(2000), at(2007)));
        assert_eq!(story.findings[0].said, []);
        let times: Vec<_> = story.events.iter().map(|event| (event.asked, event.received)).collect();
        assert_eq!(times, [(at(10), at(10)), (at(20), at(20))]);
        assert_eq!(story.events[0].said.body, EventBody::ClockStepped { seconds: -3600.0 });
        let near = |millis| story.info_near(at(millis)).unwrap().said.id.boot_id.clone();
        assert_eq!(
            [near(-5), near(1500), near(6000)],
            [None, Some("first".to_owned()), Some("second".to_owned())]
        );
    }

    #[test]
    fn what_was_not_answered_or_not_understood_is_a_hole_and_nothing_else() {
        let silent =
            Answer { said: Said::Hole { error: "no answer in 2 s".to_owned() }, ..answer(4, 200, "") };
        let served = Served {
            node: vec![answer(6, 503, "starting"), answer(7, 200, "{}")],
            state: vec![silent],
            findings: vec![answer(5, 200, "[{}]")],
            events: vec![
                heard(1, Stream::Lost { why: "the stream ended".to_owned() }),
                heard(2, Stream::Event { id: None, data: "{\"kind\":".to_owned() }),
                event(3, &json!({"kind": "of_a_newer_agent"})),
            ],
            ..Served::default()
        };
        let story = Story::of(&served);
        assert!(
            story.infos.is_empty()
                && story.states.is_empty()
                && story.findings.is_empty()
                && story.events.is_empty()
        );
        assert_eq!(story.first_boot(), None);
        let said: Vec<&str> = story.holes.iter().map(|(_, why)| why.as_str()).collect();
        let expected = [
            "the stream ended",
            "EOF",
            "kind",
            "/api/v1/state: no answer in 2 s",
            "/api/v1/findings",
            "503",
            "/api/v1/node",
        ];
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for (why, names) in said.iter().zip(expected) {
            assert!(why.contains(names), "{why:?} names {names:?}");
        }
        // In order of time, whatever was asked.
        assert!(story.holes.is_sorted());
    }
}
