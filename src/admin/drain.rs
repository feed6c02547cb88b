//! `/drain` for preStop hooks: the one path of the admin port that changes something.
//!
//! A hook sends GET, a person may send POST. From loopback it is always allowed; from elsewhere,
//! and so for kubelet's own `httpGet` hooks, only where it was opened, since whoever can reach
//! the port could take the pod out of service. Looking (`?status`) is always allowed.

use std::net::IpAddr;
use std::sync::Once;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, REFERER, USER_AGENT};
use http::uri::Authority;
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
    if is_led(request) {
        return text(
            StatusCode::FORBIDDEN,
            "a drain is not begun by a page in a browser\n",
        );
    }
    if !is_addressed(request) {
        return text(
            StatusCode::FORBIDDEN,
            "a drain is begun at an address: the Host of the request must be an IP address or localhost\n",
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

/// Whether somebody else's page makes a person's browser ask. Through a port-forward every caller
/// is on loopback. Browsers say where a request comes from only towards addresses they call
/// trustworthy; one that says nothing is not believed.
fn is_led<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let is_browser = headers
        .get(USER_AGENT)
        .is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"));
    match headers.get("sec-fetch-site") {
        Some(site) => site != "none" || headers.contains_key(ORIGIN),
        None => is_browser || headers.contains_key(ORIGIN) || headers.contains_key(REFERER),
    }
}

/// Whether the request names an address, as kubelet and hooks do, and not a name: a page of
/// `evil.example` whose name points to this address now is of the same origin as this port.
fn is_addressed<B>(request: &Request<B>) -> bool {
    let is_address = |text: &str| {
        let Ok(authority) = text.parse::<Authority>() else {
            return false;
        };
        let host = authority.host();
        let ip = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        authority.as_str().split('@').count() == 1
            && (host.eq_ignore_ascii_case("localhost")
                || ip.unwrap_or(host).parse::<IpAddr>().is_ok())
    };
    let hosts = request.headers().get_all(HOST);
    let target = request.uri().authority().map(Authority::as_str);
    // HTTP/1.0 names nothing; a browser speaks no HTTP/1.0.
    hosts.iter().all(|host| host.to_str().is_ok_and(is_address)) && target.is_none_or(is_address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_drain_is_begun_at_an_address_and_never_at_a_name() {
        for (host, taken) in [
            ("127.0.0.1:9680", true),
            ("10.1.2.3", true),
            ("[::1]:9680", true),
            ("[fd00::1]", true),
            ("localhost:9680", true),
            ("LocalHost", true),
            ("evil.example:9680", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("evil@127.0.0.1", false),
            ("0x7f000001", false),
            ("127.1", false),
            ("", false),
            ("a b", false),
        ] {
            assert_eq!(
                is_addressed(&request("/drain", &[("host", host)])),
                taken,
                "{host}"
            );
        }
        assert!(is_addressed(&request("/drain", &[])));
        // Both places count, and every line.
        let both = [("host", "127.0.0.1")];
        assert!(!is_addressed(&request("http://evil.example/drain", &both)));
        let twice = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert!(!is_addressed(&request("/drain", &twice)));
    }

    #[test]
    fn no_page_leads_a_browser_here() {
        let browser = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)");
        for (headers, led) in [
            (&[][..], false),
            (&[("user-agent", "kube-lifecycle/1.33")], false),
            (&[("user-agent", "curl/8.5.0")], false),
            (&[browser, ("sec-fetch-site", "none")], false),
            (&[browser, ("sec-fetch-site", "cross-site")], true),
            (&[browser, ("sec-fetch-site", "same-origin")], true),
            (&[browser], true),
            (&[("referer", "http://a/")], true),
            (&[("origin", "http://a")], true),
            (
                &[browser, ("sec-fetch-site", "none"), ("origin", "null")],
                true,
            ),
        ] {
            assert_eq!(is_led(&request("/drain", headers)), led, "{headers:?}");
        }
    }

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
