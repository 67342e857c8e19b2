//! Words of a log line that may be a secret are not told on: a program that prints a request prints its token too.

/// What stands before one, in any case: with a blank (`Bearer abc`), or as a name with its value (`token=abc`,
/// `"password":"abc"`).
const SCHEMES: &[&str] = &["bearer ", "basic "];
const NAMES: &[&str] =
    &["token", "password", "passwd", "secret", "api_key", "apikey", "access_key", "authorization"];
/// Ends a secret: quotes, blanks, what separates pairs and parameters.
const ENDS: &[char] = &[' ', '\t', '"', '\'', '\\', '&', ',', ';', '}', ')'];

/// The text without them.
pub(super) fn hidden(text: &str) -> String {
    // ASCII alone is changed: places stay the same.
    let lower = text.to_ascii_lowercase();
    let mut told = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(rest) = lower.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(lead) = lead(rest) else {
            let letter = text.get(at..).and_then(|rest| rest.chars().next());
            told.extend(letter);
            at += letter.map_or(1, char::len_utf8);
            continue;
        };
        let secret = rest.get(lead..).unwrap_or_default();
        told.push_str(text.get(at..at + lead).unwrap_or_default());
        told.push('…');
        at += lead + secret.find(ENDS).unwrap_or(secret.len());
    }
    told
}

/// The length of what leads to a secret that begins here.
fn lead(text: &str) -> Option<usize> {
    let has_more =
        |lead: &usize| text.get(*lead..).is_some_and(|rest| !rest.starts_with(ENDS) && !rest.is_empty());
    let scheme = SCHEMES.iter().find(|scheme| text.starts_with(**scheme)).map(|scheme| scheme.len());
    scheme.or_else(|| named(text)).or_else(|| of_address(text)).filter(has_more)
}

fn named(text: &str) -> Option<usize> {
    let name = NAMES.iter().find(|name| text.starts_with(**name))?;
    let quotes = ['\\', '"', '\''];
    let rest = text.get(name.len()..)?.trim_start_matches(quotes);
    let value = rest.strip_prefix(['=', ':'])?.trim_start_matches(quotes);
    // `Authorization: Bearer …` is the scheme's; `token: expired` is a sentence.
    (!value.starts_with(SCHEMES[0]) && !value.starts_with(SCHEMES[1])).then(|| text.len() - value.len())
}

/// `://user:password@host`: up to the name's end.
fn of_address(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("://")?;
    let authority = rest.split(['/', ' ', '"']).next()?;
    let (user, _) = authority.rsplit_once('@')?.0.split_once(':')?;
    Some("://".len() + user.len() + ":".len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::hidden;

    #[test]
    fn what_follows_a_secrets_name_is_not_told() {
        for (line, told) in [
            // The form in which Go's net/http/httputil prints a request, and curl its own.
            ("> Authorization: Bearer eyJhbGciOi.J9.x end", "> Authorization: Bearer … end"),
            (
                r#"Get \"https://api/v1?token=abc&limit=5\": EOF"#,
                r#"Get \"https://api/v1?token=…&limit=5\": EOF"#,
            ),
            (r#"{"password":"p4ss","user":"u"}"#, r#"{"password":"…","user":"u"}"#),
            ("proxy https://me:s3cret@proxy.lab:3128 refused", "proxy https://me:… refused"),
        ] {
            assert_eq!(hidden(line), told);
        }
        for harmless in ["the token: expired", "couldn't get secret kube-system/x", "täglich um 8 Uhr"] {
            assert_eq!(hidden(harmless), harmless);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_no_secret_is_left(text in "\\PC{0,40}", secret in "[a-z0-9]{12}") {
            hidden(&text);
            let told = hidden(&format!("{text} token={secret}"));
            prop_assert!(!told.contains(&secret), "{}", told);
        }
    }
}
