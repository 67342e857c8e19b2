//! Binds the Unix socket: only its owner may connect, at no moment anybody else.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Why the socket can't be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("another program answers on {}: stop it, or name another socket", .0.display())]
    Taken(PathBuf),
    #[error("{} is there and is no socket: name another path, or remove it", .0.display())]
    NotASocket(PathBuf),
    #[error("{what} {}: {error}", path.display())]
    Io { what: &'static str, path: PathBuf, error: std::io::Error },
}

/// A bound socket; its file goes when this goes, if it is still ours.
pub(crate) struct BoundSocket {
    path: PathBuf,
    inode: u64,
}

/// Binds `path` with mode 0600.
///
/// # Errors
/// Somebody answers there, something else is there, or the folder can't be written.
pub(crate) async fn bind(path: &Path) -> Result<(UnixListener, BoundSocket), SocketError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| SocketError::Io { what, path, error }
    };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                tracing::info!(socket = %path.display(), "replacing a socket on which nobody answers");
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(_) => return Err(SocketError::Taken(path.to_owned())),
            Err(error) => return Err(io("asking whether anybody answers on", path)(error)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io("looking at", path)(error)),
    }
    // Bound in a folder of our own first, so that nobody can connect before the mode is set.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let private = private_folder(folder)
        .map_err(io("making room for the socket (is the folder there, and writable?) in", folder))?;
    let bound = bind_in(&private, path);
    if let Err(error) = std::fs::remove_dir_all(&private) {
        tracing::warn!(folder = %private.display(), %error, "a folder could not be removed");
    }
    bound
}

/// A new folder that only we can enter. One of a killed run may be left: in a container every run has the same id.
fn private_folder(folder: &Path) -> std::io::Result<PathBuf> {
    let mut refused = None;
    for number in 0..100 {
        let private = folder.join(format!(".nw{}-{number}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&private) {
            Ok(()) => return Ok(private),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| ErrorKind::AlreadyExists.into()))
}

fn bind_in(private: &Path, path: &Path) -> Result<(UnixListener, BoundSocket), SocketError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| SocketError::Io { what, path, error }
    };
    let first = private.join("s");
    let listener = UnixListener::bind(&first).map_err(io("binding", &first))?;
    std::fs::set_permissions(&first, std::fs::Permissions::from_mode(0o600))
        .map_err(io("setting the mode of", &first))?;
    let inode = std::fs::symlink_metadata(&first).map_err(io("looking at", &first))?.ino();
    std::fs::rename(&first, path).map_err(io("putting the socket at", path))?;
    Ok((listener, BoundSocket { path: path.to_owned(), inode }))
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect_and_a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        std::fs::create_dir(folder.path().join(format!(".nw{}-0", std::process::id()))).unwrap();
        let (listener, bound) = bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind(&path).await, Err(SocketError::Taken(_))));
        drop(listener);
        std::mem::forget(bound); // As after kill -9: the file stays.
        let (_listener, bound) = bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(bound);
        folder.close().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(bind(&path).await, Err(SocketError::NotASocket(_))));
        let error = bind(&folder.path().join("no/such/folder/s")).await.err().unwrap().to_string();
        assert!(error.contains("no/such/folder"), "{error}");
    }
}
