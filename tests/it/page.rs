//! `GET /` on the admin port: the page, its headers, and what happened lately.

use agent_shim::demo::standin::StandIn;
use http::{HeaderMap, Request};

use crate::support::http::{Client, request};
use crate::support::{Shim, eventually, pair};

/// What a browser says it accepts.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

async fn ask(shim: &Shim, method: &str, path: &str, accept: &str) -> (u16, HeaderMap, String) {
    let mut asked: Request<_> = request(method, path, "");
    asked
        .headers_mut()
        .insert("accept", accept.parse().unwrap());
    let mut client = Client::connect(shim.admin()).await;
    let (status, headers, body) = client.call(asked).await;
    (status, headers, String::from_utf8(body.to_vec()).unwrap())
}

async fn page(shim: &Shim) -> String {
    let (status, _, body) = ask(shim, "GET", "/", BROWSER).await;
    assert_eq!(status, 200);
    body
}

#[tokio::test]
async fn a_browser_gets_one_self_contained_page_and_curl_a_list_of_paths() {
    let (_server, shim) = pair(&[]).await;
    let text = page(&shim).await;
    assert!(text.starts_with("<!DOCTYPE html>") && text.ends_with("</html>"));
    assert!(text.contains("the inference server answers HTTP and gRPC"));
    assert!(text.len() < 60_000, "{}", text.len());
    // Nothing is loaded: every reference is a path beside this one, a place on the page, or data.
    for attribute in ["href=\"", "src=\"", "action=\"", "url("] {
        for (at, _) in text.match_indices(attribute) {
            let target = &text[at + attribute.len()..];
            assert!(
                [
                    "status\"",
                    "metrics\"",
                    "readyz?verbose\"",
                    "#",
                    "data:image/svg+xml,"
                ]
                .iter()
                .any(|ours| target.starts_with(ours)),
                "{}",
                &target[..40]
            );
        }
    }
    assert!(!text.contains("https:") && !text.contains("@import"));

    let (status, headers, body) = ask(&shim, "GET", "/", "*/*").await;
    assert_eq!(status, 200);
    assert!(
        headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain")
    );
    assert!(body.starts_with("agent-shim: /livez ") && body.lines().count() == 1);
    for path in ["/livez/agent", "/readyz", "/metrics", "/status", "/drain"] {
        assert!(
            body.contains(&format!(" {path} ")) || body.trim_end().ends_with(path),
            "{body}"
        );
    }
}

#[tokio::test]
async fn the_page_may_load_nothing_send_nothing_and_be_framed_by_nobody() {
    let (_server, shim) = pair(&[]).await;
    for path in ["/", "/?fragment"] {
        let (_, headers, _) = ask(&shim, "GET", path, BROWSER).await;
        let is = |name: &str| headers[name].to_str().unwrap();
        let policy = is("content-security-policy");
        for directive in [
            "default-src 'none'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(directive), "{directive} is not in {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"));
        assert_eq!(is("content-type"), "text/html; charset=utf-8");
        assert_eq!(is("x-content-type-options"), "nosniff");
        assert_eq!(is("referrer-policy"), "no-referrer");
        assert_eq!(is("cache-control"), "no-store");
        assert_eq!(is("vary"), "accept");
    }
}

#[tokio::test]
async fn head_gets_the_headers_and_the_fragment_is_the_part_that_changes() {
    let (_server, shim) = pair(&[]).await;
    let (status, headers, body) = ask(&shim, "HEAD", "/", BROWSER).await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(headers.contains_key("content-security-policy"));
    let (status, _, part) = ask(&shim, "GET", "/?fragment", "*/*").await;
    assert_eq!(status, 200);
    assert!(
        part.starts_with("<main") && part.ends_with("</main>"),
        "{}",
        &part[..80]
    );
    assert!(!part.contains("<script") && !part.contains("<style"));
    let (status, _, _) = ask(&shim, "POST", "/", BROWSER).await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn it_follows_the_server_down_and_tells_what_changed() {
    let (server, shim) = pair(&[]).await;
    assert!(page(&shim).await.contains("<strong>ready</strong>"));
    server.stop_grpc().await;
    let degraded = eventually("the page to say degraded", async || {
        let text = page(&shim).await;
        text.contains("<strong>degraded</strong>").then_some(text)
    })
    .await;
    assert!(degraded.contains("the inference server does not answer gRPC"));
    server.stop().await;
    let down = eventually("the page to say down", async || {
        let text = page(&shim).await;
        text.contains("<strong>down</strong>").then_some(text)
    })
    .await;
    let port = server.grpc().port();
    let changed = down.split("id=\"transitions\"").nth(1).unwrap();
    assert!(
        changed.contains(&format!("gRPC 127.0.0.1:{port}")),
        "{changed}"
    );
    assert!(down.contains("failed (refused)"));
    assert!(down.contains("this is what it last said"));
}

#[tokio::test]
async fn hostile_names_of_models_are_text() {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    let long = "n".repeat(10_000);
    server.set_models([
        ("<script>alert(1)</script>", "\"><img src=x>", "READY"),
        ("\u{202e}sdrawkcab", "v1", "READY"),
        (long.as_str(), "v1", "</td>"),
    ]);
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    let text = eventually("the models", async || {
        let text = page(&shim).await;
        text.contains("sdrawkcab").then_some(text)
    })
    .await;
    assert!(text.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!text.contains("<img") && !text.contains('\u{202e}'));
    assert_eq!(text.matches("<script>").count(), 1, "the page's own");
    assert!(text.contains(&format!("title=\"{long}\"")));
    assert!(text.len() < 80_000, "{}", text.len());
}

#[tokio::test]
async fn two_thousand_models_make_a_bounded_page() {
    let server = StandIn::start([127, 0, 0, 1].into()).await.unwrap();
    server.set_models((0..2_000).map(|i| (format!("model-{i}"), "v1", "READY")));
    let shim = Shim::before("127.0.0.1", server.http(), server.grpc(), &[]);
    let text = eventually("the models", async || {
        let text = page(&shim).await;
        text.contains("and 1900 more, see").then_some(text)
    })
    .await;
    assert!(text.len() < 100_000, "{}", text.len());
}
