//! The built `hurt`, in amounts that no machine feels, on the loopback and in folders of its own.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start processes and make files, and may panic"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A harm at work.
struct Harm {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Harm {
    fn start(arguments: &[&str]) -> Harm {
        let program = env!("CARGO_BIN_EXE_hurt");
        let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Harm { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn children(&self) -> Vec<String> {
        let pid = self.pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn end(mut self) -> ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Harm {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn proc(pid: impl std::fmt::Display, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

fn status(pid: impl std::fmt::Display, field: &str) -> String {
    let text = proc(pid, "status");
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap().trim().to_owned()
}

fn within_ten_seconds(what: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        if what() {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

fn all_gone(pids: &[String]) -> bool {
    within_ten_seconds(|| pids.iter().all(|pid| !Path::new("/proc").join(pid).exists()))
}

#[test]
fn memory_is_there_when_it_is_ready_and_sigterm_ends_it_well() {
    let mut harm = Harm::start(&["memory", "--mib", "4", "--keep-touching"]);
    assert_eq!(harm.line(), "ready");
    let kib: u32 = status(harm.pid(), "RssAnon").trim_end_matches(" kB").parse().unwrap();
    assert!((4096..16384).contains(&kib), "RssAnon is {kib} KiB");
    assert!(harm.end().success());
}

#[test]
fn memory_grows_at_its_rate() {
    let began = Instant::now();
    let mut harm = Harm::start(&["memory", "--mib", "3", "--rate-mib-per-second", "10"]);
    assert_eq!(harm.line(), "ready");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    let mut harm = Harm::start(&["memory", "--mib", "4", "--rate-mib-per-second", "1", "--ready-first"]);
    assert_eq!(harm.line(), "ready");
    let kib: u32 = status(harm.pid(), "RssAnon").trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 4096, "RssAnon is {kib} KiB");
}

#[test]
fn it_ends_by_itself() {
    let began = Instant::now();
    let mut harm = Harm::start(&["--seconds", "1", "cpu", "--threads", "0"]);
    assert_eq!(harm.line(), "ready");
    assert!(harm.child.wait().unwrap().success());
    assert!((1..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[test]
fn a_file_is_made_and_read_by_thrash() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let words =
        ["thrash", "--file", file.to_str().unwrap(), "--mib", "1", "--anon-mib", "1", "--threads", "1"];
    let mut harm = Harm::start(&words);
    assert_eq!(harm.line(), "ready");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 1 << 20);
    let read =
        || proc(harm.pid(), "io").lines().next().unwrap().strip_prefix("rchar: ").unwrap().parse::<u64>();
    let before = read().unwrap();
    assert!(within_ten_seconds(|| read().unwrap() > before + (2 << 20)), "it is read more than once");
    assert!(harm.end().success());
}

#[test]
fn forked_children_sleep_and_end_with_it_however_it_ends() {
    for killed in [false, true] {
        let mut harm = Harm::start(&["fork", "--max", "5"]);
        assert_eq!(harm.line(), "ready 5 all that were asked for");
        let children = harm.children();
        assert_eq!(children.len(), 5);
        assert!(within_ten_seconds(|| children.iter().all(|pid| status(pid, "State") == "S (sleeping)")));
        if killed {
            harm.child.kill().unwrap();
            harm.child.wait().unwrap();
        } else {
            assert!(harm.end().success());
        }
        assert!(all_gone(&children), "{children:?}, killed: {killed}");
    }
}

#[test]
fn fork_says_why_it_stopped() {
    // RLIMIT_NPROC binds no root. What can be had without a limit of the machine: a program whose file is gone.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("hurt");
    std::fs::copy(env!("CARGO_BIN_EXE_hurt"), &program).unwrap();
    let script = r#"exec 3<"$0"; rm "$0"; exec /proc/self/fd/3 --seconds 20 fork --max 5"#;
    let mut shell = Command::new("sh");
    let mut child = shell.arg("-c").arg(script).arg(&program).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.starts_with("ready 0 ") && line.contains("No such file"), "{line}");
}

#[test]
fn zombies_stay_zombies() {
    let mut harm = Harm::start(&["zombies", "--count", "3"]);
    assert_eq!(harm.line(), "ready 3");
    let children = harm.children();
    assert_eq!(children.len(), 3);
    assert!(children.iter().all(|pid| status(pid, "State") == "Z (zombie)"));
    assert!(harm.end().success());
    assert!(all_gone(&children));
}

#[test]
fn files_are_opened_by_each_process_up_to_its_limit() {
    let mut harm = Harm::start(&["fds", "--count", "10", "--processes", "2"]);
    assert_eq!(harm.line(), "ready 20 all that were asked for");
    // Beside the standard ones; what the test itself inherited is in all of them.
    let null = |pid: &str| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
        open.filter(|path| !["0", "1", "2"].map(Path::new).contains(&Path::new(path.file_name().unwrap())))
            .filter(|path| std::fs::read_link(path).is_ok_and(|link| link == Path::new("/dev/null")))
            .count()
    };
    let inherited = null(&harm.pid().to_string());
    assert_eq!(harm.children().iter().map(|child| null(child) - inherited).collect::<Vec<_>>(), [10, 10]);
    let mut harm = Harm::start(&["fds", "--count", "1000", "--limit", "50"]);
    let line = harm.line();
    let (count, why) = line.strip_prefix("ready ").unwrap().split_once(' ').unwrap();
    assert!((30..50).contains(&count.parse::<u32>().unwrap()), "{line}");
    assert!(why.contains("Too many open files"), "{line}");
}

#[test]
fn inotify_watches_are_there_and_its_folder_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["inotify", "--instances", "2", "--watches", "3", "--dir", folder.path().to_str().unwrap()];
    let mut harm = Harm::start(&words);
    assert_eq!(harm.line(), "ready 2 6 all that were asked for");
    let pid = harm.pid();
    let watches = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().map(|entry| {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        text.lines().filter(|line| line.starts_with("inotify wd:")).count()
    });
    assert_eq!(watches.sum::<usize>(), 6);
    assert!(harm.end().success());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn blocked_writers_write_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let mut harm = Harm::start(&["blocked", "--count", "2", "--dir", dir, "--every-ms", "10"]);
    assert_eq!(harm.line(), "ready 2");
    let children = harm.children();
    assert_eq!(children.len(), 2);
    let written = |pid: &String| {
        let io = proc(pid, "io");
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse::<u64>().unwrap()
    };
    let before: Vec<u64> = children.iter().map(written).collect();
    assert!(within_ten_seconds(|| {
        children.iter().map(written).zip(&before).all(|(now, before)| now > before + 8000)
    }));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(harm.end().success());
    assert!(all_gone(&children));
    let mut harm = Harm::start(&["blocked", "--count", "1", "--dir", "/no/such/folder"]);
    assert_eq!(harm.line(), "");
    assert!(!harm.child.wait().unwrap().success());
}

#[test]
fn fsync_tells_of_its_calls_each_second() {
    let folder = tempfile::tempdir().unwrap();
    let mut harm = Harm::start(&["fsync", "--dir", folder.path().to_str().unwrap(), "--seconds", "20"]);
    for _ in 0..2 {
        let second: serde_json::Value = serde_json::from_str(&harm.line()).unwrap();
        assert!(second["count"].as_u64().unwrap() > 0, "{second}");
        let millis = ["p50_ms", "p99_ms", "max_ms"].map(|field| second[field].as_f64().unwrap());
        assert!(millis.is_sorted() && millis[0] > 0.0, "{second}");
    }
    assert!(harm.end().success());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_lock_is_held_until_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let mut first = Harm::start(&["flock", path.to_str().unwrap()]);
    assert_eq!(first.line(), "ready");
    let file = std::fs::File::open(&path).unwrap();
    let (file, _) = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap_err();
    let mut second = Harm::start(&["flock", path.to_str().unwrap()]);
    assert!(first.end().success());
    assert_eq!(second.line(), "ready");
    assert!(second.end().success());
    Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
}

fn serve(options: &[&str]) -> (Harm, String) {
    let mut harm = Harm::start(&[&["serve", "127.0.0.1:0"], options].concat());
    let line = harm.line();
    let address = line.strip_prefix("ready ").unwrap().to_owned();
    (harm, address)
}

#[test]
fn flows_are_connections_that_stay() {
    let (_server, address) = serve(&["--silent"]);
    let mut harm = Harm::start(&["flows", "--to", &address, "--count", "5"]);
    assert_eq!(harm.line(), "ready 5 all that were asked for");
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", harm.pid())).unwrap().filter(|entry| {
        let link = std::fs::read_link(entry.as_ref().unwrap().path()).unwrap();
        link.to_string_lossy().starts_with("socket:")
    });
    assert_eq!(sockets.count(), 5);
    assert!(harm.end().success());
    // Nobody listens on a port that was just given back.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut harm = Harm::start(&["flows", "--to", &closed, "--count", "5"]);
    let line = harm.line();
    assert!(line.starts_with("ready 0 connect from port 0") && line.contains("Connection refused"), "{line}");
}

#[test]
fn the_kinds_of_servers() {
    let (_harm, address) = serve(&[]);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");

    let (_harm, address) = serve(&["--silent"]);
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(stream.read(&mut heard).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

    let (_harm, address) = serve(&["--slow-ms", "200"]);
    let mut stream = TcpStream::connect(&address).unwrap();
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[test]
fn packets_come_from_ever_other_ports() {
    let (_harm, address) = serve(&["--udp"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"hello", address).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(socket.recv_from(&mut buffer).unwrap().0, 5);

    let to = socket.local_addr().unwrap().to_string();
    let mut harm = Harm::start(&["udp", "--to", &to, "--rate", "20"]);
    assert_eq!(harm.line(), "ready");
    let ports = [(); 4].map(|()| socket.recv_from(&mut buffer).unwrap().1.port());
    assert!(ports.is_sorted() && ports[0] < ports[3], "{ports:?}");
    let told: serde_json::Value = serde_json::from_str(&harm.line()).unwrap();
    assert!((10..=60).contains(&told["sent"].as_u64().unwrap()), "{told}");
    assert_eq!(told["refused"], 0);
    assert!(harm.end().success());
}

#[test]
fn a_name_is_its_comm_and_its_children_s() {
    let words = ["--oom-score-adj", "500", "name", "kubelet", "--", "fork", "--max", "1"];
    let mut harm = Harm::start(&words);
    assert_eq!(harm.line(), "ready 1 all that were asked for");
    let child = harm.children().pop().unwrap();
    assert!(within_ten_seconds(|| proc(&child, "comm") == "kubelet\n"));
    assert_eq!(proc(harm.pid(), "comm"), "kubelet\n");
    assert!(proc(harm.pid(), "cmdline").starts_with("kubelet\0"));
    assert_eq!(proc(harm.pid(), "oom_score_adj"), "500\n");
    assert!(harm.end().success());
    let mut harm = Harm::start(&["name", "sixteen-bytes-oh", "--", "cpu", "--threads", "0"]);
    assert!(!harm.child.wait().unwrap().success());
}
