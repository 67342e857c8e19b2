//! Where `nodewhy up` has its sockets: in the usual place, so that `nodewhy why` finds them, if nobody else is
//! there; else in a private folder. The folder is its owner's alone, and what was made is removed at the end.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

/// The aggregator's socket within its folder.
const AGGREGATOR: &str = "aggregator.sock";
/// The agent's.
const AGENT: &str = "agent.sock";
/// Held for as long as an `up` uses the folder.
const LOCK: &str = "lock";
/// The kernel's limit for a socket's path (`sun_path`, with its closing zero).
const LONGEST_PATH_BYTES: usize = 107;

/// The folder where sockets usually are: `$XDG_RUNTIME_DIR/nodewhy`, or `/run/nodewhy`.
pub fn usual_folder(runtime_dir: Option<&Path>) -> PathBuf {
    match runtime_dir {
        Some(dir) if dir.is_absolute() => dir.join("nodewhy"),
        _ => PathBuf::from("/run/nodewhy"),
    }
}

/// The aggregator's socket in the usual folder.
pub fn usual_aggregator(runtime_dir: Option<&Path>) -> PathBuf {
    usual_folder(runtime_dir).join(AGGREGATOR)
}

/// A folder for the two sockets, ours until this is dropped.
#[derive(Debug)]
pub struct Sockets {
    folder: PathBuf,
    /// Why it is not the usual folder; `None` when it is, or when it was named.
    pub elsewhere: Option<String>,
    made_folder: bool,
    private: Option<TempDir>,
    lock: Option<Flock<File>>,
}

impl Sockets {
    /// The folder that was named, or the usual one if it can be had, or else a private one.
    ///
    /// # Errors
    /// The folder that was named is another's, or no folder can be made.
    pub fn claim(named: Option<&Path>, runtime_dir: Option<&Path>) -> anyhow::Result<Sockets> {
        if let Some(folder) = named {
            return Sockets::within(folder)
                .with_context(|| format!("cannot use --state-dir {}", folder.display()));
        }
        let usual = usual_folder(runtime_dir);
        match Sockets::within(&usual) {
            Ok(sockets) => Ok(sockets),
            Err(error) => Sockets::private(format!("{error:#}")),
        }
    }

    fn within(folder: &Path) -> anyhow::Result<Sockets> {
        let aggregator = folder.join(AGGREGATOR);
        if aggregator.as_os_str().len() > LONGEST_PATH_BYTES {
            bail!(
                "{} is longer than the {LONGEST_PATH_BYTES} bytes of a socket's path",
                aggregator.display()
            );
        }
        let made_folder = match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => bail!("cannot make {}: {error}", folder.display()),
        };
        refuse_strangers(folder)?;
        let lock = lock(folder)?;
        let sockets = Sockets {
            folder: folder.to_owned(),
            elsewhere: None,
            made_folder,
            private: None,
            lock: Some(lock),
        };
        for socket in [sockets.aggregator(), sockets.agent()] {
            // A service may have its socket here without our lock: whoever answers keeps it.
            if UnixStream::connect(&socket).is_ok() {
                sockets.leave_alone();
                bail!("another nodewhy answers at {}", socket.display());
            }
            remove(&socket).with_context(|| format!("cannot remove the stale {}", socket.display()))?;
        }
        Ok(sockets)
    }

    fn private(why: String) -> anyhow::Result<Sockets> {
        let folder = tempfile::Builder::new()
            .prefix("nodewhy-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a private folder for the sockets")?;
        Ok(Sockets {
            folder: folder.path().to_owned(),
            elsewhere: Some(why),
            made_folder: false,
            private: Some(folder),
            lock: None,
        })
    }

    /// The aggregator's socket.
    pub fn aggregator(&self) -> PathBuf {
        self.folder.join(AGGREGATOR)
    }

    /// The agent's socket.
    pub fn agent(&self) -> PathBuf {
        self.folder.join(AGENT)
    }

    /// Gives the folder back as it was: what is in it is another's.
    fn leave_alone(mut self) {
        if let Err(error) = remove(&self.folder.join(LOCK)) {
            tracing::warn!("cannot remove {}: {error}", self.folder.join(LOCK).display());
        }
        self.lock = None;
        self.private = None;
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // A private folder removes itself; one that was given back keeps what is in it.
        if self.lock.is_none() {
            return;
        }
        for file in [self.aggregator(), self.agent(), self.folder.join(LOCK)] {
            if let Err(error) = remove(&file) {
                tracing::warn!("cannot remove {}: {error}", file.display());
            }
        }
        if self.made_folder
            && let Err(error) = std::fs::remove_dir(&self.folder)
            && !matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound)
        {
            tracing::warn!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A folder that others may write to, or that is another user's, is no place for a socket that tells everything.
fn refuse_strangers(folder: &Path) -> anyhow::Result<()> {
    let about =
        std::fs::symlink_metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    if !about.is_dir() {
        bail!("{} is no folder", folder.display());
    }
    if about.uid() != nix::unistd::geteuid().as_raw() {
        bail!("{} belongs to another user (uid {})", folder.display(), about.uid());
    }
    if about.mode() & 0o022 != 0 {
        bail!(
            "{} may be written by others (mode {:03o}): chmod go-w it",
            folder.display(),
            about.mode() & 0o777
        );
    }
    Ok(())
}

/// Takes the folder's lock without waiting.
fn lock(folder: &Path) -> anyhow::Result<Flock<File>> {
    let path = folder.join(LOCK);
    // The one before removes its lock file while it holds the lock: a lock on a file that is gone is none. Each
    // round means that another `up` ended just now, so a few are plenty.
    for _ in 0..16 {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write to {}", path.display()))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!("another `nodewhy up` uses {}", folder.display());
        };
        let ours = lock.metadata().context("cannot look at the lock")?;
        if std::fs::metadata(&path).is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev())
        {
            return Ok(lock);
        }
    }
    bail!("cannot take the lock {}: it is removed again and again", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_usual_folder_is_taken_and_left_as_it_was() {
        let runtime = tempfile::tempdir().unwrap();
        let sockets = Sockets::claim(None, Some(runtime.path())).unwrap();
        assert_eq!(sockets.aggregator(), usual_aggregator(Some(runtime.path())));
        assert_eq!(sockets.elsewhere, None);
        let mode = std::fs::metadata(runtime.path().join("nodewhy")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(sockets);
        assert!(!usual_folder(Some(runtime.path())).exists());
    }

    #[test]
    fn a_second_one_gets_a_private_folder_and_says_why() {
        let runtime = tempfile::tempdir().unwrap();
        let first = Sockets::claim(None, Some(runtime.path())).unwrap();
        let second = Sockets::claim(None, Some(runtime.path())).unwrap();
        assert_ne!(first.aggregator(), second.aggregator());
        assert!(second.elsewhere.as_ref().unwrap().contains("another `nodewhy up` uses"), "{second:?}");
        let private = second.aggregator();
        drop(second);
        assert!(!private.parent().unwrap().exists());
        assert!(
            usual_folder(Some(runtime.path())).exists(),
            "the first one's folder is not the second's to remove"
        );
    }

    #[test]
    fn a_service_that_answers_keeps_its_socket() {
        let runtime = tempfile::tempdir().unwrap();
        let usual = usual_aggregator(Some(runtime.path()));
        std::fs::create_dir(usual.parent().unwrap()).unwrap();
        let _service = UnixListener::bind(&usual).unwrap();
        let sockets = Sockets::claim(None, Some(runtime.path())).unwrap();
        assert!(sockets.elsewhere.as_ref().unwrap().contains("another nodewhy answers"), "{sockets:?}");
        drop(sockets);
        assert!(usual.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let runtime = tempfile::tempdir().unwrap();
        let usual = usual_aggregator(Some(runtime.path()));
        std::fs::create_dir(usual.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&usual).unwrap());
        let sockets = Sockets::claim(None, Some(runtime.path())).unwrap();
        assert_eq!(sockets.elsewhere, None);
        assert!(!usual.exists());
    }

    #[test]
    fn a_folder_that_others_write_to_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        let open = runtime.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = format!("{:#}", Sockets::claim(Some(&open), None).unwrap_err());
        assert!(error.contains("may be written by others"), "{error}");
    }
}
