//! The certificate: missing, expired, refused, and changed under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use agent_shim::webhook::decide::Injector;
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::support::*;
use crate::support::{eventually, within};

const LOADED: &str = r#"agent_shim_webhook_certificate_loads_total{result="ok"}"#;
const REFUSED: &str = r#"agent_shim_webhook_certificate_loads_total{result="refused"}"#;
const EXPIRY: &str = "agent_shim_webhook_certificate_expiry_timestamp_seconds";

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// The certificate that a new caller is shown.
async fn shown(hook: &Hook) -> CertificateDer<'static> {
    let client = hook.authority.client(&["h2"]);
    let stream = within("a handshake", secured(hook.review, client))
        .await
        .unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_load_loses_no_request() {
    let hook = Arc::new(Hook::start());
    let done = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for i in 0..8 {
        let (hook, done, answered) = (hook.clone(), done.clone(), answered.clone());
        callers.spawn(async move {
            let alpn = if i % 2 == 0 { "h2" } else { "http/1.1" };
            // One of four stays on its connection through all of it.
            let stays = i < 2;
            let connect = || Caller::connect(hook.review, hook.authority.client(&[alpn]));
            let mut caller = connect().await;
            while !done.load(Ordering::Relaxed) {
                let review = review(&pod());
                let (status, answer) = caller.post(review.to_string()).await;
                assert_eq!(status, 200);
                assert!(response(&review, &answer).get("patch").is_some());
                answered.fetch_add(1, Ordering::Relaxed);
                if !stays {
                    caller = connect().await;
                }
            }
        });
    }
    let mut last = String::new();
    for round in 0..6 {
        let seen = answered.load(Ordering::Relaxed);
        let year = 2040 + round;
        let pair = hook.authority.pair((2020, year));
        if round == 3 {
            // A key that is another's, and then no certificate at all.
            let before = (hook.series(REFUSED).await, hook.series(EXPIRY).await);
            let other = hook.authority.pair((2020, year));
            hook.authority.write(&(pair.0.clone(), other.1));
            hook.until(REFUSED, before.0 + 1.0).await;
            hook.authority.write(&("cut off".into(), pair.1.clone()));
            hook.until(REFUSED, before.0 + 2.0).await;
            assert_eq!(hook.series(EXPIRY).await, before.1);
            let (status, said) = hook.get("/readyz?verbose").await;
            assert_eq!(status, 200, "the pair before is good: {said}");
            assert!(said.contains("newer files cannot be used"), "{said}");
        }
        hook.authority.write(&pair);
        eventually("the new certificate to be shown", async || {
            (shown(&hook).await == der(&pair.0)).then_some(())
        })
        .await;
        eventually("requests under it", async || {
            (answered.load(Ordering::Relaxed) >= seen + 20).then_some(())
        })
        .await;
        last = pair.0;
    }
    done.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(shown(&hook).await, der(&last));
    assert!(hook.series(LOADED).await >= 7.0);
    // The first of January 2045.
    assert_eq!(hook.series(EXPIRY).await, 2_366_841_600.0);
    let (_, said) = hook.get("/readyz?verbose").await;
    assert!(!said.contains("newer files"), "{said}");
    let answered = answered.load(Ordering::Relaxed) as f64;
    let injected = r#"agent_shim_webhook_requests_total{outcome="injected"}"#;
    assert_eq!(hook.series(injected).await, answered);
}

/// As kubelet does it: all files at once, by one renamed link.
#[tokio::test]
async fn a_mounted_secret_that_changes_is_noticed() {
    use std::os::unix::fs::symlink;
    let authority = Authority::new();
    let folder = authority.folder.clone();
    let put = |version: &str, (cert, key): &(String, String)| {
        std::fs::create_dir(folder.join(version)).unwrap();
        std::fs::write(folder.join(version).join("tls.crt"), cert).unwrap();
        std::fs::write(folder.join(version).join("tls.key"), key).unwrap();
        symlink(version, folder.join("..tmp")).unwrap();
        std::fs::rename(folder.join("..tmp"), folder.join("..data")).unwrap();
    };
    let first = authority.pair((2020, 2040));
    put("..1", &first);
    symlink("..data/tls.crt", folder.join("tls.crt")).unwrap();
    symlink("..data/tls.key", folder.join("tls.key")).unwrap();
    let hook = Hook::of(authority, |_| {}, Injector::default());
    assert_eq!(shown(&hook).await, der(&first.0));
    let second = hook.authority.pair((2020, 2041));
    put("..2", &second);
    assert_eq!(shown(&hook).await, der(&second.0));
    assert_eq!(hook.series(REFUSED).await, 0.0);
}

#[tokio::test]
async fn without_a_certificate_it_waits_and_says_so() {
    let hook = Hook::of(Authority::new(), |_| {}, Injector::default());
    let (status, said) = hook.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(said.starts_with("certificate: cannot read "), "{said}");
    assert!(said.contains("is the secret with the certificates mounted"));
    assert_eq!(hook.get("/livez").await.0, 200);
    assert!(hook.series(EXPIRY).await.is_nan());
    let client = hook.authority.client(&["h2"]);
    assert!(secured(hook.review, client).await.is_err());
    let series = r#"agent_shim_webhook_handshake_failures_total{reason="no-certificate"}"#;
    hook.until(series, 1.0).await;
    assert_eq!(hook.series(REFUSED).await, 1.0, "said once");
    hook.authority.write(&hook.authority.pair((2020, 2050)));
    assert_eq!(hook.get("/readyz").await, (200, "ok\n".into()));
    assert!(hook.review(&pod()).await.get("patch").is_some());
}

#[tokio::test]
async fn an_expired_certificate_is_not_ready_until_it_is_renewed() {
    let authority = Authority::new();
    authority.write(&authority.pair((2020, 2021)));
    let hook = Hook::of(authority, |_| {}, Injector::default());
    let (status, said) = hook.get("/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(
        said,
        "certificate: expired at 2021-01-01T00:00:00Z: the API server refuses it; renew it\n"
    );
    let series = r#"agent_shim_webhook_condition{condition="certificate"}"#;
    assert_eq!(hook.series(series).await, 0.0);
    assert_eq!(hook.series(EXPIRY).await, 1_609_459_200.0);
    hook.authority.write(&hook.authority.pair((2020, 2050)));
    assert_eq!(hook.get("/readyz").await.0, 200);
    assert_eq!(hook.series(series).await, 1.0);
    hook.authority.write(&hook.authority.pair((2090, 2091)));
    let (status, said) = hook.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(
        said.contains("valid from 2090-01-01T00:00:00Z only"),
        "{said}"
    );
}

/// With failurePolicy Ignore a wrong caBundle shows nowhere else.
#[tokio::test]
async fn a_caller_that_refuses_the_certificate_is_counted() {
    let hook = Hook::start();
    // One of the same name, as after a new installation, and one of another.
    for name in ["authority", "stranger"] {
        let stranger = Authority::named(name).client(&["h2"]);
        assert!(secured(hook.review, stranger).await.is_err());
    }
    let series = r#"agent_shim_webhook_handshake_failures_total{reason="certificate-refused"}"#;
    hook.until(series, 2.0).await;
    assert!(hook.review(&pod()).await.get("patch").is_some());
}
