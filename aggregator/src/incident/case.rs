//! Gathers all that is known into the complete, immutable input of one diagnosis. Pure.

use jiff::Timestamp;
use nodewhy_diagnosis::{Case, CaseError, NodeCase, Source};
use nodewhy_proto::NodeId;

use crate::Timings;
use crate::known::Known;

/// A case about this node, from a quarter of an hour before now, or before `began`.
///
/// # Errors
/// The clock was stepped so far that the window ends before it begins.
pub(crate) fn case(
    known: &Known,
    node: &str,
    began: Option<Timestamp>,
    now: Timestamp,
    timings: &Timings,
) -> Result<Case, CaseError> {
    let from = crate::before(began.map_or(now, |began| began.min(now)), timings.window);
    let agent = known.agents.get(node);
    let asked = NodeCase::of(id(known, node));
    let asked = match agent {
        Some(agent) => asked
            .findings(agent.findings_within(from, now))
            .events(agent.events_within(from, now))
            .collectors(agent.outcomes()),
        None => {
            let why = format!("no agent of {node} is followed; name it with --agent");
            asked
                .findings(Source::missing(why.clone()))
                .events(Source::missing(why.clone()))
                .collectors(Source::missing(why))
        }
    };
    let asked = asked.facts(known.cluster.facts(node, now)).build()?;
    // An agent that can't be asked is neither well nor unwell.
    let agent_well = |name: &str| {
        let agent = known.agents.get(name).filter(|agent| agent.why_silent().is_none())?;
        Some(agent.critical().next().is_none())
    };
    Case::about(node).window(from, now).node(asked).cluster(known.cluster.case(now, agent_well)).build()
}

fn id(known: &Known, node: &str) -> NodeId {
    let info = known.agents.get(node).and_then(|agent| agent.info.as_ref());
    let (uid, machine_id) = known.cluster.watched().map_or((None, None), |watched| watched.identity(node));
    NodeId {
        name: node.to_owned(),
        uid,
        machine_id: info.and_then(|info| info.id.machine_id.clone()).or(machine_id),
        boot_id: info.and_then(|info| info.id.boot_id.clone()),
    }
}
