//! Whom a request is for: one answer to it, whoever reads the request after the shim. Pure.

use http::header::HOST;
use http::{HeaderValue, Request, Uri};

/// Leaves one `Host`, that of the target where it names one (RFC 9112, 3.2.2), or says why that
/// cannot be.
pub(super) fn settle<B>(request: &mut Request<B>) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err("the request has more than one Host");
    }
    if let Some(host) = first
        && !is_host(host.as_bytes())
    {
        return Err("the request has a Host that is none");
    }
    if let Some(host) = of_target(request.uri()) {
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

/// The host of an absolute target, without the name and password that it may carry.
fn of_target(target: &Uri) -> Option<HeaderValue> {
    let authority = target.authority()?;
    let text = match authority.as_str().rsplit_once('@') {
        Some((_, host)) => host,
        None => authority.as_str(),
    };
    HeaderValue::from_str(text).ok()
}

/// A `Host` may be empty; separators of other parts of a request it must not have.
pub(super) fn is_host(text: &[u8]) -> bool {
    text.iter()
        .all(|c| c.is_ascii_graphic() && !b"/?#@,\\\"<>".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(target: &str, hosts: &[&str]) -> Result<Option<String>, &'static str> {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let mut request = request.body(()).unwrap();
        settle(&mut request)?;
        let host = request.headers().get(HOST);
        Ok(host.map(|host| host.to_str().unwrap().to_string()))
    }

    #[test]
    fn the_target_speaks_for_itself_and_two_hosts_are_none() {
        let some = |text: &str| Ok(Some(text.to_string()));
        assert_eq!(settled("/v2", &["mlserver:9000"]), some("mlserver:9000"));
        assert_eq!(settled("/v2", &["[::1]:9000"]), some("[::1]:9000"));
        assert_eq!(settled("/v2", &[""]), some(""));
        assert_eq!(settled("/v2", &[]), Ok(None));
        assert_eq!(settled("http://a:1/v2", &["b"]), some("a:1"));
        assert_eq!(settled("http://u:p@a:1/v2", &["b"]), some("a:1"));
        assert!(settled("/v2", &["a", "b"]).is_err());
        assert!(settled("/v2", &["a", "a"]).is_err());
        for bad in ["a b", "a/b", "a@b", "a,b", "a\tb"] {
            assert!(settled("/v2", &[bad]).is_err(), "{bad}");
        }
    }
}
