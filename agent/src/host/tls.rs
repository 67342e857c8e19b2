//! Whom a TLS client of the agent believes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Whom to believe.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

/// Why nobody can be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The file.
    #[error("cannot use {path} for TLS: {error}")]
    File {
        /// The agent's own path.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The library.
    #[error("cannot set TLS up: {0}")]
    Setup(String),
}

impl Trust {
    /// Whoever has a certificate of one of these authorities (a PEM file of the agent's own), for the address that is
    /// dialled.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn authorities(path: &Path) -> Result<Trust, TrustError> {
        let unusable = |error: String| TrustError::File { path: path.to_owned(), error };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unusable("it holds no certificate".to_owned()));
        }
        let config = builder()?.with_root_certificates(roots).with_no_client_auth();
        Ok(Trust(Arc::new(config)))
    }

    /// Anybody. For a peer that is known by other means, or that is sent nothing secret: the kubelet's certificate is
    /// its own signature in most clusters.
    ///
    /// # Errors
    /// The library's.
    pub fn anybody() -> Result<Trust, TrustError> {
        let verifier = Arc::new(Anybody(Arc::new(ring::default_provider())));
        let config = builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Ok(Trust(Arc::new(config)))
    }

    pub(super) fn config(&self) -> &Arc<ClientConfig> {
        &self.0
    }
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TrustError> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Setup(error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let unusable = |error: rustls_pki_types::pem::Error| TrustError::File {
        path: path.to_owned(),
        error: error.to_string(),
    };
    CertificateDer::pem_file_iter(path).map_err(unusable)?.collect::<Result<_, _>>().map_err(unusable)
}

/// Believes every certificate; that the peer has its key is checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
