//! Follows one agent for ever: reads what it knows, then its event stream, and again after every failure.

use std::time::Duration;

use nodewhy_clock::Clock;
use nodewhy_proto::{Event, EventBody, Finding, NodeInfo, State};

use super::client::{AgentClient, AgentError, EventStream};
use super::sse::Piece;
use super::view::{AgentView, Contact, Taken};
use crate::known::Shared;
use crate::metrics::Metrics;
use crate::pause::Pauses;
use crate::{AgentAddress, Timings};

/// Every so many looks at the state, findings and clock are read again too: an event only wakes, the list decides.
const FULL_LOOK: u32 = 6;
/// A session of this length was a good one: the next failure starts from the shortest pause.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// What following needs.
pub(crate) struct Follower<'a> {
    pub(crate) address: &'a AgentAddress,
    pub(crate) shared: &'a Shared,
    pub(crate) metrics: &'a Metrics,
    pub(crate) clock: &'a Clock,
    pub(crate) timings: &'a Timings,
}

impl Follower<'_> {
    /// Never ends by itself.
    pub(crate) async fn follow(&self) {
        let client = AgentClient {
            socket: self.address.socket.clone(),
            clock: self.clock.clone(),
            answer: self.timings.answer,
            silence: self.timings.stream_silence,
        };
        let mut pauses = Pauses::new(self.timings);
        let mut doubted = false;
        loop {
            let began = self.clock.since_boot();
            let mut met = false;
            let Err(error) = self.session(&client, &mut met).await;
            if self.clock.since_boot().saturating_sub(began) >= GOOD_SESSION {
                pauses.reset();
            }
            self.metrics.reconnects.with_label_values(&["agent"]).inc();
            if met {
                // It answered, then did not: whether it is lost, the next try shows.
                doubted = error.is_about_time();
                tracing::info!(node = self.address.node, %error, "connecting to the agent again");
            } else if error.is_about_time() && !doubted {
                doubted = true;
                continue;
            } else {
                self.lose(&error);
            }
            self.clock.sleep(pauses.next()).await;
        }
    }

    fn lose(&self, error: &AgentError) {
        let now = self.clock.now();
        if self.view(|view| view.lose(now, error.to_string())) {
            tracing::warn!(node = self.address.node, %error, "the agent can't be asked");
            self.shared.wake([self.address.node.clone()]);
        }
    }

    fn view<T>(&self, change: impl FnOnce(&mut AgentView) -> T) -> T {
        change(self.shared.lock().agents.entry(self.address.node.clone()).or_default())
    }

    /// One connection's life. `met` is set once the agent has told all that it knows.
    async fn session(
        &self,
        client: &AgentClient,
        met: &mut bool,
    ) -> Result<std::convert::Infallible, AgentError> {
        self.look(client).await?;
        let mut stream = self.open(client).await?;
        if let Contact::Lost { since, .. } =
            self.view(|view| std::mem::replace(&mut view.contact, Contact::Answers))
        {
            tracing::info!(node = self.address.node, %since, "the agent answers again");
        }
        self.shared.wake([self.address.node.clone()]);
        *met = true;
        let listen = async {
            loop {
                for piece in stream.next().await? {
                    self.hear(client, piece).await?;
                }
                self.view(|view| view.hear(self.clock.now()));
            }
        };
        let poll = async {
            let mut looks = 0_u32;
            loop {
                self.clock.sleep(self.timings.state_every).await;
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(FULL_LOOK) {
                    self.look(client).await?
                } else {
                    self.state(client).await?
                }
            }
        };
        // One that does not answer /state does not answer, though its stream is open.
        tokio::select! {
            ended = listen => ended,
            ended = poll => ended,
        }
    }

    /// The event stream, from where it was left.
    async fn open<'c>(&self, client: &'c AgentClient) -> Result<EventStream<'c>, AgentError> {
        let cursor = self.view(|view| view.cursor.clone());
        match client.events(cursor.as_deref()).await {
            // An agent of another version can make nothing of our cursor, now or later: all that it keeps, then.
            Err(error) if error.is_refusal() && cursor.is_some() => {
                tracing::warn!(node = self.address.node, %error, "the agent refuses our cursor: its events are read anew");
                let now = self.clock.now();
                self.view(|view| view.lose_cursor(now));
                client.events(None).await
            }
            opened => opened,
        }
    }

    /// Who it is, how its collectors do, and every finding.
    async fn look(&self, client: &AgentClient) -> Result<(), AgentError> {
        let sent = self.clock.now();
        let info: NodeInfo = client.get("/api/v1/node").await?;
        let received = self.clock.now();
        self.check(client, &info.id.name)?;
        self.view(|view| {
            view.measure(sent, info.now, received);
            view.info = Some(info);
        });
        self.state(client).await?;
        let asked = self.clock.now();
        let findings: Vec<Finding> = client.get("/api/v1/findings").await?;
        let now = self.clock.now();
        if self.view(|view| view.take_findings(findings, asked, now)) {
            self.shared.wake([self.address.node.clone()]);
        }
        Ok(())
    }

    async fn state(&self, client: &AgentClient) -> Result<(), AgentError> {
        let sent = self.clock.now();
        // Outcomes alone: the readings are fifty times as long, and nobody here reads them.
        let state: State = client.get("/api/v1/state?readings=false").await?;
        let received = self.clock.now();
        self.check(client, &state.node)?;
        let changed = self.view(|view| {
            view.measure(sent, state.now, received);
            view.hear(received);
            view.take_state(state)
        });
        if changed {
            self.shared.wake([self.address.node.clone()]);
        }
        Ok(())
    }

    /// What an agent says is bound to the node that was dialled.
    fn check(&self, client: &AgentClient, said: &str) -> Result<(), AgentError> {
        if said == self.address.node {
            return Ok(());
        }
        self.metrics.drop_one("another_node");
        let (socket, said, asked) = (client.socket.clone(), said.to_owned(), self.address.node.clone());
        Err(AgentError::AnotherNode { socket, said, asked })
    }

    async fn hear(&self, client: &AgentClient, piece: Piece) -> Result<(), AgentError> {
        let (id, data) = match piece {
            Piece::Comment => return Ok(()),
            Piece::TooLong { id } => {
                self.metrics.drop_one("too_long");
                tracing::warn!(node = self.address.node, "an event longer than 1 MiB was dropped");
                self.move_cursor(id);
                return Ok(());
            }
            Piece::Event { id, data } => (id, data),
        };
        let event: Event = match serde_json::from_slice(&data) {
            Ok(event) => event,
            Err(error) => {
                self.metrics.drop_one("malformed");
                tracing::warn!(node = self.address.node, %error, "an event that can't be read was dropped");
                self.move_cursor(id);
                return Ok(());
            }
        };
        let now = self.clock.now();
        let stepped = matches!(event.body, EventBody::ClockStepped { .. });
        let taken = self.view(|view| view.take_event(event, now));
        match taken {
            Taken::New => self.metrics.events.inc(),
            Taken::Repeat => self.metrics.drop_one("repeat"),
            Taken::Gap => {
                tracing::warn!(node = self.address.node, "events of the agent are missing: reading it anew")
            }
        }
        if taken == Taken::Gap || stepped {
            self.look(client).await?;
        }
        if taken != Taken::Repeat {
            self.shared.wake([self.address.node.clone()]);
        }
        Ok(())
    }

    /// Past an event that can't be taken, or it would come again for ever.
    fn move_cursor(&self, id: Option<String>) {
        if let Some(id) = id {
            self.view(|view| view.cursor = Some(id));
        }
    }
}
