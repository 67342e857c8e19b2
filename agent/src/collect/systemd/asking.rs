//! The thread that asks systemd, so that a reading never waits for PID 1.
//!
//! A new connection each time: systemd sends every signal to whoever stays connected to its private socket, and keeps them
//! for one who does not read. Nothing that is asked loads a unit: `GetUnit` finds those that are loaded, and only their
//! objects' properties are read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nodewhy_clock::Stamp;
use rustbus::message_builder::MarshalledMessage;
use rustbus::params::{Array, Base, Container, Param};
use rustbus::wire::unmarshal::traits::Variant;
use rustbus::{MessageBuilder, Unmarshal};
use serde::Serialize;

use crate::host::Host;
use crate::host::dbus::{Bus, BusError};

/// systemd's own socket (for root alone), and the system bus.
pub(super) const PRIVATE: &str = "/run/systemd/private";
pub(super) const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

const PING_EVERY: Duration = Duration::from_secs(10);
/// Of all pings, each sixth is followed by the questions that cost more.
const LIST_EVERY: u32 = 6;
/// After this the question is given up and asked anew. libdbus' own default is 25 s.
const GIVE_UP_AFTER: Duration = Duration::from_secs(25);
const MOST_FAILED: usize = 50;

const MANAGER: &str = "org.freedesktop.systemd1";
const ROOT: &str = "/org/freedesktop/systemd1";

/// What is known of systemd.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    /// When the question in flight was begun, and which.
    pub(super) asked: Option<Stamp>,
    /// Since when there is no answer: the first of those given up, or the one in flight.
    pub(super) unanswered: Option<Stamp>,
    /// When the newest ping was answered, and how long it took.
    pub(super) answered: Option<(Stamp, Duration)>,
    /// Why the newest could not be asked or answered; none when it was.
    pub(super) error: Option<String>,
    /// Whether that was a right that is missing.
    pub(super) is_denied: bool,
    /// Which socket.
    pub(super) socket: Option<&'static str>,
    /// The slower answers.
    pub(super) known: Option<Known>,
    /// Why they are not newer.
    pub(super) known_error: Option<String>,
}

/// What systemd says of itself and of its units.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Known {
    /// Its version.
    pub version: Option<String>,
    /// `running`, `degraded` (a unit failed), `starting`, `stopping`, …
    pub system_state: Option<String>,
    /// Units that failed, by its own count.
    pub failed_count: Option<u32>,
    /// Units that failed, by name.
    pub failed: Vec<String>,
    /// Jobs that wait or run: a start that waits for another unit.
    pub jobs: Option<u32>,
    /// Units in memory.
    pub units: Option<u32>,
    /// Scopes: each container has one (under the systemd driver), and each transient mount.
    pub scopes: Option<u64>,
    /// Scopes of systemd-run (`run-….scope`): those that stay are leaked.
    pub run_scopes: Option<u64>,
    /// Mount units.
    pub mount_units: Option<u64>,
    /// The units of the kubelet and of the runtime.
    pub of_note: BTreeMap<String, UnitState>,
}

/// A unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UnitState {
    /// `active`, `failed`, `activating`, …
    pub active_state: Option<String>,
    /// `running`, `auto-restart`, `dead`, …
    pub sub_state: Option<String>,
    /// How its last run ended: `success`, `exit-code`, `signal`, `oom-kill`, `watchdog`, …
    pub result: Option<String>,
    /// How often systemd restarted it by itself.
    pub restarts: Option<u32>,
    /// Its `TasksMax`; none: infinity.
    pub tasks_max: Option<u64>,
}

/// The thread; it ends with this.
#[derive(Debug)]
pub(super) struct Asking {
    shared: Arc<Shared>,
    _stop: mpsc::Sender<()>,
}

#[derive(Debug, Default)]
struct Shared {
    board: Mutex<Board>,
    units: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asking {
    pub(super) fn start(host: &Host) -> std::io::Result<Asking> {
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = mpsc::channel::<()>();
        let (host, given) = (host.clone(), shared.clone());
        std::thread::Builder::new().name("systemd".to_owned()).stack_size(256 * 1024).spawn(move || {
            let mut round = 0u32;
            // Nothing is ever sent: the other end is dropped.
            loop {
                given.ask(&host, round.is_multiple_of(LIST_EVERY));
                round = round.wrapping_add(1);
                if !matches!(stopped.recv_timeout(PING_EVERY), Err(RecvTimeoutError::Timeout)) {
                    return;
                }
            }
        })?;
        Ok(Asking { shared, _stop: stop })
    }

    /// Whether anything of this is left after it was dropped.
    #[cfg(test)]
    pub(super) fn watch(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.shared)
    }

    /// What is known now.
    pub(super) fn board(&self) -> Board {
        lock(&self.shared.board).clone()
    }

    /// Of these units more is asked.
    pub(super) fn of_note(&self, units: &BTreeSet<String>) {
        let mut known = lock(&self.shared.units);
        if *known != *units {
            known.clone_from(units);
        }
    }
}

impl Shared {
    fn ask(&self, host: &Host, is_list: bool) {
        let began = host.clock().stamp();
        {
            let mut board = lock(&self.board);
            board.asked = Some(began);
            board.unanswered.get_or_insert(began);
        }
        let mut answered = ping(host);
        let at = host.clock().stamp();
        let mut known = None;
        {
            let mut board = lock(&self.board);
            board.socket = answered.as_ref().map_or(board.socket, |(_, socket)| Some(socket));
            match &answered {
                Ok(_) => {
                    board.answered = Some((at, at.boot.saturating_sub(began.boot)));
                    (board.unanswered, board.error, board.is_denied) = (None, None, false);
                }
                Err(error) => {
                    // Silence alone is a hang; a refusal is an answer.
                    if !matches!(error, BusError::Silent(_)) && !is_full(error) {
                        board.unanswered = None;
                    }
                    board.is_denied = is_denied(error);
                    board.error = Some(error.to_string());
                }
            }
        }
        if let (Ok((bus, _)), true) = (&mut answered, is_list) {
            let units = lock(&self.units).clone();
            known = Some(list(bus, &units));
        }
        let mut board = lock(&self.board);
        board.asked = None;
        match known {
            Some(Ok(known)) => (board.known, board.known_error) = (Some(known), None),
            Some(Err(error)) => {
                if matches!(error, BusError::Silent(_)) {
                    board.unanswered.get_or_insert(at);
                }
                board.known_error = Some(error.to_string());
            }
            None => {}
        }
    }
}

/// Nobody accepts connections: the queue is full.
fn is_full(error: &BusError) -> bool {
    matches!(error, BusError::Connect(error) if error.kind() == ErrorKind::WouldBlock)
}

fn is_denied(error: &BusError) -> bool {
    match error {
        BusError::Connect(error) | BusError::Io(error) => error.kind() == ErrorKind::PermissionDenied,
        BusError::Rejected(_) => true,
        BusError::Told { name, .. } => name.ends_with(".AccessDenied"),
        _ => false,
    }
}

fn ping(host: &Host) -> Result<(Bus, &'static str), BusError> {
    let (mut bus, socket) = match host.dbus(PRIVATE, GIVE_UP_AFTER) {
        Ok(bus) => (bus, PRIVATE),
        // Not there (not mounted into the container), or not for this user: then over the bus.
        Err(error) if is_denied(&error) || is_missing(&error) => {
            let mut bus = host
                .dbus(SYSTEM_BUS, GIVE_UP_AFTER)
                .map_err(|second| if is_missing(&second) { error } else { second })?;
            bus.call(&rustbus::standard_messages::hello(), "Hello")?;
            (bus, SYSTEM_BUS)
        }
        Err(error) => return Err(error),
    };
    let message = MessageBuilder::new()
        .call("Ping")
        .on(ROOT)
        .with_interface("org.freedesktop.DBus.Peer")
        .at(MANAGER)
        .build();
    bus.call(&message, "Ping")?;
    Ok((bus, socket))
}

fn is_missing(error: &BusError) -> bool {
    matches!(error, BusError::Connect(error) if error.kind() == ErrorKind::NotFound)
}

fn list(bus: &mut Bus, units: &BTreeSet<String>) -> Result<Known, BusError> {
    let manager = "org.freedesktop.systemd1.Manager";
    let failed = names(bus, "ListUnitsFiltered", &[&["failed"]])?;
    let leaks = names(bus, "ListUnitsByPatterns", &[&[], &["*.scope", "*.mount"]])?;
    let ends = |end: &str| leaks.iter().filter(|name| name.ends_with(end)).count() as u64;
    let run_scopes = leaks.iter().filter(|name| name.starts_with("run-") && name.ends_with(".scope")).count();
    let mut known = Known {
        version: optional(property::<String>(bus, ROOT, manager, "Version"))?,
        system_state: optional(property::<String>(bus, ROOT, manager, "SystemState"))?,
        failed_count: optional(property::<u32>(bus, ROOT, manager, "NFailedUnits"))?,
        jobs: optional(property::<u32>(bus, ROOT, manager, "NJobs"))?,
        units: optional(property::<u32>(bus, ROOT, manager, "NNames"))?,
        scopes: Some(ends(".scope")),
        run_scopes: Some(run_scopes as u64),
        mount_units: Some(ends(".mount")),
        failed: failed.iter().take(MOST_FAILED).cloned().collect(),
        of_note: BTreeMap::new(),
    };
    let failed = failed.into_iter().filter(|name| super::is_of_note(name));
    for name in units.iter().cloned().chain(failed) {
        if let Some(state) = unit(bus, &name)? {
            known.of_note.insert(name, state);
        }
    }
    Ok(known)
}

/// A property that this version or unit does not have is none; silence is an error.
fn optional<T>(read: Result<T, BusError>) -> Result<Option<T>, BusError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(BusError::Told { .. } | BusError::Malformed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn unit(bus: &mut Bus, name: &str) -> Result<Option<UnitState>, BusError> {
    let mut message = MessageBuilder::new()
        .call("GetUnit")
        .on(ROOT)
        .with_interface("org.freedesktop.systemd1.Manager")
        .at(MANAGER)
        .build();
    push(&mut message, name)?;
    let Some(answer) = optional(bus.call(&message, "GetUnit"))? else { return Ok(None) };
    let path: rustbus::wire::ObjectPath<String> =
        answer.body.parser().get().map_err(|error| BusError::Malformed(format!("GetUnit: {error:?}")))?;
    let path = path.as_ref().to_owned();
    let unit = "org.freedesktop.systemd1.Unit";
    let service = "org.freedesktop.systemd1.Service";
    Ok(Some(UnitState {
        active_state: optional(property(bus, &path, unit, "ActiveState"))?,
        sub_state: optional(property(bus, &path, unit, "SubState"))?,
        result: optional(property(bus, &path, service, "Result"))?,
        restarts: optional(property(bus, &path, service, "NRestarts"))?,
        // Infinity is the largest number.
        tasks_max: optional(property(bus, &path, service, "TasksMax"))?.filter(|most| *most != u64::MAX),
    }))
}

fn push(message: &mut MarshalledMessage, text: &str) -> Result<(), BusError> {
    message.body.push_param(text).map_err(|error| BusError::Malformed(format!("{text}: {error:?}")))
}

fn property<T>(bus: &mut Bus, path: &str, interface: &str, name: &'static str) -> Result<T, BusError>
where
    T: for<'a> Unmarshal<'a, 'a>,
{
    let mut message = MessageBuilder::new()
        .call("Get")
        .on(path)
        .with_interface("org.freedesktop.DBus.Properties")
        .at(MANAGER)
        .build();
    push(&mut message, interface)?;
    push(&mut message, name)?;
    let answer = bus.call(&message, name)?;
    let malformed = |error| BusError::Malformed(format!("{name}: {error:?}"));
    let value: Variant<'_, '_> = answer.body.parser().get().map_err(malformed)?;
    value.get().map_err(malformed)
}

/// The names of a list of units: `a(ssssssouso)`, the name first.
fn names(bus: &mut Bus, method: &'static str, arguments: &[&[&str]]) -> Result<Vec<String>, BusError> {
    let mut message = MessageBuilder::new()
        .call(method)
        .on(ROOT)
        .with_interface("org.freedesktop.systemd1.Manager")
        .at(MANAGER)
        .build();
    for argument in arguments {
        let argument: Vec<&str> = argument.to_vec();
        let pushed = message.body.push_param(argument);
        pushed.map_err(|error| BusError::Malformed(format!("{method}: {error:?}")))?;
    }
    let answer = bus.call(&message, method)?;
    let malformed = || BusError::Malformed(format!("{method}: not a list of units"));
    let whole = answer.unmarshall_all().map_err(|_| malformed())?;
    let Some(Param::Container(Container::Array(Array { values, .. }))) = whole.params.into_iter().next()
    else {
        return Err(malformed());
    };
    values
        .into_iter()
        .map(|value| match value {
            Param::Container(Container::Struct(fields)) => match fields.into_iter().next() {
                Some(Param::Base(Base::String(name))) => Ok(name),
                _ => Err(malformed()),
            },
            _ => Err(malformed()),
        })
        .collect()
}
