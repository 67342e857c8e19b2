//! Seconds since the fault began, from the clocks of three parties: the node's boot clock, which no fault moves but a
//! new boot; the node's wall clock, which faults step; and the harness's, by which questions were asked and answered.

use jiff::{SignedDuration, Timestamp};
use nodewhy_guest::channel::Clocks;
use nodewhy_proto::{Event, NodeInfo, State};

use crate::evidence::{Asked, Story};

/// A fault's beginning, and what is known of the clocks.
pub(super) struct Elapsed<'s> {
    boot: Option<&'s str>,
    since_boot_seconds: f64,
    since_wall: SignedDuration,
    infos: &'s [Asked<NodeInfo>],
}

impl<'s> Elapsed<'s> {
    /// The fault began in the story's first boot.
    pub(super) fn new(since: &Clocks, story: &'s Story) -> Elapsed<'s> {
        Elapsed {
            boot: story.first_boot(),
            since_boot_seconds: SignedDuration::from_nanos(since.boot_nanos).as_secs_f64(),
            since_wall: SignedDuration::from_nanos(since.unix_nanos),
            infos: &story.infos,
        }
    }

    /// Until the time that an event bears.
    pub(super) fn event(&self, event: &Event) -> f64 {
        self.node(event.boot_id.as_deref(), event.boot_seconds, event.at)
    }

    /// Until the agent wrote this.
    pub(super) fn info(&self, info: &NodeInfo) -> f64 {
        self.node(info.id.boot_id.as_deref(), info.uptime_seconds, info.now)
    }

    /// Until this time of the harness's clock: rather too long than too short, since an agent's answer of its clocks may
    /// have been written as early as it was asked for.
    pub(super) fn received(&self, at: Timestamp) -> f64 {
        match self.best(at) {
            Some(info) => self.info(&info.said) + seconds(info.asked, at),
            // Nothing is known but that the node's wall clock was set by the harness's.
            None => self.wall(at),
        }
    }

    /// Until the agent wrote this state, which bears the wall clock alone: as far as that fits with when it was asked
    /// for and received.
    pub(super) fn written(&self, state: &Asked<State>) -> f64 {
        let Some(info) = self.best(state.received) else { return self.wall(state.said.now) };
        let base = self.info(&info.said);
        let by_wall = base + seconds(info.said.now, state.said.now);
        let earliest = base + seconds(info.received, state.asked);
        by_wall.max(earliest).min(self.received(state.received))
    }

    /// Which boot it was at this time of the harness's clock.
    pub(super) fn boot_at(&self, at: Timestamp) -> Option<&'s str> {
        let newest = self.infos.iter().rev().find(|info| info.asked <= at).or(self.infos.first())?;
        newest.said.id.boot_id.as_deref()
    }

    /// Whether this is known to be another boot than the fault's.
    pub(super) fn is_other_boot(&self, boot: Option<&str>) -> bool {
        boot.is_some() && self.boot.is_some() && boot != self.boot
    }

    /// Whether something is of the time after the undo, in the fault's own boot. A new boot that the undo made (power on)
    /// tells of the fault.
    pub(super) fn is_after(&self, undone: Option<f64>, seconds: f64, boot: Option<&str>) -> bool {
        undone.is_some_and(|undone| seconds > undone) && !self.is_other_boot(boot)
    }

    fn node(&self, boot: Option<&str>, boot_seconds: f64, wall: Timestamp) -> f64 {
        let is_same = boot.is_some() && boot == self.boot;
        if is_same { boot_seconds - self.since_boot_seconds } else { self.wall(wall) }
    }

    fn wall(&self, at: Timestamp) -> f64 {
        (at.as_duration() - self.since_wall).as_secs_f64()
    }

    /// The answer that ties the harness's clock to the node's best: of the fault's boot where there is one (a new boot's
    /// wall clock is only as good as its RTC), soon answered, and near. A quick one from 10 s away is as good as a near
    /// one that took 1 s: the clocks do not drift, but the machine can be frozen in between.
    fn best(&self, at: Timestamp) -> Option<&'s Asked<NodeInfo>> {
        let doubt = |info: &Asked<NodeInfo>| {
            let away = info.asked.duration_since(at).max(at.duration_since(info.received));
            away.max(SignedDuration::ZERO) / 10 + info.received.duration_since(info.asked)
        };
        let of_boot = |info: &&Asked<NodeInfo>| info.said.id.boot_id.as_deref() == self.boot;
        let same = self.infos.iter().filter(of_boot).min_by_key(|info| doubt(info));
        same.or_else(|| self.infos.iter().min_by_key(|info| doubt(info)))
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
