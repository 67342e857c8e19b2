use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use x509_parser::pem::Pem;

use super::places::Owner;

/// A certificate's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// Its path.
    pub path: String,
    /// Whose it is.
    pub owner: Owner,
    /// When it ends: the first certificate's, of a bundle of authorities the last one's to end. None: it was not opened,
    /// since the file holds a private key, or could not be understood.
    pub not_after: Option<Timestamp>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untold: Option<String>,
}

/// When the certificates of a PEM text end.
pub(super) fn not_after(path: &Path, text: &[u8]) -> Result<Timestamp, String> {
    let mut ends = Vec::new();
    for block in Pem::iter_from_buffer(text) {
        let block = block.map_err(|error| format!("not PEM: {error}"))?;
        // A key that stands in such a file all the same is passed over.
        if block.label != "CERTIFICATE" {
            continue;
        }
        let certificate = block.parse_x509().map_err(|error| format!("not a certificate: {error}"))?;
        let seconds = certificate.validity().not_after.timestamp();
        ends.push(Timestamp::from_second(seconds).map_err(|error| error.to_string())?);
    }
    let is_bundle = path.file_name().is_some_and(|name| name.to_string_lossy().contains("ca"));
    let end = if is_bundle { ends.iter().max() } else { ends.first() };
    end.copied().ok_or_else(|| "there is no certificate in it".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(year: i32) -> String {
        let mut parameters = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 3, 4);
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn the_first_counts_and_of_authorities_the_last_to_end() {
        let both = format!("{}{}", made(2027), made(2030));
        let end = |path, text: &str| not_after(Path::new(path), text.as_bytes()).map(|end| end.to_string());
        assert_eq!(end("/pki/kubelet.crt", &both).unwrap(), "2027-03-04T00:00:00Z");
        assert_eq!(end("/pki/ca.crt", &both).unwrap(), "2030-03-04T00:00:00Z");
        assert!(end("/pki/a.crt", "").unwrap_err().contains("no certificate"));
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert!(end("/pki/a.crt", &key).unwrap_err().contains("no certificate"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_cut_or_flipped_file_is_an_error_or_a_time(cut in 0usize..800, at in 0usize..500, byte: u8) {
            let whole = made(2027).into_bytes();
            let cut_off = not_after(Path::new("a.crt"), &whole[..cut.min(whole.len() - 30)]);
            prop_assert!(cut_off.is_err());
            let mut flipped = whole;
            if let Some(place) = flipped.get_mut(at) {
                *place = byte;
            }
            let _end = not_after(Path::new("a.crt"), &flipped);
        }
    }
}
