//! Where keys are fetched from.

use std::fmt;

/// An `http` or `https` URL without user information and fragment (RFC 9110 section 4.2).
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    text: Box<str>,
    is_https: bool,
    /// In `text`: the authority, and within it the host, without brackets.
    authority: (usize, usize),
    host: (usize, usize),
    port: u16,
}

/// A text that is no URL to fetch from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("a URL begins with `https://` or `http://`")]
    Scheme,
    #[error("a URL has no blanks, controls or characters beyond ASCII")]
    Character,
    #[error("a URL to fetch from has no user name or password")]
    UserInfo,
    #[error("a URL to fetch from has no `#`")]
    Fragment,
    #[error("the host of the URL is malformed")]
    Host,
    #[error("the port of the URL is malformed")]
    Port,
}

impl HttpUrl {
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        let (is_https, start) = match (text.get(..8), text.get(..7)) {
            (Some(scheme), _) if scheme.eq_ignore_ascii_case("https://") => (true, 8),
            (_, Some(scheme)) if scheme.eq_ignore_ascii_case("http://") => (false, 7),
            _ => return Err(BadUrl::Scheme),
        };
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)) {
            return Err(BadUrl::Character);
        }
        if text.contains('#') {
            return Err(BadUrl::Fragment);
        }
        let rest = text.get(start..).unwrap_or_default();
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(BadUrl::UserInfo);
        }
        let (host, port, host_at) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(BadUrl::Host)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| BadUrl::Host)?;
                (host, port, start + 1)
            }
            None => {
                let end = authority.find(':').unwrap_or(authority.len());
                let (host, port) = authority.split_at_checked(end).unwrap_or((authority, ""));
                let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
                if host.is_empty() || !host.bytes().all(is_name) {
                    return Err(BadUrl::Host);
                }
                (host, port, start)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => {
                if is_https {
                    443
                } else {
                    80
                }
            }
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or(BadUrl::Port)?
            }
            _ => return Err(BadUrl::Port),
        };
        Ok(Self {
            text: text.into(),
            is_https,
            authority: (start, start + authority.len()),
            host: (host_at, host_at + host.len()),
            port,
        })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// A name or an address, without brackets.
    pub fn host(&self) -> &str {
        self.text.get(self.host.0..self.host.1).unwrap_or_default()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What `Host` says.
    pub fn authority(&self) -> &str {
        self.text.get(self.authority.0..self.authority.1).unwrap_or_default()
    }

    /// Path and query; never empty.
    pub fn target(&self) -> String {
        let rest = self.text.get(self.authority.1..).unwrap_or_default();
        if rest.starts_with('/') { rest.into() } else { ["/", rest].concat() }
    }

    /// Where an issuer of this URL publishes its metadata (OpenID Connect Discovery 1.0 section 4.1).
    pub fn discovery(&self) -> Result<Self, BadUrl> {
        Self::parse(&[self.text.trim_end_matches('/'), "/.well-known/openid-configuration"].concat())
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, host, port, authority, target) in [
            ("https://id.example/jwks?x=1", "id.example", 443, "id.example", "/jwks?x=1"),
            ("HTTP://id.example:8080", "id.example", 8080, "id.example:8080", "/"),
            ("http://[::1]:81/a", "::1", 81, "[::1]:81", "/a"),
            ("http://127.0.0.1?x", "127.0.0.1", 80, "127.0.0.1", "/?x"),
            ("https://[::1]", "::1", 443, "[::1]", "/"),
        ] {
            let url = HttpUrl::parse(text).unwrap();
            assert_eq!((url.host(), url.port(), url.authority()), (host, port, authority), "{text}");
            assert_eq!(url.target(), target, "{text}");
            assert_eq!(url.is_https(), text.starts_with("https"));
        }
        let discovery = |text| HttpUrl::parse(text).unwrap().discovery().unwrap().to_string();
        for issuer in ["https://id.example/realms/a", "https://id.example/realms/a/"] {
            assert_eq!(discovery(issuer), "https://id.example/realms/a/.well-known/openid-configuration");
        }
    }

    #[test]
    fn what_is_no_url_to_fetch_from_is_refused() {
        for (text, error) in [
            ("", BadUrl::Scheme),
            ("ftp://a", BadUrl::Scheme),
            ("//a/b", BadUrl::Scheme),
            ("https:/a", BadUrl::Scheme),
            ("file:///etc/passwd", BadUrl::Scheme),
            ("http://a/b c", BadUrl::Character),
            ("http://a/\r\nX: y", BadUrl::Character),
            ("http://\u{e4}", BadUrl::Character),
            ("http://a\\@b", BadUrl::Character),
            ("http://a:b@c/", BadUrl::UserInfo),
            ("http://a#b", BadUrl::Fragment),
            ("http://", BadUrl::Host),
            ("http:///a", BadUrl::Host),
            ("http://:80", BadUrl::Host),
            ("http://[::1", BadUrl::Host),
            ("http://[zz]/", BadUrl::Host),
            ("http://a%62/", BadUrl::Host),
            ("http://a:b", BadUrl::Port),
            ("http://a:0", BadUrl::Port),
            ("http://a:65536", BadUrl::Port),
            ("http://a:+1", BadUrl::Port),
            ("http://[::1]x", BadUrl::Port),
        ] {
            assert_eq!(HttpUrl::parse(text), Err(error), "{text}");
        }
    }
}
