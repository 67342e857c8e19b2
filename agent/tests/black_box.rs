//! The agent's own program on a node that is dying: nobody reads its log, no thread is to be had, a right is missing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test starts the program, reads /proc of it, and stops at what it did not expect"
)]

mod support;

use std::collections::BTreeMap;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::Value;
use support::{Events, get};

/// A user without any right.
const NOBODY: u32 = 65534;

struct Agent {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Starts the program; `change` sets what is special.
fn start(change: impl FnOnce(&mut Command)) -> Agent {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // Whoever runs it need not be able to enter the folder that it was built in.
    let program = folder.path().join("nodewhy-agent");
    std::fs::copy(env!("CARGO_BIN_EXE_nodewhy-agent"), &program).unwrap();
    let socket = folder.path().join("agent.sock");
    let mut command = Command::new(program);
    command.arg("--socket").arg(&socket).stdin(Stdio::null());
    change(&mut command);
    let child = command.spawn().unwrap();
    let agent = Agent { child, socket, _folder: folder };
    let end = Instant::now() + Duration::from_secs(30);
    while !agent.socket.exists() || get(&agent.socket, "/readyz").status != 200 {
        assert!(Instant::now() < end, "the agent never was ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    agent
}

impl Agent {
    fn ticks(&self) -> u64 {
        get(&self.socket, "/api/v1/state").json()["collectors"]["pressure"]["ticks"]["total"]
            .as_u64()
            .unwrap()
    }

    fn goes_on(&self) {
        let (before, end) = (self.ticks(), Instant::now() + Duration::from_secs(20));
        while self.ticks() < before + 2 {
            assert!(Instant::now() < end, "the agent reads no more");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn memory_lock(&self) -> Value {
        get(&self.socket, "/api/v1/node").json()["agent"]["memory_locked"].clone()
    }

    fn status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// By id: a thread has its own name only once it runs, which takes its time on a loaded machine.
    fn threads(&self) -> BTreeMap<String, String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |path: &Path| {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), name.trim().to_owned())
        };
        tasks.map(|task| of(&task.unwrap().path())).collect()
    }
}

/// A pipe that takes no byte more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let (_reader, writer) = full_pipe();
    let mut agent = start(|command| {
        command.args(["--log", "trace"]).stderr(writer);
    });
    agent.goes_on();
    // Nor does it hold up the end.
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&agent.child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while agent.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the agent does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_it_has_to_say_at_its_end_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let output = Command::new(env!("CARGO_BIN_EXE_nodewhy-agent"))
        .args(["--host-root", missing.to_str().unwrap(), "--socket"])
        .arg(folder.path().join("agent.sock"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = format!("nodewhy-agent: no folder {} to read the host from", missing.display());
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn no_thread_is_made_after_the_start() {
    let agent = start(|command| {
        command.stderr(Stdio::null());
    });
    let at_first = agent.threads();
    let named = Instant::now() + Duration::from_secs(20);
    for name in ["c-pressure", "cmdline"] {
        while !agent.threads().iter().any(|(id, thread)| thread == name && at_first.contains_key(id)) {
            assert!(Instant::now() < named, "{name}: {at_first:?}");
        }
    }
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        for path in ["/metrics", "/api/v1/node", "/api/v1/state", "/api/v1/findings"] {
            assert_eq!(get(&agent.socket, path).status, 200);
        }
        let now = agent.threads();
        let new: Vec<_> = now.iter().filter(|(id, _)| !at_first.contains_key(*id)).collect();
        assert!(new.is_empty(), "{new:?} came after the start");
    }
    agent.goes_on();
}

#[test]
fn without_free_descriptors_what_is_kept_open_is_read_on() {
    let agent = start(|command| {
        command.stderr(Stdio::null());
    });
    agent.goes_on();
    let mut events = Events::open(&agent.socket, "", "");
    let before = agent.ticks();
    let pid = rustix::process::Pid::from_child(&agent.child);
    let usual = prlimit(Some(pid), Resource::Nofile, getrlimit(Resource::Nofile)).unwrap();
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(3), ..usual }).unwrap();
    // What must open says so, over the stream that was open before.
    let failed = loop {
        let event = events.next();
        if event.kind == "outcome_changed" && event.data["result"]["outcome"] == "failed" {
            break event.data;
        }
    };
    assert!(failed["result"]["error"].as_str().unwrap().contains("no descriptor left"), "{failed}");
    std::thread::sleep(Duration::from_secs(2));
    prlimit(Some(pid), Resource::Nofile, usual).unwrap();
    let pressure = get(&agent.socket, "/api/v1/state").json()["collectors"]["pressure"].clone();
    assert_eq!(pressure["outcome"], "read", "{pressure}");
    assert!(pressure["ticks"]["total"].as_u64().unwrap() >= before + 2, "{pressure}");
}

#[test]
fn its_memory_is_locked_where_it_may_be() {
    let agent = start(|command| {
        command.stderr(Stdio::null());
    });
    let (lock, locked_kib) = (agent.memory_lock(), agent.status("VmLck:"));
    match lock["locked"].as_str().unwrap() {
        "all" => assert!(locked_kib > 1024 && lock["why"].is_null(), "{lock} {locked_kib}"),
        "program" => assert!(locked_kib > 1024 && lock["why"].is_string(), "{lock} {locked_kib}"),
        _ => assert!(locked_kib == 0 && lock["why"].as_str().unwrap().contains("CAP_IPC_LOCK"), "{lock}"),
    }
    let off = start(|command| {
        command.args(["--lock-memory", "false"]).stderr(Stdio::null());
    });
    assert_eq!((off.memory_lock()["locked"].as_str(), off.status("VmLck:")), (Some("no"), 0));
}

#[test]
fn without_the_right_to_lock_memory_it_runs_and_says_so() {
    // Nobody has neither the capability nor, with this, room for so much as the program.
    let limit = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: Some(64 * 1024), ..limit }).unwrap();
    let agent = start(|command| {
        command.stderr(Stdio::null());
        if rustix::process::getuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
    });
    let lock = agent.memory_lock();
    assert_eq!((lock["locked"].as_str(), agent.status("VmLck:")), (Some("no"), 0));
    let why = lock["why"].as_str().unwrap();
    assert!(why.contains("CAP_IPC_LOCK") && why.contains("65536 bytes"), "{why}");
    agent.goes_on();
}

#[test]
fn a_limit_that_holds_the_program_alone_never_starves_it_later() {
    // More than the program has at its start, less than its threads' stacks and heaps will take. To raise the limit so
    // far is a right too: without it, not even the program fits.
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_nodewhy-agent")).unwrap().len();
    let raised = setrlimit(Resource::Memlock, Rlimit { current: Some(size), maximum: Some(size) }).is_ok();
    let agent = start(|command| {
        command.stderr(Stdio::null());
        if rustix::process::getuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
    });
    let lock = agent.memory_lock();
    assert_eq!(lock["locked"], if raised { "program" } else { "no" }, "{lock}");
    assert_eq!(agent.status("VmLck:") > 1024, raised);
    agent.goes_on();
}
