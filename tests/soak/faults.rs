//! What goes wrong in a run: one fault after another, now and then two at once, by the seed alone.

use std::process::{Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use crate::stage::Stage;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    ServerDies,
    ServerRestartsEmpty,
    HttpDies,
    GrpcDies,
    ServerWedged,
    ServerHalfOpen,
    PacketsLost,
    SchedulerRestarts,
    SchedulerHalfOpen,
    SubscriptionsEnd,
    AgentKilled,
    LogNotRead,
    NoDescriptors,
}

impl Fault {
    const ALL: [Fault; 13] = [
        Fault::ServerDies,
        Fault::ServerRestartsEmpty,
        Fault::HttpDies,
        Fault::GrpcDies,
        Fault::ServerWedged,
        Fault::ServerHalfOpen,
        Fault::PacketsLost,
        Fault::SchedulerRestarts,
        Fault::SchedulerHalfOpen,
        Fault::SubscriptionsEnd,
        Fault::AgentKilled,
        Fault::LogNotRead,
        Fault::NoDescriptors,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fault::ServerDies => "server killed, back",
            Fault::ServerRestartsEmpty => "server restarted, its models gone",
            Fault::HttpDies => "server's HTTP dead",
            Fault::GrpcDies => "server's gRPC dead",
            Fault::ServerWedged => "server wedged",
            Fault::ServerHalfOpen => "server half-open (packets dropped)",
            Fault::PacketsLost => "10 % of the packets to and from the server lost",
            Fault::SchedulerRestarts => "scheduler restarted",
            Fault::SchedulerHalfOpen => "scheduler half-open (packets dropped)",
            Fault::SubscriptionsEnd => "subscriptions ended by the scheduler",
            Fault::AgentKilled => "agent killed, back",
            Fault::LogNotRead => "log not read",
            Fault::NoDescriptors => "descriptors exhausted",
        }
    }

    fn needs_filter(self) -> bool {
        matches!(
            self,
            Fault::ServerHalfOpen | Fault::PacketsLost | Fault::SchedulerHalfOpen
        )
    }
}

/// Whether packets may be dropped here: only in a network namespace that has nothing but loopback,
/// so that nobody else is in it.
pub fn may_drop_packets() -> bool {
    let devices = std::fs::read_dir("/sys/class/net");
    let alone =
        std::fs::read_to_string("/proc/net/dev").is_ok_and(|text| text.lines().count() == 3);
    devices.is_ok() && alone && run("iptables", &["-w", "-L", "-n"])
}

fn run(program: &str, args: &[&str]) -> bool {
    let command = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    command.is_ok_and(|status| status.success())
}

/// The faults of a seed, in order, for ever.
pub struct Plan {
    rng: Rng,
    from: Vec<Fault>,
}

impl Plan {
    pub fn new(seed: u64, packets: bool) -> Plan {
        let from = Fault::ALL
            .into_iter()
            .filter(|f| packets || !f.needs_filter());
        Plan {
            rng: Rng::with_seed(seed),
            from: from.collect(),
        }
    }

    /// One or two faults, how long each lasts, and how long it is calm before them.
    pub fn next(&mut self) -> (Duration, Vec<(Fault, Duration)>) {
        let calm = Duration::from_millis(self.rng.u64(3000..8000));
        let many = if self.rng.u8(0..5) == 0 { 2 } else { 1 };
        let faults = self.rng.choose_multiple(self.from.iter().copied(), many);
        let with_time = |fault| (fault, Duration::from_millis(self.rng.u64(500..5000)));
        (calm, faults.into_iter().map(with_time).collect())
    }
}

impl Stage {
    /// Makes it happen, and undoes it after this time.
    pub async fn happen(&self, fault: Fault, lasts: Duration) {
        self.ledger.fault(fault.name());
        match fault {
            Fault::ServerDies | Fault::ServerRestartsEmpty => {
                self.server.stop().await;
                if fault == Fault::ServerRestartsEmpty {
                    self.server.lose_models();
                }
                sleep(lasts).await;
                self.server_back().await;
            }
            Fault::HttpDies => {
                self.server.stop_http().await;
                sleep(lasts).await;
                self.server_back().await;
            }
            Fault::GrpcDies => {
                self.server.stop_grpc().await;
                sleep(lasts).await;
                self.server_back().await;
            }
            Fault::ServerWedged => {
                self.server.wedge();
                sleep(lasts).await;
                self.server.unwedge();
            }
            Fault::ServerHalfOpen | Fault::PacketsLost => {
                let ports = [self.server.http().port(), self.server.grpc().port()];
                let chance = (fault == Fault::PacketsLost).then_some("0.1");
                self.dropping(&ports, chance, lasts).await;
            }
            Fault::SchedulerHalfOpen => {
                let ports = self.scheduler_ports.map(|at| at.port());
                self.dropping(&ports, None, lasts).await;
            }
            Fault::SchedulerRestarts => {
                drop(self.scheduler.lock().await.take());
                sleep(lasts).await;
                self.start_scheduler().await;
            }
            Fault::SubscriptionsEnd => {
                if let Some(scheduler) = self.scheduler.lock().await.as_ref() {
                    scheduler.end_subscriptions();
                }
            }
            Fault::AgentKilled => {
                drop(self.agent.lock().await.take());
                sleep(lasts).await;
                self.start_agent().await;
            }
            Fault::LogNotRead => {
                self.reading.send_replace(false);
                sleep(lasts).await;
                self.reading.send_replace(true);
            }
            Fault::NoDescriptors => {
                let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid));
                let open = open.map_or(64, Iterator::count);
                self.limit_descriptors(open as u64 + 2);
                sleep(lasts).await;
                self.limit_descriptors(self.descriptors);
            }
        }
    }

    async fn server_back(&self) {
        while self.server.restart().await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// From outside, so that the shim finds fewer than it counted on.
    fn limit_descriptors(&self, limit: u64) {
        let (pid, limit) = (self.pid.to_string(), format!("--nofile={limit}:"));
        if !run("prlimit", &["--pid", &pid, &limit]) {
            self.ledger
                .violation("cannot set a limit with prlimit".into());
        }
    }

    async fn dropping(&self, ports: &[u16], chance: Option<&str>, lasts: Duration) {
        self.rules("-A", ports, chance);
        sleep(lasts).await;
        self.rules("-D", ports, chance);
    }

    fn rules(&self, what: &str, ports: &[u16], chance: Option<&str>) {
        for port in ports {
            for side in ["--dport", "--sport"] {
                let port = port.to_string();
                let mut args = vec!["-w", what, "INPUT", "-p", "tcp", side, &port];
                if let Some(chance) = chance {
                    args.extend([
                        "-m",
                        "statistic",
                        "--mode",
                        "random",
                        "--probability",
                        chance,
                    ]);
                }
                args.extend(["-j", "DROP"]);
                if !run("iptables", &args) {
                    self.ledger
                        .violation(format!("iptables {}", args.join(" ")));
                }
            }
        }
    }
}
