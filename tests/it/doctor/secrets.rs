//! Nothing secret appears in any output.

use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::support::*;
use crate::gather::certificates::Authority;
use crate::support::{eventually, within};

const SECRETS: [(&str, &str); 4] = [
    ("AWS_SECRET_ACCESS_KEY", "hush-aws"),
    ("RCLONE_CONFIG_S3_PASS", "hush-rclone"),
    ("SELDON_API_TOKEN", "hush-token"),
    ("MLSERVER_PASSWORD", "hush-mlserver"),
];

#[tokio::test]
async fn secrets_in_the_environment_and_in_keys_are_shown_nowhere() {
    let authority = Authority::new("doctor-secrets");
    let stranger = Authority::new("doctor-secrets-other");
    let mut tasks = JoinSet::new();
    let pod = Pod::start(agent(GI), &[]).await;
    let pair = stranger.server("127.0.0.1");
    let front = stranger
        .front(pod.scheduler.agent, pair, true, &mut tasks)
        .await;
    let client = authority.server("agent");
    let key: Vec<String> = client.1.lines().map(String::from).collect();
    let files = authority.files(Some(client));
    let (cert, key_file) = files.identity.unwrap();
    let front = front.to_string();
    let mut settings = pod.visit().settings;
    set(
        &mut settings,
        &[
            ("SHIM_SCHEDULER", front.as_str()),
            ("SHIM_SCHEDULER_CA_FILE", files.ca.to_str().unwrap()),
            ("SHIM_SCHEDULER_CERT_FILE", cert.to_str().unwrap()),
            ("SHIM_SCHEDULER_KEY_FILE", key_file.to_str().unwrap()),
            ("SHIM_RELAY_HTTP_PORT", "0"),
            ("SHIM_RELAY_GRPC_PORT", "0"),
            ("SHIM_ADMIN_LISTEN", "127.0.0.1"),
            ("SHIM_ADMIN_PORT", "0"),
            ("SHIM_LOG", "debug"),
        ],
    );
    let program = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-shim"));
        command.args(args).env_clear().kill_on_drop(true);
        command.envs(settings.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        command.envs(SECRETS);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut sidecar = program(&[]).spawn().unwrap();
    let mut log = String::new();
    let mut stderr = sidecar.stderr.take().unwrap();
    let mut buffer = [0; 4096];
    let admin = within("the admin port in the log", async {
        loop {
            let n = stderr.read(&mut buffer).await.unwrap();
            log.push_str(&String::from_utf8_lossy(&buffer[..n]));
            let line = log
                .lines()
                .find(|l| l.contains("listening") && l.contains("agent="));
            if let Some(line) = line {
                let rest = line.split("admin=").nth(1).unwrap();
                let end = rest.find(' ').unwrap();
                return rest[..end].trim_matches('"').to_string();
            }
        }
    })
    .await;
    let agents_port = log
        .lines()
        .find_map(|l| l.split(" agent=").nth(1))
        .map(|rest| rest.trim().trim_matches('"').to_string())
        .unwrap();
    let _agent = agent_shim::demo::agent::FakeAgent::start(agent_shim::demo::agent::AgentConfig {
        scheduler: agents_port.parse().unwrap(),
        ..agent(GI)
    });
    // The environments of agent and server, with what must not be shown.
    let proc =
        std::env::temp_dir().join(format!("agent-shim-doctor-secret-{}", std::process::id()));
    for (pid, comm) in [("7", "agent"), ("8", "mlserver")] {
        std::fs::create_dir_all(proc.join(pid)).unwrap();
        std::fs::write(proc.join(pid).join("comm"), comm).unwrap();
        let environ: String = SECRETS.iter().map(|(n, v)| format!("{n}={v}\0")).collect();
        let environ = environ + "MEMORY_REQUEST=1\0";
        std::fs::write(proc.join(pid).join("environ"), environ).unwrap();
    }
    let url = format!("http://{admin}");
    let address: std::net::SocketAddr = admin.parse().unwrap();
    let get = async |path: &str| crate::support::http::get(address, path).await.1;
    eventually("a finding in /status", async || {
        let status = get("/status").await;
        status.contains("\"AS045\"").then_some(())
    })
    .await;
    let mut all = vec![get("/status").await, get("/metrics").await, get("/").await];
    for form in [
        &["doctor", "--admin", &url][..],
        &["doctor", "--json", "--admin", &url],
        &["doctor", "--markdown", "--admin", &url],
        &["status", "--admin", &url],
    ] {
        let output = within("the command", program(form).output()).await.unwrap();
        all.push(String::from_utf8_lossy(&output.stdout).into_owned());
        all.push(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let mut visit = pod.visit();
    visit.proc = proc.clone();
    let evidence = visit.evidence().await;
    assert!(
        evidence
            .environment
            .iter()
            .any(|v| v.name == "MEMORY_REQUEST")
    );
    all.push(format!("{evidence:?}"));
    // The log says it a moment after `/status` does.
    within("the finding in the log", async {
        while !log.contains("finding appeared") {
            let n = stderr.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the sidecar has ended");
            log.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    })
    .await;
    sidecar.start_kill().unwrap();
    stderr.read_to_string(&mut log).await.unwrap();
    all.push(log);
    std::fs::remove_dir_all(proc).unwrap();
    assert!(
        all.iter().any(|text| text.contains("AS045")),
        "the outputs say nothing at all"
    );
    for text in &all {
        for (name, value) in SECRETS {
            assert!(!text.contains(value), "{name} is shown in:\n{text}");
        }
        for line in key.iter().filter(|l| l.len() > 20 && !l.starts_with("---")) {
            assert!(
                !text.contains(line.as_str()),
                "the key is shown in:\n{text}"
            );
        }
    }
}
