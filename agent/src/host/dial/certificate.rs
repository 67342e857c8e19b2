//! The certificate that a server shows: taken whatever it is, and read.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// What the server's certificate says.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Certificate {
    /// Valid from.
    pub not_before: Option<Timestamp>,
    /// Valid until.
    pub not_after: Option<Timestamp>,
    /// Its subject.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// DNS names and addresses; at most 32.
    pub names: Vec<String>,
}

/// Takes any certificate, and keeps the first one.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Option<Vec<u8>>>);

impl Seen {
    pub(super) fn certificate(&self) -> Option<Certificate> {
        certificate(self.0.lock().unwrap_or_else(PoisonError::into_inner).as_deref()?)
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    // Who signs is not asked: trust is the kubelet's affair, reachability is ours.
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// `None`: it is no certificate that can be read.
pub(super) fn certificate(der: &[u8]) -> Option<Certificate> {
    use x509_parser::extensions::GeneralName;
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let mut names = Vec::new();
    if let Ok(Some(san)) = certificate.subject_alternative_name() {
        for name in san.value.general_names.iter().take(32) {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    let four = <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from);
                    let sixteen = <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from);
                    names.extend(four.or(sixteen).map(|address| address.to_string()));
                }
                _ => {}
            }
        }
    }
    Some(Certificate {
        not_before: time(certificate.validity().not_before),
        not_after: time(certificate.validity().not_after),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        names,
    })
}
