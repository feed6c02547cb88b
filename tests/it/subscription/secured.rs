//! TLS towards the scheduler: both sides show a certificate, and every failure says what to do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use agent_shim::config::scheduler::TlsFiles;
use agent_shim::demo::agent::{AgentConfig, FakeAgent};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::metrics::Metrics;
use agent_shim::subscription::status::Phase;
use agent_shim::tls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::support::*;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("agent-shim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("ca.crt"), issuer.pem()).unwrap();
        Authority { issuer, folder }
    }

    fn certificate(&self, host: &str, until: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_string()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn client_files(&self, identity: bool) -> TlsFiles {
        let (cert, key) = self.certificate("agent", 2050);
        let paths = (self.folder.join("tls.crt"), self.folder.join("tls.key"));
        std::fs::write(&paths.0, cert).unwrap();
        std::fs::write(&paths.1, key).unwrap();
        TlsFiles {
            ca: self.folder.join("ca.crt"),
            identity: identity.then_some(paths),
        }
    }

    /// A port that asks for a certificate of this authority and passes the rest to `plain`.
    async fn front(
        &self,
        plain: SocketAddr,
        (cert, key): (String, String),
        tasks: &mut JoinSet<()>,
    ) -> SocketAddr {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .unwrap();
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut secured) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut plain = TcpStream::connect(plain).await.unwrap();
                    let _ = copy_bidirectional(&mut secured, &mut plain).await;
                });
            }
        });
        address
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn shim(at: SocketAddr, files: TlsFiles) -> Shim {
    let metrics = Metrics::new();
    let mut settings = settings(&[at]);
    settings.tls = Some(tls::Client::new(files, &metrics));
    let any = ([127, 0, 0, 1], 0).into();
    Shim::with_metrics(any, settings, Double::new(Some(8 * GI)), metrics).await
}

#[tokio::test]
async fn a_model_is_loaded_over_a_connection_that_both_sides_have_proved() {
    let authority = Authority::new("mtls");
    let scheduler = FakeScheduler::start().await.unwrap();
    let mut tasks = JoinSet::new();
    let identity = authority.certificate("127.0.0.1", 2050);
    let front = authority.front(scheduler.agent, identity, &mut tasks).await;
    let shim = shim(front, authority.client_files(true)).await;
    let _agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
    scheduler.load(model("iris", &["sklearn"], Some(GI)));
    available(&scheduler, "iris").await;
    let series = "agent_shim_certificate_expiry_timestamp_seconds{certificate=\"client\"}";
    assert_eq!(shim.series(series), 2_524_608_000.0);
}

#[tokio::test]
async fn every_failure_keeps_the_agent_waiting_and_says_what_to_do() {
    let authority = Authority::new("failures");
    let stranger = Authority::new("stranger");
    let scheduler = FakeScheduler::start().await.unwrap();
    let mut tasks = JoinSet::new();
    let good = authority.certificate("127.0.0.1", 2050);
    let expired = authority.certificate("127.0.0.1", 2021);
    let misnamed = authority.certificate("elsewhere", 2050);
    let good = authority.front(scheduler.agent, good, &mut tasks).await;
    let expired = authority.front(scheduler.agent, expired, &mut tasks).await;
    let misnamed = authority.front(scheduler.agent, misnamed, &mut tasks).await;
    let missing = TlsFiles {
        ca: "/nowhere/ca.crt".into(),
        identity: None,
    };
    for (at, files, part) in [
        (
            expired,
            authority.client_files(true),
            "the scheduler's certificate has expired: renew it",
        ),
        (
            misnamed,
            authority.client_files(true),
            "is for another name than the one in SHIM_SCHEDULER",
        ),
        (
            good,
            stranger.client_files(true),
            "is not signed by the CA in the CA file",
        ),
        (
            scheduler.agent,
            authority.client_files(true),
            "does not speak TLS on this port",
        ),
        (good, missing, "cannot read /nowhere/ca.crt"),
    ] {
        let shim = shim(at, files).await;
        let agent = FakeAgent::start(AgentConfig::new(shim.address, 0));
        let status = shim
            .until(|s| matches!(s.phase, Phase::Unreachable { .. }))
            .await;
        let Phase::Unreachable { why, .. } = status.phase else {
            unreachable!()
        };
        assert!(why.contains(part), "{part} is not in: {why}");
        agent.read(|seen| assert_eq!(seen.subscriptions, 1));
    }
    assert!(scheduler.read(|s| s.requests.is_empty()));
}
