//! `/drain` for preStop hooks: the one path of the admin port that changes something.
//!
//! A hook sends GET, a person may send POST. From loopback it is always allowed; from elsewhere,
//! and so for kubelet's own `httpGet` hooks, only where it was opened, since whoever can reach
//! the port could take the pod out of service. Looking (`?status`) is always allowed.

use std::net::IpAddr;
use std::sync::Once;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ORIGIN};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{Body, body, status, text};
use crate::config::Mode;
use crate::state::Shared;

/// Answers one request; a drain is answered when it has ended.
pub(super) async fn answer(
    shared: &Shared,
    request: &Request<Incoming>,
    peer: IpAddr,
) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let looks = value(query, "status").is_some() || request.method() == Method::HEAD;
    if looks && matches!(*request.method(), Method::GET | Method::HEAD) {
        let drain = status::reporting::drain(shared);
        let mut response =
            Response::new(body(serde_json::to_vec_pretty(&drain).unwrap_or_default()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        return response;
    }
    if !matches!(*request.method(), Method::GET | Method::POST) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD and POST only\n");
        let allowed = HeaderValue::from_static("GET, HEAD, POST");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    if !may_begin(shared.drains.open, peer) {
        // Once: whoever does it often must not fill the log.
        REFUSED.call_once(|| {
            tracing::warn!(%peer, "a drain was called for from outside the pod and refused; see SHIM_DRAIN_ENDPOINT");
        });
        return text(
            StatusCode::FORBIDDEN,
            "a drain may be begun from loopback only; SHIM_DRAIN_ENDPOINT=true lets kubelet's httpGet hooks, and whoever else reaches this port, begin one\n",
        );
    }
    // Through a port-forward every caller is on loopback, also a page of somebody else's that the
    // browser of the person who forwards happens to show.
    let led = request.headers().get("sec-fetch-site");
    if led.is_some_and(|site| site != "none") || request.headers().contains_key(ORIGIN) {
        return text(
            StatusCode::FORBIDDEN,
            "a drain is not begun by a page in a browser\n",
        );
    }
    let bound = shared.drains.bound;
    let Some(limit) = limit(query, bound) else {
        return text(
            StatusCode::BAD_REQUEST,
            "timeout: expected a duration with a unit, such as 30s\n",
        );
    };
    if shared.mode == Mode::Observe {
        return text(
            StatusCode::OK,
            "nothing is drained: SHIM_MODE is observe, which changes nothing\n",
        );
    }
    match shared.drains.call(limit).await {
        Ok(progress) if progress.summary.is_empty() => {
            let running = shared.drain.in_flight().now();
            let agent = progress.agent.words();
            text(
                StatusCode::OK,
                format!("still draining: {running} call(s) run; the agent {agent}\n"),
            )
        }
        Ok(progress) => text(StatusCode::OK, format!("{}\n", progress.summary)),
        Err(_) => text(
            StatusCode::TOO_MANY_REQUESTS,
            "too many callers wait for the drain already; it goes on\n",
        ),
    }
}

/// What the drain itself may take beyond its bound.
const GRACE: Duration = Duration::from_secs(2);

/// The first value of a name in a query; empty where it has none.
fn value<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let mut pairs = query
        .split('&')
        .map(|q| q.split_once('=').unwrap_or((q, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// How long a caller waits; `None` where it does not say that properly.
pub(crate) fn limit(query: &str, bound: Duration) -> Option<Duration> {
    match value(query, "timeout").map(humantime::parse_duration) {
        None => Some(bound + GRACE),
        Some(limit) => Some(limit.ok()?.min(bound + GRACE)),
    }
}

static REFUSED: Once = Once::new();

fn may_begin(open: bool, peer: IpAddr) -> bool {
    open || peer.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_begins_a_drain_unless_it_was_opened() {
        for (peer, inside) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("fd00::1", false),
            ("169.254.1.1", false),
        ] {
            let peer = peer.parse().unwrap();
            assert_eq!(may_begin(false, peer), inside, "{peer}");
            assert!(may_begin(true, peer));
        }
    }
}
