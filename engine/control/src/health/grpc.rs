//! Checks by gRPC's health protocol: `grpc.health.v1.Health/Check`, whose messages have one field each.

use bytes::{BufMut, Bytes, BytesMut};
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};

use super::http::{BODY_BYTES_MAX, exchange, request};
use super::probe::Wire;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// In front of each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// The first field of both messages: the service's name in the request, its state in the answer.
const FIELD: u64 = 1;
/// `ServingStatus`.
const SERVING: u64 = 1;

pub(super) async fn check(wire: Box<dyn Wire>, service: &str, host: &str, scheme: &str) -> Result<(), String> {
    let request = request(scheme, host, PATH)
        .method(Method::POST)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(TE, HeaderValue::from_static("trailers"))
        .body(())
        .map_err(|error| error.to_string())?;
    let answer = exchange(wire, request, Some(question(service)), |body| body.len() > BODY_BYTES_MAX).await?;
    if !answer.status.is_success() {
        return Err(format!("{PATH} was answered with {}", answer.status.as_u16()));
    }
    match status_of(&answer.trailers).or_else(|| status_of(&answer.headers)) {
        Some(0) => {}
        Some(code) => return Err(format!("{PATH} was answered with grpc-status {code}")),
        None => return Err(format!("{PATH} was answered without a grpc-status")),
    }
    match serving_status(&answer.body) {
        Some(SERVING) => Ok(()),
        Some(2) => Err("it says that it is not serving".into()),
        Some(3) => Err(format!("it does not know the service `{service}`")),
        Some(_) => Err("it does not say whether it is serving".into()),
        None => Err(format!("the answer to {PATH} is malformed")),
    }
}

fn status_of(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// `HealthCheckRequest { string service = 1; }`
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8((FIELD << 3 | 2) as u8);
        put_varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// `HealthCheckResponse { ServingStatus status = 1; }`, whose fields may be followed by others. What is 0 is not sent.
fn serving_status(body: &[u8]) -> Option<u64> {
    let ([0, a, b, c, d], message) = body.split_first_chunk::<PREFIX_BYTES>()? else { return None };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let mut rest = message.get(..length)?;
    let mut status = 0;
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        match tag & 7 {
            0 => {
                let value = take_varint(&mut rest)?;
                if tag >> 3 == FIELD {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(mut value: u64, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_one_framed_message() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], *b"\0\0\0\0\x04\x0a\x02ab");
        let long = question(&"x".repeat(300));
        assert_eq!(&long[..8], *b"\0\0\0\x01\x2f\x0a\xac\x02");
    }

    #[test]
    fn answers_are_read_and_malformed_ones_refused() {
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x01"), Some(SERVING));
        assert_eq!(serving_status(b"\0\0\0\0\x00"), Some(0));
        assert_eq!(serving_status(b"\0\0\0\0\x09\x12\x02xx\x1d1234"), Some(0));
        assert_eq!(serving_status(b"\0\0\0\0\x06\x12\x02xx\x08\x02"), Some(2));
        for bad in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x03\x08\x01",
            b"\0\0\0\0\x01\x08",
            b"\0\0\0\0\x02\x12\x7f",
            b"\0\0\0\0\x02\x0b\x01",
            b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(serving_status(bad), None, "{bad:?}");
        }
    }
}
