//! The channel's two sides against each other, with real processes, files and sockets; a pair of sockets stands for
//! the virtio port.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start processes and make files, and may panic"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nodewhy_guest::channel::{self, Clocks, Kind, MAGIC};
use nodewhy_guest::client::{Client, ClientError, DEADLINE};
use nodewhy_guest::server::Server;

/// A server in this process, and the host's end of its port.
fn port() -> UnixStream {
    let (host, guest) = UnixStream::pair().unwrap();
    let server = Server::new(Vec::new()).unwrap();
    thread::spawn(move || server.serve(File::from(OwnedFd::from(guest)), false));
    host
}

fn client() -> Client {
    Client::new(port(), DEADLINE).unwrap()
}

fn gone(pid: &str) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => thread::sleep(Duration::from_millis(10)),
            _ => return true,
        }
    }
    false
}

#[test]
fn a_program_runs_to_its_end() {
    let client = client();
    let output = client.run(&["sh", "-c", "echo out; echo err >&2; exit 3"]).unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.code),
        (&b"out\n"[..], &b"err\n"[..], 3)
    );
    assert!(output.end.began.boot_nanos < output.end.ended.boot_nanos);
    assert_eq!(client.run(&["sh", "-c", "kill -KILL $$"]).unwrap().code, 128 + 9);
    let refused = client.run(&["/no/such/program"]).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
}

#[test]
fn much_is_said_and_much_is_given_without_a_bound_in_between() {
    let client = client();
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0] ^ 0x5a).collect();
    let output = client.run_for(&["cat"], &input, DEADLINE).unwrap();
    assert!(output.stdout == input, "{} of {} bytes came back", output.stdout.len(), input.len());
    // A program that reads nothing, and one that ends in the midst of its input.
    assert_eq!(client.run_for(&["true"], &input, DEADLINE).unwrap().code, 0);
}

#[test]
fn a_child_that_holds_the_output_open_does_not_hold_up_the_end() {
    let client = client();
    let output = client.run(&["sh", "-c", "sleep 60 & echo $!"]).unwrap();
    let pid = output.text().unwrap();
    client.kill(pid.trim().parse().unwrap(), 9).unwrap();
}

#[test]
fn what_is_not_wanted_any_more_is_killed_with_its_group() {
    let client = client();
    let argv = ["sh", "-c", "sleep 600 & echo $!; echo $$; wait"];
    let mut running = client.start(&argv).unwrap();
    let pids = [running.line(DEADLINE).unwrap(), running.line(DEADLINE).unwrap()];
    running.stop().unwrap();
    assert!(pids.iter().all(|pid| gone(pid)), "{pids:?}");

    let mut running = client.start(&argv).unwrap();
    let pids = [running.line(DEADLINE).unwrap(), running.line(DEADLINE).unwrap()];
    let late = running.wait(Duration::from_millis(50)).unwrap_err();
    assert!(late.to_string().contains("no answer came in 0.05 s"), "{late}");
    assert!(pids.iter().all(|pid| gone(pid)), "{pids:?}");
}

#[test]
fn a_host_that_goes_away_takes_its_programs_with_it() {
    let host = port();
    let client = Client::new(host, DEADLINE).unwrap();
    let mut running = client.start(&["sh", "-c", "echo $$; sleep 600"]).unwrap();
    let pid = running.line(DEADLINE).unwrap();
    // The channel is closed at once; nobody cancels.
    std::mem::forget(running);
    client.again(DEADLINE).unwrap();
    assert!(gone(&pid));
}

#[test]
fn files_are_written_in_place_and_read_whole() {
    let client = client();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let name = path.to_str().unwrap();
    // The handshake's own bytes, too: the guest's program holds them, and is copied into it.
    let bytes = [vec![7; 1_000_000], MAGIC.to_vec(), vec![8; 1000]].concat();
    client.write(name, 0o755, &bytes).unwrap();
    assert!(client.read(name).unwrap() == bytes);
    let before = std::fs::metadata(&path).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&before.permissions()) & 0o7777, 0o755);
    client.write(name, 0o600, b"short").unwrap();
    assert_eq!(client.read(name).unwrap(), b"short");
    let after = std::fs::metadata(&path).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&after));
    assert_eq!(client.read("/proc/self/comm").unwrap().last(), Some(&b'\n'));
    let missing = client.read("/no/such/file").unwrap_err().to_string();
    assert!(missing.contains("read /no/such/file") && missing.contains("No such file"), "{missing}");
    assert!(client.write("/proc/version", 0, b"x").is_err());
}

#[test]
fn signals_and_clocks() {
    let client = client();
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    client.kill(pid, 0).unwrap();
    client.kill(pid, 15).unwrap();
    child.wait().unwrap();
    assert!(client.kill(pid, 0).is_err());
    assert!(client.kill(-1, 0).is_err() && client.kill(0, 0).is_err());
    let (before, told, after) = (Clocks::now().unwrap(), client.clocks().unwrap(), Clocks::now().unwrap());
    assert!(before.boot_nanos < told.boot_nanos && told.boot_nanos < after.boot_nanos);
    assert!(before.unix_nanos < told.unix_nanos && told.unix_nanos < after.unix_nanos);
}

/// A server that says back what it hears, and closes when its client has.
fn echo(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            thread::spawn(move || std::io::copy(&mut connection.try_clone().unwrap(), &mut connection));
        }
    });
}

#[test]
fn sockets_are_forwarded() {
    let client = client();
    let folder = tempfile::tempdir().unwrap();
    let (theirs, ours) = (folder.path().join("theirs"), folder.path().join("ours"));
    echo(&theirs);
    let forward = client.forward(theirs.to_str().unwrap(), &ours).unwrap();
    let talk = |length: usize| {
        let ours = ours.clone();
        move || {
            let mut socket = UnixStream::connect(ours).unwrap();
            let said = vec![u8::try_from(length % 251).unwrap(); length];
            let mut writer = socket.try_clone().unwrap();
            let (words, mut heard) = (said.clone(), Vec::new());
            let writing = thread::spawn(move || {
                writer.write_all(&words).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            socket.read_to_end(&mut heard).unwrap();
            writing.join().unwrap();
            assert!(heard == said, "{} of {length} bytes", heard.len());
        }
    };
    let talks = [0, 1, 100_000, 1_000_000, 2_000_000].map(|length| thread::spawn(talk(length)));
    talks.into_iter().for_each(|talk| talk.join().unwrap());
    // One who does not listen holds up nobody.
    let mut deaf = client.connect(theirs.to_str().unwrap()).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while deaf.write_all(&[1; 65536]).is_ok() {}
    assert_eq!(client.run(&["echo", "well"]).unwrap().text().unwrap(), "well\n");
    thread::spawn(talk(1000)).join().unwrap();
    // What can't be connected to is closed.
    let mut nobody = client.connect("/no/such/socket").unwrap();
    assert_eq!(nobody.read(&mut [0; 1]).unwrap(), 0);
    drop(forward);
    assert!(!ours.exists());
}

#[test]
fn a_hundred_calls_at_once() {
    let client = client();
    let calls: Vec<_> = (0..100)
        .map(|number: u32| {
            let client = client.clone();
            thread::spawn(move || {
                let output = client.run(&["sh", "-c", "sleep 0.2; echo $0", &number.to_string()]).unwrap();
                assert_eq!(output.text().unwrap(), format!("{number}\n"));
            })
        })
        .collect();
    calls.into_iter().for_each(|call| call.join().unwrap());
}

#[test]
fn a_cut_frame_of_a_former_host_is_survived_and_its_calls_end() {
    let mut port = port();
    // A former host that spoke before any handshake, and was cut in the midst of a frame.
    port.write_all(&channel::frame(1, Kind::Bytes, &[3; 5000]).unwrap()[..3000]).unwrap();
    let first = Client::new(port.try_clone().unwrap(), DEADLINE).unwrap();
    let mut running = first.start(&["sh", "-c", "echo $$; exec sleep 600"]).unwrap();
    let pid = running.line(DEADLINE).unwrap();
    // As after a snapshot was loaded: a half frame goes out, then a new handshake on the same port.
    port.write_all(&channel::frame(2, Kind::Bytes, &[0; 9000]).unwrap()[..4000]).unwrap();
    first.again(DEADLINE).unwrap();
    assert!(gone(&pid), "the former conversation's program was killed");
    assert!(running.line(DEADLINE).is_err());
    assert_eq!(first.run(&["echo", "new"]).unwrap().text().unwrap(), "new\n");
}

#[test]
fn a_guest_that_does_not_answer_is_an_error_with_words() {
    let (host, _guest) = UnixStream::pair().unwrap();
    let error = Client::new(host, Duration::from_millis(700)).unwrap_err().to_string();
    assert!(error.contains("begin a conversation: no answer came in 0.7 s"), "{error}");
    let (host, guest) = UnixStream::pair().unwrap();
    drop(guest);
    assert!(matches!(Client::new(host, DEADLINE), Err(ClientError::Broken { .. })));
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_program_serves_one_host_after_another_and_its_children_are_ordinary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port");
    let listener = UnixListener::bind(&path).unwrap();
    let _program = Program(Command::new(env!("CARGO_BIN_EXE_guest")).arg(&path).spawn().unwrap());
    for host in 0..2 {
        let client = Client::new(listener.accept().unwrap().0, DEADLINE).unwrap();
        let told = client.run(&["sh", "-c", "cat /proc/self/oom_score_adj; cat /proc/$$/stat"]).unwrap();
        let told = told.text().unwrap();
        let (score, stat) = told.split_once('\n').unwrap();
        assert_eq!(score, "0", "host {host}");
        // Fields 18 (priority), 19 (nice), and at the end 41 (policy), see proc(5).
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        assert_eq!((fields[15], fields[16], fields[38]), ("20", "0", "0"), "host {host}: {stat}");
        let missing = client.run(&["/no/such/program"]).unwrap();
        assert_eq!(missing.code, 127);
        assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/program"));
    }
}
