//! `WWW-Authenticate` (RFC 9110 §11.6.1): what a registry demands.

/// What a registry demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user's name and password with each request.
    Basic,
    /// A token of this server.
    Bearer {
        /// Where tokens come from.
        realm: String,
        /// Whom the token is for.
        service: Option<String>,
        /// What it is to allow.
        scope: Option<String>,
    },
}

/// Longest header that is read: a registry's are some hundred bytes.
const MAX_HEADER: usize = 8192;

/// The first challenge of a header that can be answered; a bearer's before a basic one.
pub fn parse(header: &str) -> Option<Challenge> {
    if header.len() > MAX_HEADER {
        return None;
    }
    let mut found = None;
    for (scheme, parameters) in challenges(header) {
        let get = |name: &str| {
            let of_name = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
            parameters
                .iter()
                .find(of_name)
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = get("realm") {
                return Some(Challenge::Bearer {
                    realm,
                    service: get("service"),
                    scope: get("scope"),
                });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

type Parameters = Vec<(String, String)>;

/// Schemes with their parameters. A word without `=` begins a new challenge.
fn challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut all: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let length = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if length == 0 {
            return all;
        }
        let (word, behind) = rest.split_at(length);
        match behind.trim_start_matches([' ', '\t']).strip_prefix('=') {
            None => {
                all.push((word.to_owned(), Vec::new()));
                rest = behind;
            }
            Some(behind) => {
                let (value, behind) = value(behind.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = all.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = behind;
            }
        }
    }
}

/// A quoted string or a word, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        return (word.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_challenges() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                   scope=\"repository:library/node:pull,push\"";
        assert_eq!(
            parse(hub),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:library/node:pull,push".into()),
            })
        );
        assert_eq!(
            parse("Basic realm=\"Registry Realm\""),
            Some(Challenge::Basic)
        );
        assert_eq!(parse("basic"), Some(Challenge::Basic));
        let bearer = |realm: &str| Challenge::Bearer {
            realm: realm.into(),
            service: None,
            scope: None,
        };
        for header in [
            "Basic realm=\"a, b=c\", Bearer realm=\"https://x/t\"",
            "bearer  realm = \"https://x/t\" , error=\"insufficient_scope\"",
            "BEARER realm=https://x/t",
            "Negotiate, Bearer realm=\"https:\\//x/t\"",
        ] {
            assert_eq!(parse(header), Some(bearer("https://x/t")), "{header}");
        }
        for header in [
            "",
            "Bearer",
            "Negotiate abc",
            "realm=\"x\"",
            "=",
            "\"",
            "Bearer service=x",
        ] {
            assert_eq!(parse(header), None, "{header}");
        }
        assert_eq!(
            parse("Bearer realm=\"https://x/t"),
            Some(bearer("https://x/t"))
        );
        assert_eq!(parse(&format!("Basic {}", "a".repeat(9000))), None);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(header in "\\PC{0,200}", words in "[ ,=\"\\\\a-c]{0,60}") {
            drop(parse(&header));
            drop(parse(&format!("Bearer {words}")));
        }
    }
}
