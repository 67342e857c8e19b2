//! Open files.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, ensure};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::children::{self, Children};
use super::end::End;
use super::say;

/// `fds`. Says `ready NUMBER WHY` (all that were asked for, or the error that the next one got, of the first process
/// that got one). Who has CAP_SYS_ADMIN is not held up by fs.file-max (ENFILE), but fills it for the others.
#[derive(Debug, Args)]
pub(super) struct Fds {
    /// How many files each process opens at most.
    #[arg(long)]
    count: usize,
    /// How many processes.
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// RLIMIT_NOFILE of each (above the hard limit: root only). As inherited without it.
    #[arg(long)]
    limit: Option<u64>,
}

impl Fds {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        let mut arguments = vec!["child-open".to_owned(), "--count".to_owned(), self.count.to_string()];
        if let Some(limit) = self.limit {
            arguments.extend(["--limit".to_owned(), limit.to_string()]);
        }
        // All are there before the first opens its files: where no file can be opened, no process can be started.
        let mut children = Children::default();
        for number in 0..self.processes {
            children.start_talking(&arguments).with_context(|| format!("make the process after {number}"))?;
        }
        children.go();
        let (mut sum, mut why) = (0, None);
        for line in children.lines().context("hear from a child")? {
            let line = line.context("a child ended before it had opened its files; see above")?;
            let (opened, error) = line.split_once(' ').unwrap_or((&line, ""));
            sum += opened.parse::<usize>().with_context(|| format!("a child said {line:?}"))?;
            if !error.is_empty() && why.is_none() {
                why = Some(error.to_owned());
            }
        }
        say(&format!("ready {sum} {}", why.as_deref().unwrap_or("all that were asked for")))?;
        end.wait()
    }
}

/// A child of it: waits for the end of its input, opens, says `NUMBER [ERROR]`, and keeps them open.
#[derive(Debug, Args)]
pub(super) struct Open {
    #[arg(long)]
    count: usize,
    #[arg(long)]
    limit: Option<u64>,
}

impl Open {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let Some(limit) = self.limit {
            raise(limit)?;
        }
        std::io::stdin().read_to_end(&mut Vec::new()).context("wait for the start")?;
        let (mut files, mut why) = (Vec::new(), String::new());
        while files.len() < self.count {
            match File::open("/dev/null") {
                Ok(file) => files.push(file),
                Err(error) => {
                    why = format!(" {error}");
                    break;
                }
            }
        }
        say(&format!("{}{why}", files.len()))?;
        children::sleep()
    }
}

fn raise(limit: u64) -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("ask for RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard.max(limit))
        .with_context(|| format!("set RLIMIT_NOFILE to {limit} (fs.nr_open bounds it)"))
}

/// As many open files as this process may have.
pub(super) fn raise_to_hard() -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("ask for RLIMIT_NOFILE")?;
    ensure!(hard >= soft, "RLIMIT_NOFILE is {soft}, above its hard limit {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise RLIMIT_NOFILE to its hard limit")
}
