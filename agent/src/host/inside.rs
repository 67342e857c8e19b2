//! For tests: the same test again, inside a network, pid and mount namespace of its own.

use std::io::Write;
use std::process::{Command, Stdio};

const INSIDE: &str = "NODEWHY_TEST_INSIDE";

/// Whether the test runs inside already. If not: runs `script` and then the test of this name inside, and fails if it
/// fails. Process 2 is named as only a machine's own process 2 is; /run is empty; the loopback device is up.
#[expect(clippy::disallowed_methods, reason = "a test starts itself again")]
pub(crate) fn inside(test: &str, script: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let setup = format!(
        "( echo -n kthreadd > /proc/$BASHPID/comm; read -r _ ) <&0 &\n\
         until [ \"$(cat /proc/2/comm)\" = kthreadd ]; do :; done\n\
         set -e; mount -t tmpfs none /run; ip link set lo up\n{script}\nexec \"$0\" --exact \"$1\" --nocapture"
    );
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", &setup])
        .arg(program)
        .arg(test)
        .env(INSIDE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Process 2 lives until this end is closed.
    let mut held = child.stdin.take().unwrap();
    let output = child.wait_with_output().unwrap();
    held.write_all(b"\n").ok();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
    false
}

/// What a program prints.
#[expect(clippy::disallowed_methods, reason = "a test compares with another program's count")]
pub(crate) fn said(script: &str) -> String {
    let output = Command::new("bash").args(["-c", script]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
