//! The built stand-in for the kubelet, on addresses of the loopback.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests start processes and make files, and may panic"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(arguments: &[&str]) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubelet-standin"));
    Program(command.args(arguments).stderr(Stdio::piped()).spawn().unwrap())
}

fn connect(address: &str) -> TcpStream {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(began.elapsed() < Duration::from_secs(10), "{address}: {error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Addresses that were free a moment ago.
fn free() -> [String; 2] {
    [(); 2]
        .map(|()| TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|free| free.local_addr().unwrap().to_string())
}

#[test]
fn each_address_has_its_own_answer() {
    let folder = tempfile::tempdir().unwrap();
    let files = [("well", 200, "OK", "ok"), ("ill", 500, "Internal Server Error", "no")].map(
        |(name, code, reason, body)| {
            let path = folder.path().join(name);
            let response = format!("HTTP/1.1 {code} {reason}\nContent-Length: 2\n\n{body}");
            std::fs::write(&path, format!("# Stands for nothing but this test.\n{response}")).unwrap();
            path.to_str().unwrap().to_owned()
        },
    );
    let addresses = free();
    let _program = start(&[&addresses[0], &files[0], &addresses[1], &files[1]]);
    for (address, first, body) in [
        (&addresses[0], "HTTP/1.1 200 OK\r\n", "ok"),
        (&addresses[1], "HTTP/1.1 500 Internal Server Error\r\n", "no"),
    ] {
        let mut stream = connect(address);
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reader = BufReader::new(stream);
        let (mut line, mut rest) = (String::new(), String::new());
        reader.read_line(&mut line).unwrap();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(
            (line.as_str(), rest.as_str()),
            (first, format!("Content-Length: 2\r\n\r\n{body}").as_str())
        );
    }
}

#[test]
fn what_it_can_t_serve_it_says() {
    for (arguments, words) in [
        (&[][..], "usage"),
        (&["127.0.0.1:0"], "usage"),
        (&["127.0.0.1:0", "/no/such/file"], "read /no/such/file"),
        (&["127.0.0.1:0", "/proc/version"], "/proc/version is no recorded response"),
    ] {
        let mut program = start(arguments);
        let mut said = String::new();
        program.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!program.0.wait().unwrap().success() && said.contains(words), "{arguments:?}: {said}");
    }
}
