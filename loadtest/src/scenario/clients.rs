//! From the file's `clients` to a population and its tokens.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::Ipv4Net;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::Value;

use super::file::{Clients, Distribution, Jwt};
use super::text::{Place, Reader, Text};
use super::{Target, variables};
use crate::population::{CLIENTS_MAX, Population, Zipf};
use crate::template;
use crate::token::{Claim, Minter, unix_time_s};
use crate::units;

const TTL_DEFAULT: Duration = Duration::from_secs(3600);

pub(crate) fn population(reader: &mut Reader, clients: &Clients, target: Option<&Target>) -> Option<Population> {
    let count = clients.count.as_ref().map_or(Some(1), |text| reader.number(text, 1, CLIENTS_MAX));
    let zipf = match &clients.distribution {
        None | Some(Distribution::Uniform) => None,
        Some(Distribution::Zipf(text)) => reader.value(text, "an exponent above 0 and up to 10", |text| {
            let exponent = text.parse().map_err(|_| None)?;
            Zipf::new(count.unwrap_or(1), exponent).ok_or(None)
        }),
    };
    let addresses = clients.addresses.as_ref().and_then(|text| {
        let range = reader.value(text, "a part of 127.0.0.0/8 or `off`", |text| match text {
            "off" => Ok(None),
            range => match range.parse::<Ipv4Net>() {
                Ok(range) if range.network().is_loopback() && range.prefix_len() >= 8 => Ok(Some(range.trunc())),
                _ => Err(Some("write a network: `127.1.0.0/16`".into())),
            },
        })??;
        let host = target.map(|target| target.host.parse::<IpAddr>());
        if let Some(Ok(host)) = host
            && !(host.is_ipv4() && host.is_loopback())
        {
            let hint = "leave `addresses` out, or load a target on 127.0.0.1";
            reader.problem(text.place, format!("{host} cannot be reached from 127.0.0.0/8"), Some(hint));
        }
        Some(range)
    });
    Some(Population::new(count?, zipf, addresses))
}

/// The maker of tokens, tried with one token.
pub(crate) fn minter(reader: &mut Reader, jwt: &Jwt, seed: u64) -> Option<Minter> {
    let algorithm = reader.value(&jwt.algorithm, "`HS256`, `RS256` or `ES256`", |text| match text {
        "HS256" => Ok(Algorithm::HS256),
        "RS256" => Ok(Algorithm::RS256),
        "ES256" => Ok(Algorithm::ES256),
        _ => Err(None),
    });
    let place = jwt.secret.as_ref().or(jwt.key.as_ref()).unwrap_or(&jwt.algorithm).place;
    let key = algorithm.and_then(|algorithm| key(reader, jwt, algorithm));
    let mut text = |text: &Option<Text>| match text {
        None => Some(None),
        Some(text) => reader.plain(text).map(Some),
    };
    let (key_id, issuer, audience) = (text(&jwt.key_id), text(&jwt.issuer), text(&jwt.audience));
    let subject = Text { written: "client-{client}".into(), place: Place::Whole };
    let subject = reader.template(jwt.subject.as_ref().unwrap_or(&subject), template::Place::Body);
    let ttl = jwt.ttl.as_ref().map_or(Some(TTL_DEFAULT), |text| {
        reader.value(text, "a duration from 10s to 24h", |text| match units::duration(text)? {
            ttl if (10..=24 * 3600).contains(&ttl.as_secs()) => Ok(ttl),
            _ => Err(None),
        })
    });
    let claims = jwt.claims.as_ref().map_or(Some(Vec::new()), |claims| {
        let place = claims.referenced.into();
        for name in ["sub", "iss", "aud", "iat", "exp"].into_iter().filter(|name| claims.value.contains_key(*name)) {
            let hint = "`subject`, `issuer`, `audience` and `ttl` set these";
            reader.problem(place, format!("`{name}` among the `claims`"), Some(hint));
        }
        let claims = claims.value.iter().map(|(name, value)| Some((name.clone(), claim(reader, place, value)?)));
        claims.collect()
    });
    let (key_id, issuer, audience) = (key_id?, issuer?, audience?);
    let (algorithm, key, subject, claims, ttl) = (algorithm?, key?, subject?, claims?, ttl?);
    let minter = Minter { algorithm, key, key_id, issuer, audience, subject, claims, ttl, seed };
    match minter.mint(0, unix_time_s()) {
        Ok(_) => Some(minter),
        Err(error) => {
            reader.problem(place, format!("the key cannot sign {algorithm:?}: {error}"), None);
            None
        }
    }
}

fn key(reader: &mut Reader, jwt: &Jwt, algorithm: Algorithm) -> Option<EncodingKey> {
    let (needed, given, other) = match algorithm {
        Algorithm::HS256 => ("secret", &jwt.secret, &jwt.key),
        _ => ("key", &jwt.key, &jwt.secret),
    };
    if let Some(other) = other {
        reader.problem(other.place, format!("{algorithm:?} signs with a `{needed}`"), None);
    }
    let Some(text) = given else {
        let hint = format!("`{needed}: ${{env:NAME}}` or `{needed}: ${{file:PATH}}`");
        reader.problem(jwt.algorithm.place, format!("{algorithm:?} needs a `{needed}`"), Some(&hint));
        return None;
    };
    if !variables::is_reference(&text.written) {
        let hint = format!("write `{needed}: ${{env:NAME}}` or `{needed}: ${{file:PATH}}`");
        reader.problem(text.place, format!("a `{needed}` does not stand in the file"), Some(&hint));
        return None;
    }
    let secret = reader.plain(text)?;
    let key = match algorithm {
        Algorithm::HS256 if secret.is_empty() => {
            reader.problem(text.place, "the secret is empty", None);
            return None;
        }
        Algorithm::HS256 => Ok(EncodingKey::from_secret(secret.as_bytes())),
        Algorithm::RS256 => EncodingKey::from_rsa_pem(secret.as_bytes()),
        _ => EncodingKey::from_ec_pem(secret.as_bytes()),
    };
    key.map_err(|_| {
        let form = if algorithm == Algorithm::RS256 { "an RSA key" } else { "a P-256 key in PKCS#8" };
        reader.problem(text.place, format!("`key` is not {form} in PEM"), None);
    })
    .ok()
}

fn claim(reader: &mut Reader, place: Place, value: &Value) -> Option<Claim> {
    Some(match value {
        Value::String(written) => {
            let template = reader.template(&Text { written: written.clone(), place }, template::Place::Body)?;
            Claim::Text(template)
        }
        Value::Array(values) => {
            Claim::List(values.iter().map(|value| claim(reader, place, value)).collect::<Option<_>>()?)
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| Some((name.clone(), claim(reader, place, value)?)));
            Claim::Map(fields.collect::<Option<_>>()?)
        }
        fixed => Claim::Fixed(fixed.clone()),
    })
}
