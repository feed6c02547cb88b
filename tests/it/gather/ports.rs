//! Every way in which a port of the scheduler can be wrong, made with real sockets.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use agent_shim::config::scheduler::{Target, TlsFiles};
use agent_shim::demo::scheduler::FakeScheduler;
use agent_shim::doctor::gather::ports::*;
use agent_shim::endpoint::Host;
use agent_shim::metrics::Metrics;
use agent_shim::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::certificates::Authority;
use crate::support::*;

fn ask(purpose: Purpose, at: SocketAddr) -> Ask {
    Ask {
        purpose,
        target: at.to_string().parse().unwrap(),
        secured: purpose.secured(),
    }
}

async fn look(gatherer: &Gatherer, asked: Ask) -> PortFacts {
    let mut all = within("one port", gatherer.gather(&[asked])).await;
    all.remove(0)
}

async fn plain(purpose: Purpose, at: SocketAddr) -> PortFacts {
    look(&Gatherer::new(None), ask(purpose, at)).await
}

fn with(files: TlsFiles) -> Gatherer {
    Gatherer::new(Some(tls::Client::new(files, &Metrics::new())))
}

/// A listener that does one thing with each connection.
async fn listener<F>(each: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(each(stream));
        }
    });
    (at, tasks)
}

/// A gRPC server that knows some services and no method, with the words of one in Go.
async fn in_go(known: &'static [&'static str]) -> (SocketAddr, JoinSet<()>) {
    listener(move |stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let path = request.uri().path().to_string();
            let (service, method) = path[1..].split_once('/').unwrap();
            assert_ne!(method, "Subscribe");
            let words = match known.contains(&service) {
                true => format!("unknown method {method} for service {service}"),
                false => format!("unknown service {service}"),
            };
            let head = ::http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "12")
                .header("grpc-message", words);
            respond.send_response(head.body(()).unwrap(), true).unwrap();
        }
    })
    .await
}

const AGENT: &str = "seldon.mlops.agent.AgentService";
const API: &str = "seldon.mlops.scheduler.Scheduler";

#[tokio::test]
async fn a_good_port_is_fine_and_says_what_it_serves() {
    let (agents, _tasks) = in_go(&[AGENT]).await;
    let facts = plain(Purpose::Agent, agents).await;
    assert_eq!(facts.name.found, Found::Literal);
    assert_eq!(facts.tried[0].connect, Connect::Connected);
    assert_eq!(facts.speaks, Some(Speaks::Http2));
    assert_eq!(facts.serves, Some(Serves::Agent));
    assert_eq!(facts.verdict(), Verdict::Fine);
    assert!(!facts.cut_short);
}

#[tokio::test]
async fn the_wrong_one_of_the_schedulers_ports_is_told() {
    let (api, _tasks) = in_go(&[API]).await;
    let facts = plain(Purpose::Agent, api).await;
    assert_eq!(facts.verdict(), Verdict::OtherService(Serves::Api));
    let (xds, _tasks) = in_go(&["envoy.service.discovery.v3.AggregatedDiscoveryService"]).await;
    let facts = plain(Purpose::Api, xds).await;
    assert_eq!(facts.verdict(), Verdict::OtherService(Serves::Xds));
    let (stranger, _tasks) = in_go(&["inference.GRPCInferenceService"]).await;
    let facts = plain(Purpose::Agent, stranger).await;
    assert_eq!(facts.verdict(), Verdict::OtherService(Serves::Neither));
}

#[tokio::test]
async fn a_server_of_few_words_is_asked_for_its_status_and_never_subscribed_to() {
    let scheduler = FakeScheduler::start().await.unwrap();
    let facts = plain(Purpose::Agent, scheduler.status).await;
    assert_eq!(facts.verdict(), Verdict::OtherService(Serves::Api));
    let facts = plain(Purpose::Agent, scheduler.agent).await;
    assert_eq!(facts.serves, Some(Serves::Untold));
    assert_eq!(facts.verdict(), Verdict::Fine);
    assert!(scheduler.read(|s| s.requests.is_empty()));
}

#[tokio::test]
async fn a_refused_connection_is_no_dropped_one() {
    let (at, _holder) = refused().await;
    let facts = plain(Purpose::Agent, at).await;
    assert_eq!(facts.verdict(), Verdict::NotConnected(Connect::Refused));
    assert!(facts.took_ms < 1000, "{}", facts.took_ms);
}

#[tokio::test]
async fn dropped_packets_time_out() {
    // A listener whose queue is full drops what asks to open a connection, as a policy does.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let at = socket.local_addr().unwrap().as_socket().unwrap();
    let mut kept = Vec::new();
    let patience = Duration::from_millis(300);
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(at)).await {
        kept.push(stream.unwrap());
        assert!(kept.len() < 10, "the queue does not fill");
    }
    let facts = plain(Purpose::Agent, at).await;
    assert_eq!(facts.verdict(), Verdict::NotConnected(Connect::TimedOut));
    assert!((1400..4000).contains(&facts.took_ms), "{}", facts.took_ms);
}

#[tokio::test]
async fn silence_hanging_up_and_a_reset_are_told_apart() {
    let (silent, _a) = listener(|mut stream| async move {
        // Reads what comes, and never answers.
        let mut sink = tokio::io::sink();
        let _ = tokio::io::copy(&mut stream, &mut sink).await;
        std::future::pending::<()>().await;
    })
    .await;
    let (closes, _b) = listener(|mut stream| async move {
        // Read first, so that the end is a close and not a reset.
        let mut some = [0; 512];
        let _ = stream.read(&mut some).await;
        let _ = stream.shutdown().await;
        let mut sink = tokio::io::sink();
        let _ = tokio::io::copy(&mut stream, &mut sink).await;
    })
    .await;
    let (resets, _c) = listener(|mut stream| async move {
        let mut some = [0; 512];
        let _ = stream.read(&mut some).await;
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    })
    .await;
    for (at, speaks) in [
        (silent, Speaks::Silent),
        (closes, Speaks::Closed),
        (resets, Speaks::Reset),
    ] {
        let facts = plain(Purpose::Agent, at).await;
        assert_eq!(facts.verdict(), Verdict::Mute(speaks));
        assert!(!facts.cut_short, "{facts:?}");
    }
}

#[tokio::test]
async fn http1_is_no_grpc() {
    let (at, _tasks) = listener(|mut stream| async move {
        let mut some = [0; 512];
        let _ = stream.read(&mut some).await;
        let _ = stream
            .write_all(b"HTTP/1.1 400 Bad\x1b Request\r\nconnection: close\r\n\r\n")
            .await;
        let _ = stream.shutdown().await;
        let mut sink = tokio::io::sink();
        let _ = tokio::io::copy(&mut stream, &mut sink).await;
    })
    .await;
    let facts = plain(Purpose::Api, at).await;
    let line = "HTTP/1.1 400 Bad Request".to_string();
    assert_eq!(facts.speaks, Some(Speaks::Http1(line.clone())));
    assert_eq!(facts.verdict(), Verdict::NotGrpc(line));
}

#[tokio::test]
async fn plain_text_and_tls_are_told_apart_in_both_directions() {
    let authority = Authority::new("mixed");
    let (agents, mut tasks) = in_go(&[AGENT]).await;
    let pair = authority.server("127.0.0.1");
    let secured = authority.front(agents, pair, false, &mut tasks).await;
    let facts = plain(Purpose::Agent, secured).await;
    assert_eq!(facts.verdict(), Verdict::TlsWherePlain);
    assert_eq!(facts.tls, Some(TlsVerdict::NotJudged));
    let gatherer = with(authority.files(None));
    let facts = look(&gatherer, ask(Purpose::AgentTls, agents)).await;
    assert_eq!(facts.verdict(), Verdict::PlainWhereTls);
}

#[tokio::test]
async fn every_certificate_is_judged() {
    let authority = Authority::new("judged");
    let stranger = Authority::new("stranger");
    let (agents, mut tasks) = in_go(&[AGENT]).await;
    let good = authority.server("127.0.0.1");
    let good = authority.front(agents, good, false, &mut tasks).await;
    let old = authority.signed("127.0.0.1", 2020, 2021);
    let old = authority.front(agents, old, false, &mut tasks).await;
    let young = authority.signed("127.0.0.1", 2049, 2050);
    let young = authority.front(agents, young, false, &mut tasks).await;
    let other = authority.server("elsewhere.example");
    let other = authority.front(agents, other, false, &mut tasks).await;
    let trusting = with(authority.files(None));
    let missing = TlsFiles {
        ca: "/nowhere/ca.crt".into(),
        identity: None,
    };
    for (gatherer, at, expected) in [
        (&trusting, good, TlsVerdict::Trusted),
        (&trusting, old, TlsVerdict::Expired),
        (&trusting, young, TlsVerdict::NotYetValid),
        (&with(stranger.files(None)), good, TlsVerdict::UnknownIssuer),
        (&Gatherer::new(None), good, TlsVerdict::NotJudged),
    ] {
        let facts = look(gatherer, ask(Purpose::AgentTls, at)).await;
        assert_eq!(facts.speaks, Some(Speaks::Tls));
        assert_eq!(facts.tls, Some(expected));
    }
    let facts = look(&trusting, ask(Purpose::AgentTls, good)).await;
    assert_eq!(facts.serves, Some(Serves::Agent));
    assert_eq!(facts.verdict(), Verdict::Fine);
    let facts = look(&trusting, ask(Purpose::AgentTls, other)).await;
    let Some(TlsVerdict::WrongName(names)) = &facts.tls else {
        panic!("{facts:?}")
    };
    assert!(names.contains("elsewhere.example"), "{names}");
    let facts = look(&with(missing), ask(Purpose::AgentTls, good)).await;
    let Some(TlsVerdict::Files(why)) = &facts.tls else {
        panic!("{facts:?}")
    };
    assert!(why.contains("/nowhere/ca.crt"), "{why}");
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_says_what_it_thinks_of_ours() {
    let authority = Authority::new("asks");
    let stranger = Authority::new("asks-stranger");
    let (agents, mut tasks) = in_go(&[AGENT]).await;
    let pair = authority.server("127.0.0.1");
    let at = authority.front(agents, pair, true, &mut tasks).await;
    let facts = look(&with(authority.files(None)), ask(Purpose::AgentTls, at)).await;
    let required = TlsVerdict::ClientCertificateRequired;
    assert_eq!(facts.verdict(), Verdict::Tls(required));
    let theirs = authority.files(Some(stranger.server("agent")));
    let facts = look(&with(theirs), ask(Purpose::AgentTls, at)).await;
    let Verdict::Tls(TlsVerdict::ClientCertificateRefused(alert)) = facts.verdict() else {
        panic!("{facts:?}")
    };
    assert!(alert.contains("UnknownCA"), "{alert}");
    let ours = authority.files(Some(authority.server("agent")));
    let facts = look(&with(ours), ask(Purpose::AgentTls, at)).await;
    assert_eq!(facts.verdict(), Verdict::Fine);
}

/// A resolver that says what it is told to.
struct Told(NameFacts, Duration);

impl LookUp for Told {
    fn look_up(
        &self,
        _name: String,
        _port: u16,
    ) -> Pin<Box<dyn Future<Output = NameFacts> + Send + '_>> {
        Box::pin(async move {
            tokio::time::sleep(self.1).await;
            self.0.clone()
        })
    }
}

fn named(at: SocketAddr) -> Ask {
    Ask {
        purpose: Purpose::Agent,
        target: Target {
            host: Host::Name("seldon-scheduler".into()),
            port: at.port(),
        },
        secured: false,
    }
}

#[tokio::test]
async fn an_unknown_name_is_no_silent_name_server() {
    let at = SocketAddr::from(([127, 0, 0, 1], 9));
    let unknown = "failed to lookup address information: Name or service not known";
    for (facts, expected) in [
        (
            NameFacts::from_words(unknown),
            Verdict::UnknownName(unknown.into()),
        ),
        (
            NameFacts::unanswered("no answer"),
            Verdict::NoNameServer("no answer".into()),
        ),
    ] {
        let gatherer = Gatherer::with_names(Arc::new(Told(facts, Duration::ZERO)), None);
        assert_eq!(look(&gatherer, named(at)).await.verdict(), expected);
    }
}

#[tokio::test]
async fn the_first_address_that_connects_is_asked_and_the_others_are_shown() {
    let (agents, _tasks) = in_go(&[AGENT]).await;
    let addresses: Vec<IpAddr> = vec!["127.0.0.9".parse().unwrap(), agents.ip()];
    let told = Told(NameFacts::resolved(addresses), Duration::ZERO);
    let gatherer = Gatherer::with_names(Arc::new(told), None);
    let facts = look(&gatherer, named(agents)).await;
    assert_eq!(facts.tried[0].connect, Connect::Refused);
    assert_eq!(facts.tried[1].connect, Connect::Connected);
    assert_eq!(facts.verdict(), Verdict::Fine);
}

#[tokio::test]
async fn an_ipv6_address_is_asked_like_any_other() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        // A machine without IPv6 has nothing to ask.
        return;
    };
    let at = listener.local_addr().unwrap();
    drop(listener);
    let facts = plain(Purpose::Agent, at).await;
    assert_eq!(facts.target, at.to_string());
    assert_eq!(facts.verdict(), Verdict::NotConnected(Connect::Refused));
}

#[tokio::test]
async fn a_limit_for_the_whole_keeps_what_is_known() {
    let (silent, _tasks) = listener(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let gatherer = Gatherer::new(None).within(Duration::from_millis(200));
    let facts = look(&gatherer, ask(Purpose::Agent, silent)).await;
    assert!(facts.cut_short);
    assert_eq!(facts.tried[0].connect, Connect::Connected);
    assert_eq!(facts.verdict(), Verdict::Untold);
}

#[tokio::test]
async fn ports_are_looked_at_at_once_and_told_in_order() {
    let slow = NameFacts::unanswered("slow");
    let told = Told(slow, Duration::from_millis(400));
    let gatherer = Gatherer::with_names(Arc::new(told), None);
    let asks: Vec<Ask> = Purpose::ALL
        .iter()
        .map(|p| Ask::usual(*p, &Host::Name("seldon-scheduler".into())))
        .collect();
    let started = tokio::time::Instant::now();
    let all = gatherer.gather(&asks).await;
    assert!(started.elapsed() < Duration::from_millis(1600));
    let seen: Vec<Purpose> = all.iter().map(|f| f.purpose).collect();
    assert_eq!(seen, Purpose::ALL);
    assert_eq!(all[1].target, "seldon-scheduler:9055");
    // What is gathered can be carried to where it is judged.
    let text = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<Vec<PortFacts>>(&text).unwrap(), all);
}
