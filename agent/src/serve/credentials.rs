//! Token, certificate, key and client CA: read from their files, and read again when these change.
//!
//! Kubernetes changes a mounted Secret by swapping the link `..data`: every file changes at once and no file is written
//! to. So what the path leads to now is compared with what was read, every few seconds.

#![expect(clippy::disallowed_methods, reason = "these files are the agent's own, not the node's")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

/// What a path leads to: device, inode, size, time of change; `None`: nothing.
type FileState = Option<(u64, u64, u64, i64, i64)>;

/// The files are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A shorter token is no secret.
const SHORTEST_TOKEN: usize = 16;
/// No certificate chain and no list of authorities is larger.
const LARGEST_FILE_BYTES: u64 = 1024 * 1024;

/// Where they stand; `None`: not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The bearer token.
    pub token: Option<PathBuf>,
    /// The server's certificate chain, PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// The authorities of the clients' certificates, PEM. With it every client must show one.
    pub client_ca: Option<PathBuf>,
}

/// Why they cannot be used. Never tells what is in a file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {error}")]
    Unreadable {
        /// What it is.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's word.
        error: std::io::Error,
    },
    /// A secret that others can read.
    #[error(
        "{what} {path} has mode {mode:o}: others can read it; chmod 600 it, or set `defaultMode: 0400` where a Secret is \
         mounted"
    )]
    Exposed {
        /// What it is.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It makes no sense.
    #[error("{0}")]
    Senseless(String),
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials {
    pub(super) token: Option<Arc<str>>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    client_ca: Option<Arc<[u8]>>,
    /// Counts the changes of who is let in: of the token and of the clients' authorities.
    pub(super) trust: u64,
}

impl CredentialFiles {
    fn named(&self) -> impl Iterator<Item = &Path> {
        [&self.token, &self.certificate, &self.key, &self.client_ca]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }

    /// Whether all of it can be read and used.
    ///
    /// # Errors
    /// Which file cannot be, and why.
    pub fn check(&self) -> Result<(), CredentialsError> {
        self.load().map(drop)
    }

    pub(super) fn load(&self) -> Result<Credentials, CredentialsError> {
        let token = self.token.as_deref().map(token).transpose()?;
        let client_ca = self.client_ca.as_deref().map(|path| read(path, "the clients' authorities"));
        let client_ca: Option<Arc<[u8]>> = client_ca.transpose()?.map(Arc::from);
        let tls = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let roots = self.client_ca.as_deref().zip(client_ca.as_deref());
                Some(Arc::new(server(certificate, key, roots)?))
            }
            (None, None) if client_ca.is_none() => None,
            (None, None) => {
                let what = "tls_client_ca_file needs tls_cert_file and tls_key_file: without TLS no client shows a \
                            certificate";
                return Err(CredentialsError::Senseless(what.to_owned()));
            }
            _ => {
                let what = "tls_cert_file and tls_key_file belong together: name both, or neither";
                return Err(CredentialsError::Senseless(what.to_owned()));
            }
        };
        Ok(Credentials { token, tls, client_ca, trust: 0 })
    }

    /// What the paths lead to now.
    fn state(&self) -> Vec<FileState> {
        self.named()
            .map(|path| {
                let there = std::fs::metadata(path).ok()?;
                Some((there.dev(), there.ino(), there.size(), there.mtime(), there.mtime_nsec()))
            })
            .collect()
    }
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, CredentialsError> {
    let unreadable = |error| CredentialsError::Unreadable { what, path: path.to_owned(), error };
    let there = std::fs::metadata(path).map_err(unreadable)?;
    if there.len() > LARGEST_FILE_BYTES {
        let shown = path.display();
        let what = format!("{what} {shown} has {} bytes: that is no such file", there.len());
        return Err(CredentialsError::Senseless(what));
    }
    std::fs::read(path).map_err(unreadable)
}

fn read_secret(path: &Path, what: &'static str) -> Result<Vec<u8>, CredentialsError> {
    let unreadable = |error| CredentialsError::Unreadable { what, path: path.to_owned(), error };
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Exposed { what, path: path.to_owned(), mode });
    }
    read(path, what)
}

fn token(path: &Path) -> Result<Arc<str>, CredentialsError> {
    let bytes = read_secret(path, "the token")?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.is_empty() && !bytes.is_empty() {
        let what =
            format!("the token in {} is not one word of ASCII: no header can carry it", path.display());
        return Err(CredentialsError::Senseless(what));
    }
    if text.len() < SHORTEST_TOKEN {
        let (path, length) = (path.display(), text.len());
        let what =
            format!("the token in {path} has {length} characters; a secret needs {SHORTEST_TOKEN} at least");
        return Err(CredentialsError::Senseless(what));
    }
    Ok(Arc::from(text))
}

fn server(
    certificate: &Path,
    key: &Path,
    client_ca: Option<(&Path, &[u8])>,
) -> Result<ServerConfig, CredentialsError> {
    let senseless = |what: &str, path: &Path, why: &dyn std::fmt::Display| {
        CredentialsError::Senseless(format!("cannot use {what} {}: {why}", path.display()))
    };
    let chain = certificates(&read(certificate, "the certificate")?)
        .map_err(|why| senseless("the certificate", certificate, &why))?;
    let secret = PrivateKeyDer::from_pem_slice(&read_secret(key, "the private key")?)
        .map_err(|why| senseless("the private key", key, &why))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|why| senseless("the certificate", certificate, &why))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some((path, pem)) => {
            let why = |why: &dyn std::fmt::Display| senseless("the clients' authorities", path, why);
            let mut roots = RootCertStore::empty();
            for authority in certificates(pem).map_err(|error| why(&error))? {
                roots.add(authority).map_err(|error| why(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| why(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, secret)
        .map_err(|why| senseless("the certificate", certificate, &why))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in it (PEM: BEGIN CERTIFICATE)".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// The credentials as they are now.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) current: watch::Receiver<Arc<Credentials>>,
    /// Dropped, it ends the thread.
    _stop: Option<Sender<()>>,
}

/// Reads them, and again whenever their files change. What cannot be read later leaves the old ones in use.
///
/// # Errors
/// They cannot be used now; the kernel gives no thread.
pub(super) fn follow(files: &CredentialFiles) -> Result<Followed, CredentialsError> {
    let state = files.state();
    let (publish, current) = watch::channel(Arc::new(files.load()?));
    if state.is_empty() {
        return Ok(Followed { current, _stop: None });
    }
    let (stop, stopped) = channel::<()>();
    let files = files.clone();
    // A file on a disk that hangs holds up this thread alone.
    let thread = std::thread::Builder::new().name("credentials".to_owned()).stack_size(256 * 1024);
    let spawned = thread.spawn(move || {
        let (mut state, mut told) = (state, None);
        while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            look(&files, &mut state, &mut told, &publish);
        }
    });
    spawned.map_err(|error| {
        CredentialsError::Senseless(format!("no thread to follow the TLS files: {error}"))
    })?;
    Ok(Followed { current, _stop: Some(stop) })
}

fn look(
    files: &CredentialFiles,
    state: &mut Vec<FileState>,
    told: &mut Option<String>,
    publish: &watch::Sender<Arc<Credentials>>,
) {
    let now = files.state();
    if now == *state {
        return;
    }
    match files.load() {
        Ok(mut new) => {
            let old = publish.borrow().clone();
            let same_people = new.token == old.token && new.client_ca == old.client_ca;
            new.trust = old.trust + u64::from(!same_people);
            publish.send_replace(Arc::new(new));
            (*state, *told) = (now, None);
            tracing::info!("token and TLS files changed: the new ones are in use");
        }
        // Half-written or half-swapped: tried again at the next look, told once.
        Err(error) => {
            let text = error.to_string();
            if told.as_ref() != Some(&text) {
                tracing::warn!(%error, "token and TLS files changed and cannot be used: the old ones stay in use");
                *told = Some(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let files = CredentialFiles { token: Some(path.clone()), ..CredentialFiles::default() };
        let refused = || files.check().unwrap_err().to_string();
        assert!(refused().starts_with("cannot read the token"));
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(files.load().unwrap().token.as_deref(), Some("0123456789abcdef"));
        std::fs::write(&path, "short").unwrap();
        assert!(refused().contains("16 at least"));
        std::fs::write(&path, "").unwrap();
        assert!(refused().contains("0 characters"));
        for no_word in [b"0123456789abcdef ghi".as_slice(), b"0123456789abcdef\xff"] {
            std::fs::write(&path, no_word).unwrap();
            assert!(refused().contains("no header can carry it"));
        }
    }

    #[test]
    fn what_belongs_together_is_named_together_and_no_error_shows_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            Some(path)
        };
        let certificate = write("tls.crt", &signed.cert.pem());
        let key = write("tls.key", &signed.signing_key.serialize_pem());
        let whole = CredentialFiles { certificate, key, ..CredentialFiles::default() };
        whole.check().unwrap();
        let refused = |files: CredentialFiles| files.check().unwrap_err().to_string();
        assert!(refused(CredentialFiles { key: None, ..whole.clone() }).contains("belong together"));
        let alone = CredentialFiles { client_ca: whole.certificate.clone(), ..CredentialFiles::default() };
        assert!(refused(alone).contains("without TLS"));
        let mixed = write("other.key", &other.signing_key.serialize_pem());
        let error = refused(CredentialFiles { key: mixed, ..whole.clone() });
        assert!(error.starts_with("cannot use the certificate"), "{error}");
        let empty = CredentialFiles { client_ca: write("ca.crt", "nothing"), ..whole.clone() };
        assert!(refused(empty).contains("no certificate in it"));
        let secret = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END PRIVATE KEY-----\n";
        let error = refused(CredentialFiles { key: write("bad.key", secret), ..whole });
        assert!(!error.contains("c2Vj") && !error.contains("secret"), "{error}");
    }
}
