//! The admin API of the registry: instances of services register, give signs of life and take their leave. All gateways that
//! share a Redis answer alike.

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use ringway_config::snapshot::{DiscoverySource, RegistryPlace};
use ringway_config::{Hub, INSTANCE_BYTES_MAX, Instance, is_redis_key};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::admin::{json, text};
use crate::health::refusal;
use crate::redis::{Entry, Registered, Registry, RegistryError};

const USAGE: &str = "\
GET /registry and /registry/SERVICE; PUT and DELETE /registry/SERVICE/INSTANCE; POST /registry/SERVICE/INSTANCE/heartbeat
";

type Answer = Response<Full<Bytes>>;

#[derive(Debug, Serialize)]
struct Service {
    service: String,
    instances: Vec<Map<String, Value>>,
}

/// What a path below `/registry` names.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    All,
    Service(String),
    Instance(String, String),
    Heartbeat(String, String),
}

impl Named {
    fn parse(path: &str) -> Option<Self> {
        let decoded = |part: &str| percent_decode_str(part).decode_utf8().map(|part| part.into_owned()).ok();
        let parts = path.split('/').skip(2).map(decoded).collect::<Option<Vec<_>>>()?;
        let mut parts = parts.into_iter();
        let named = match [(); 3].map(|()| parts.next()) {
            [None, None, None] => Self::All,
            [Some(service), None, None] => Self::Service(service),
            [Some(service), Some(instance), None] => Self::Instance(service, instance),
            [Some(service), Some(instance), Some(what)] if what == "heartbeat" => Self::Heartbeat(service, instance),
            _ => return None,
        };
        parts.next().is_none().then_some(named)
    }

    fn methods(&self) -> &'static str {
        match self {
            Self::All | Self::Service(_) => "GET, HEAD",
            Self::Instance(..) => "PUT, DELETE",
            Self::Heartbeat(..) => "POST",
        }
    }
}

/// Whether a path is the registry's.
pub(crate) fn has(path: &str) -> bool {
    path == "/registry" || path.starts_with("/registry/")
}

pub(crate) async fn answer<B>(hub: &Hub, registry: &Registry, request: Request<B>) -> Answer
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let Some(named) = Named::parse(head.uri.path()) else { return text(StatusCode::NOT_FOUND, USAGE.into()) };
    let methods = named.methods();
    if !methods.split(", ").any(|method| head.method.as_str() == method) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, USAGE.into());
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
        return answer;
    }
    if !matches!(named, Named::All | Named::Service(_))
        && let Some(refusal) = refusal(hub, &head.headers)
    {
        return text(StatusCode::FORBIDDEN, refusal.into());
    }
    let done = match named {
        Named::All => list(registry, places(hub)).await,
        Named::Service(service) => match place(hub, &service) {
            None => return missing(),
            Some(place) => list(registry, vec![(service, place)]).await,
        },
        Named::Instance(service, instance) | Named::Heartbeat(service, instance) => {
            let place = match place(hub, &service) {
                None => return missing(),
                Some(_) if !is_redis_key(&instance) => {
                    let hint = "the name of an instance has from 1 to 128 letters, digits and `-._:`\n";
                    return text(StatusCode::BAD_REQUEST, hint.into());
                }
                Some(place) => place,
            };
            match head.method {
                Method::PUT => register(registry, &service, &place, &instance, body).await,
                Method::DELETE => leave(registry, &service, &place, &instance).await,
                _ => beat(registry, &place, &instance).await,
            }
        }
    };
    done.unwrap_or_else(|error| failed(&error))
}

/// Of the services whose instances register themselves, each name once.
fn places(hub: &Hub) -> Vec<(String, RegistryPlace)> {
    let published = hub.published();
    let sources = published.snapshot.services.iter().filter_map(|service| Some(&service.discovery.as_ref()?.source));
    let mut places: Vec<_> = sources
        .filter_map(|source| match source {
            DiscoverySource::Registry { name, place } => Some((name.to_string(), place.clone())),
            _ => None,
        })
        .collect();
    places.sort_by(|one, other| one.0.cmp(&other.0));
    places.dedup_by(|one, other| one.0 == other.0);
    places
}

fn place(hub: &Hub, service: &str) -> Option<RegistryPlace> {
    places(hub).into_iter().find(|(name, _)| name == service).map(|(_, place)| place)
}

fn missing() -> Answer {
    let hint = "no service of that name is configured with `discovery: { registry: {} }`\n";
    text(StatusCode::NOT_FOUND, hint.into())
}

async fn list(registry: &Registry, places: Vec<(String, RegistryPlace)>) -> Result<Answer, RegistryError> {
    let listed = join_all(places.into_iter().map(|(service, place)| async move {
        let entries = registry.list(&place, None).await?.entries.unwrap_or_default();
        let mut instances: Vec<_> = entries.into_iter().filter(|entry| !entry.body.is_empty()).collect();
        instances.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Service { service, instances: instances.into_iter().filter_map(shown).collect() })
    }));
    let services = listed.await.into_iter().collect::<Result<Vec<_>, RegistryError>>()?;
    Ok(json(StatusCode::OK, &services))
}

/// What is stored of an instance, with its name and its times.
fn shown(entry: Entry) -> Option<Map<String, Value>> {
    let mut shown = Map::from_iter([("name".to_owned(), entry.name.into()), ("priority".to_owned(), 0.into())]);
    let stored: Map<String, Value> = serde_json::from_str(&entry.body).ok()?;
    shown.extend(stored.into_iter().filter(|(key, _)| key != "ttl"));
    shown.insert("ttlMs".into(), (entry.ttl.as_millis() as u64).into());
    shown.insert("leftMs".into(), (entry.left.as_millis() as u64).into());
    Some(shown)
}

async fn register<B>(
    registry: &Registry,
    service: &str,
    place: &RegistryPlace,
    name: &str,
    body: B,
) -> Result<Answer, RegistryError>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = match Limited::new(body, INSTANCE_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let hint = format!("more than {INSTANCE_BYTES_MAX} bytes\n");
            return Ok(text(StatusCode::PAYLOAD_TOO_LARGE, hint));
        }
        Err(error) => return Ok(text(StatusCode::BAD_REQUEST, format!("no whole body: {error}\n"))),
    };
    let instance = match Instance::read(&body, false, None) {
        Ok(instance) => instance,
        Err(errors) => return Ok(text(StatusCode::BAD_REQUEST, format!("{errors}\n"))),
    };
    Ok(match registry.register(place, name, instance.ttl, &instance.to_json()).await? {
        Registered::New => {
            let address = &instance.endpoint.label;
            tracing::info!("registry: service `{service}`: `{name}` at {address} has registered");
            text(StatusCode::CREATED, "registered\n".into())
        }
        Registered::Again => text(StatusCode::OK, "registered again\n".into()),
        Registered::Full => text(StatusCode::CONFLICT, "the service has as many instances as it may\n".into()),
    })
}

async fn leave(registry: &Registry, service: &str, place: &RegistryPlace, name: &str) -> Result<Answer, RegistryError> {
    Ok(match registry.leave(place, name).await? {
        true => {
            tracing::info!("registry: service `{service}`: `{name}` has left");
            text(StatusCode::OK, "gone\n".into())
        }
        false => unknown(),
    })
}

async fn beat(registry: &Registry, place: &RegistryPlace, name: &str) -> Result<Answer, RegistryError> {
    Ok(match registry.beat(place, name).await? {
        true => text(StatusCode::OK, "heard\n".into()),
        false => unknown(),
    })
}

fn unknown() -> Answer {
    text(StatusCode::NOT_FOUND, "no such instance is registered\n".into())
}

fn failed(error: &RegistryError) -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"));
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_services_and_instances() {
        let of = |names: [&str; 2]| (names[0].to_owned(), names[1].to_owned());
        let (service, instance) = of(["api", "10.0.0.1:80"]);
        for (path, named) in [
            ("/registry", Some(Named::All)),
            ("/registry/api", Some(Named::Service(service.clone()))),
            ("/registry/api/10.0.0.1%3A80", Some(Named::Instance(service.clone(), instance.clone()))),
            ("/registry/api/10.0.0.1:80/heartbeat", Some(Named::Heartbeat(service, instance))),
            ("/registry/api/a/b", None),
            ("/registry/api/a/heartbeat/b", None),
            ("/registry/%ff", None),
        ] {
            assert_eq!(Named::parse(path), named, "{path}");
        }
        assert!(has("/registry") && has("/registry/a") && !has("/registryx"));
    }
}
