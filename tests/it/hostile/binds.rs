//! Who can reach which listener: the shim with its defaults, in a network namespace of its own
//! that has an address beside loopback, and callers at that address.

use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::os::means::loud;
use crate::support::{eventually, within};

/// What the shim listens on by default, and who may reach it from beyond the pod.
const LISTENERS: [(&str, u16, bool); 4] = [
    ("HTTP relay", 9600, false),
    ("gRPC relay", 9650, false),
    ("interposer", 9605, false),
    ("admin", 9680, true),
];
const BEYOND: [&str; 2] = ["10.98.76.1", "fd98:76::1"];

/// A program in a network namespace of its own, which ends with it.
struct Apart(Child);

impl Apart {
    /// `None` where this machine does not let the tests make one.
    async fn shim() -> Option<Apart> {
        let script = format!(
            "ip link set lo up && ip link add d0 type dummy && ip addr add {}/24 dev d0 && \
             ip -6 addr add {}/64 dev d0 nodad && ip link set d0 up && exec \"$0\"",
            BEYOND[0], BEYOND[1]
        );
        let possible = Command::new("unshare")
            .args(["-n", "sh", "-c", &script, "true"])
            .stderr(Stdio::null())
            .status();
        if !possible.await.is_ok_and(|status| status.success()) {
            loud(
                "\nSKIPPED, NOT CHECKED: hostile::binds: no network namespace with an address of \
                 its own can be made here\n",
            );
            return None;
        }
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", &script, env!("CARGO_BIN_EXE_agent-shim")])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            // Nobody is there; the listener is what matters.
            .env("SHIM_SCHEDULER", "127.0.0.1:9005")
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Some(Apart(child))
    }

    /// Runs a shell's line beside it.
    async fn run(&self, line: &str) -> (bool, String) {
        let pid = self.0.id().unwrap().to_string();
        let output = Command::new("nsenter")
            .args(["-t", &pid, "-n", "bash", "-c", line])
            .output();
        let output = within("a command in the namespace", output).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// Whether a connection is taken, and otherwise why not.
    async fn reaches(&self, address: &str, port: u16) -> Result<(), String> {
        let (ok, said) = self
            .run(&format!("exec 3<>/dev/tcp/{address}/{port}"))
            .await;
        if ok { Ok(()) } else { Err(said) }
    }

    async fn get(&self, address: &str, port: u16, path: &str) -> String {
        let line = format!(
            "exec 3<>/dev/tcp/{address}/{port}; printf 'GET {path} HTTP/1.1\\r\\nhost: {address}\\r\\nconnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        self.run(&line).await.1
    }
}

#[tokio::test]
async fn from_beyond_the_pod_only_the_admin_port_answers_and_only_its_paths() {
    let Some(shim) = Apart::shim().await else {
        return;
    };
    eventually("the shim to listen", async || {
        shim.reaches("127.0.0.1", 9680).await.ok()
    })
    .await;
    for (name, port, open) in LISTENERS {
        shim.reaches("127.0.0.1", port).await.unwrap();
        for address in BEYOND {
            match (shim.reaches(address, port).await, open) {
                (Ok(()), true) => {}
                (Err(why), false) => assert!(why.contains("refused"), "{name}: {why}"),
                (result, _) => panic!("{name} from {address}: {result:?}"),
            }
        }
    }
    // Every listener there is stands in the list.
    let (_, table) = shim.run("cat /proc/net/tcp /proc/net/tcp6").await;
    let mut ports: Vec<u16> = agent_shim::listeners::parse(&table)
        .iter()
        .map(|address| address.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let mut known = LISTENERS.map(|(_, port, _)| port);
    known.sort_unstable();
    assert_eq!(ports, known);
    for address in BEYOND {
        for (path, code) in [
            ("/livez", "200"),
            ("/readyz", "503"),
            ("/metrics", "200"),
            ("/status", "200"),
            ("/drain?status", "200"),
            ("/drain", "403"),
            ("/v2/health/live", "404"),
            ("/v2/models/m/infer", "404"),
            ("/debug/pprof", "404"),
        ] {
            let said = shim.get(address, 9680, path).await;
            assert_eq!(
                said.split(' ').nth(1),
                Some(code),
                "{path} at {address}: {said}"
            );
        }
    }
    let (_, agent) = shim.run("exec 3<>/dev/tcp/127.0.0.1/9680 && printf 'GET /drain HTTP/1.1\\r\\nhost: evil.example\\r\\nconnection: close\\r\\n\\r\\n' >&3; cat <&3").await;
    assert!(agent.contains(" 403 "), "by name: {agent}");
}
