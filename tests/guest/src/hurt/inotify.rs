//! inotify instances and watches, which are counted for each user (root too).

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::end::End;
use super::say;

/// `inotify`. Says `ready INSTANCES WATCHES WHY` (all that were asked for, or the error that the next one got: EMFILE is
/// fs.inotify.max_user_instances or RLIMIT_NOFILE, ENOSPC is fs.inotify.max_user_watches).
#[derive(Debug, Args)]
pub(super) struct Watches {
    /// How many instances.
    #[arg(long)]
    instances: usize,
    /// How many watches each has, of as many files.
    #[arg(long, default_value_t = 0)]
    watches: usize,
    /// Where it makes a folder for the files, which it removes at the end.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
}

impl Watches {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        super::descriptors::raise_to_hard()?;
        ensure!(self.instances > 0, "--instances is at least 1");
        let folder = Folder::make(self.dir.join(format!("hurt-inotify-{}", std::process::id())))?;
        let files = folder.files(self.watches)?;
        let (mut instances, mut watches) = (Vec::new(), 0);
        let why = match self.fill(&files, &mut instances, &mut watches) {
            Ok(()) => "all that were asked for".to_owned(),
            Err(error) => error.to_string(),
        };
        say(&format!("ready {} {watches} {why}", instances.len()))?;
        end.wait()
    }

    fn fill(&self, files: &[PathBuf], instances: &mut Vec<Inotify>, watches: &mut usize) -> nix::Result<()> {
        for _ in 0..self.instances {
            let instance = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            for file in files {
                if let Err(error) = instance.add_watch(file, AddWatchFlags::IN_MODIFY) {
                    instances.push(instance);
                    return Err(error);
                }
                *watches += 1;
            }
            instances.push(instance);
        }
        Ok(())
    }
}

/// Two watches of one file in one instance are one: so there are as many files.
struct Folder(PathBuf);

impl Folder {
    fn make(path: PathBuf) -> anyhow::Result<Folder> {
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Folder(path))
    }

    fn files(&self, count: usize) -> anyhow::Result<Vec<PathBuf>> {
        let make = |number: usize| {
            let path = Path::new(&self.0).join(number.to_string());
            File::create(&path).with_context(|| format!("make {}", path.display()))?;
            Ok(path)
        };
        (0..count).map(make).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("hurt: remove {}: {error}", self.0.display());
        }
    }
}
