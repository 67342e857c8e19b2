//! The parts that need the built stand-in, or namespaces of their own.

#![expect(clippy::disallowed_methods, reason = "a test looks at the processes of its own namespace")]

use std::io::{Read, Write};
use std::net::TcpStream;

use nodewhy_tests::alone::alone;
use nodewhy_tests::kubelet::{Kubelet, standin};
use nodewhy_tests::recording::VERSIONS;

/// The names of all processes of this PID namespace.
fn names() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            // A process may end while the folder is read.
            names.extend(std::fs::read_to_string(entry.path().join("comm")).ok());
        }
    }
    Ok(names.into_iter().map(|name| name.trim().to_owned()).collect())
}

#[test]
fn the_stand_in_is_the_only_kubelet_and_answers_as_recorded() -> anyhow::Result<()> {
    if !alone("the_stand_in_is_the_only_kubelet_and_answers_as_recorded")? {
        return Ok(());
    }
    let standin = standin()?;
    for version in VERSIONS {
        let mut kubelet = Kubelet::start(&standin, version, ([127, 0, 0, 1], 10248).into())?;
        assert_eq!(names()?.iter().filter(|name| *name == "kubelet").count(), 1);
        let mut stream = TcpStream::connect(kubelet.address())?;
        // Two requests on one connection, as a client that keeps it open sends.
        for _ in 0..2 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            let mut response = Vec::new();
            while !response.ends_with(b"\r\n\r\nok") {
                let mut buffer = [0; 512];
                let length = stream.read(&mut buffer)?;
                assert_ne!(length, 0, "{:?}", String::from_utf8_lossy(&response));
                response.extend(&buffer[..length]);
            }
            assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&response));
        }
        assert!(kubelet.root().join("config.yaml").exists());
        kubelet.kill()?;
        assert!(!names()?.iter().any(|name| name == "kubelet"));
        assert!(TcpStream::connect(kubelet.address()).is_err());
        kubelet.launch()?;
    }
    assert!(!names()?.iter().any(|name| name == "kubelet"), "it ends with its handle");
    Ok(())
}

#[test]
fn alone_there_is_nothing_of_the_machine_s() -> anyhow::Result<()> {
    if !alone("alone_there_is_nothing_of_the_machine_s")? {
        return Ok(());
    }
    assert_eq!(std::process::id(), 1);
    assert_eq!(names()?.len(), 1, "{:?}", names()?);
    let interfaces = std::fs::read_to_string("/proc/self/net/dev")?;
    assert_eq!(interfaces.lines().filter(|line| line.contains(':')).count(), 1, "{interfaces}");
    let folder = tempfile::tempdir()?;
    assert!(folder.path().starts_with("/media"), "{}", folder.path().display());
    Ok(())
}
