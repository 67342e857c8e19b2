use std::path::Path;

use super::{Host, ReadError};

/// What `/proc/PID/stat` says first of a process (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Process id.
    pub pid: u32,
    /// Its name, cut at 15 bytes by the kernel.
    pub comm: String,
    /// R, S, D, Z, T (stopped), t (traced), X, I.
    pub state: char,
}

impl Host {
    /// Name and state of a process. Never waits for the process, unlike its `cmdline`.
    ///
    /// # Errors
    /// It is gone, or the text makes no sense.
    pub fn process_stat(&self, pid: u32) -> Result<ProcessStat, ReadError> {
        let path = format!("/proc/{pid}/stat");
        // A name may hold any bytes: they are shown, not refused.
        let bytes = self.read_bytes(&path)?;
        parse(&String::from_utf8_lossy(&bytes), Path::new(&path))
    }
}

/// `1234 (a name) S 1 …`. The name may itself hold spaces and brackets: the last bracket ends it.
fn parse(text: &str, path: &Path) -> Result<ProcessStat, ReadError> {
    let malformed = || ReadError::malformed(path, format!("expected `PID (name) STATE …`, found {text:?}"));
    let (pid, rest) = text.split_once(" (").ok_or_else(malformed)?;
    let (comm, rest) = rest.rsplit_once(") ").ok_or_else(malformed)?;
    let mut rest = rest.chars();
    let state = rest.next().filter(char::is_ascii_alphabetic).ok_or_else(malformed)?;
    // A state is one letter and a space: what is cut short is not believed.
    if rest.next() != Some(' ') {
        return Err(malformed());
    }
    Ok(ProcessStat { pid: pid.parse().map_err(|_| malformed())?, comm: comm.to_owned(), state })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44: a process that named itself `a) b (c` (PR_SET_NAME) and sent itself SIGSTOP.
    const STOPPED: &str = "16892 (a) b (c) T 16889 16889 9393 0 -1 4194304 2924 6548 3 0 2 1 3 0 20 0 1 0 206111 \
                           17145856 3424 18446744073709551615 93994759118848 93994759119189 140737473006288 0 0 0 0 \
                           16781318 0 1 0 0 17 1 0 0 0 0 0 93994759130544 93994759131160 93994982948864 \
                           140737473014013 140737473014056 140737473014056 140737473015759 19\n";

    fn read(text: &str) -> Result<ProcessStat, ReadError> {
        parse(text, Path::new("/proc/16892/stat"))
    }

    #[test]
    fn a_name_may_hold_brackets_and_spaces() {
        assert_eq!(
            read(STOPPED).unwrap(),
            ProcessStat { pid: 16892, comm: "a) b (c".to_owned(), state: 'T' }
        );
    }

    #[test]
    fn every_prefix_is_right_or_an_error() {
        for cut in 0..STOPPED.len() {
            if let Ok(stat) = read(&STOPPED[..cut]) {
                // A cut inside the name's own bracket leaves another name, never another process.
                assert_eq!(stat.pid, 16892);
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in ".*") {
            if let Ok(stat) = read(&text) {
                prop_assert!(stat.state.is_ascii_alphabetic());
            }
        }
    }
}
