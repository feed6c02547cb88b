//! What the system is asked for: namespaces, packet filters, limits. All of it by the programs that
//! a person would use, so that there is no unsafe code; all of it ends with its process.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Set in the process that runs a test in namespaces of its own.
const ALONE: &str = "AGENT_SHIM_TEST_ALONE";

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// Network and mount namespaces of its own, which only root has.
    Namespaces,
    /// Packets dropped by a rule, in a network namespace.
    Filter,
    /// A link through a program, which delays and loses packets.
    Link,
    /// A limit on the number of descriptors.
    Limits,
    /// A limit on memory, by a control group.
    Memory,
    /// A clock that says what a file says.
    Clock,
}

impl Means {
    /// Why it is not there; `None` where it is.
    fn lacking(self) -> Option<String> {
        match self {
            Means::Namespaces => fails("unshare", &["--net", "--mount", "true"]),
            Means::Filter => fails(
                "unshare",
                &[
                    "--net", "iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP",
                ],
            ),
            Means::Link => Means::Namespaces
                .lacking()
                .or_else(|| {
                    let there = Path::new("/dev/net/tun").exists();
                    (!there).then(|| "no /dev/net/tun".into())
                })
                .or_else(|| fails("ip", &["-V"]))
                .or_else(|| fails("python3", &["-c", "import fcntl"])),
            Means::Limits => fails("prlimit", &["--nofile=64:64", "true"]),
            Means::Memory => super::means::cgroup("probe", 64 << 20).err(),
            Means::Clock => faketime()
                .is_none()
                .then(|| "no libfaketime (Debian: apt-get install libfaketime)".to_string()),
        }
    }
}

/// Whether all of these are there; says loudly which check is not made where one is not.
pub fn has(check: &str, needs: &[Means]) -> bool {
    for means in needs {
        if let Some(why) = means.lacking() {
            loud(&format!(
                "\nSKIPPED, NOT CHECKED: {check}: this machine lacks {means:?}: {why}\n"
            ));
            return false;
        }
    }
    true
}

/// Says something at once and in any case: what `eprintln!` says, the test runner keeps to itself
/// when a test passes, and shows at its very end when one fails.
pub fn loud(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn fails(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
    {
        Ok(Output { status, .. }) if status.success() => None,
        Ok(output) => Some(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("{program}: {error}")),
    }
}

/// Runs a command that must succeed.
pub fn run(program: &str, args: &[&str]) {
    if let Some(why) = fails(program, args) {
        panic!("{program} {}: {why}", args.join(" "));
    }
}

/// Runs the body in a process with a network of its own (loopback alone, up) and mounts of its
/// own; in this process it only waits for that. `name` is the test's whole path.
pub fn alone(name: &str, needs: &[Means], body: impl Future<Output = ()>) {
    if std::env::var_os(ALONE).is_some_and(|it| it == name) {
        run("ip", &["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body);
        return;
    }
    if !has(name, needs) || !has(name, &[Means::Namespaces]) {
        return;
    }
    let test = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--kill-child"])
        .arg(test)
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, name)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    // What it shows is shown here, too.
    match output.status.success() {
        true => eprint!("{err}"),
        false => loud(&err),
    }
    assert!(output.status.success(), "alone, {name}:\n{out}");
    assert!(out.contains("1 passed"), "no test is called {name}:\n{out}");
}

/// A rule of the packet filter of this network namespace; taken back when dropped.
#[derive(Debug)]
pub struct Dropped(Vec<Vec<String>>);

impl Dropped {
    /// From now on no packet to or from this address arrives, whatever was established before.
    pub fn all(at: std::net::SocketAddr) -> Dropped {
        Dropped::some(at, None)
    }

    /// As [`Dropped::all`], each packet by this chance.
    pub fn some(at: std::net::SocketAddr, chance: Option<f64>) -> Dropped {
        let (ip, port) = (at.ip().to_string(), at.port().to_string());
        let mut rules = Vec::new();
        for (address, side) in [("-d", "--dport"), ("-s", "--sport")] {
            let mut rule: Vec<String> = ["INPUT", address, &ip, "-p", "tcp", side, &port]
                .map(String::from)
                .into();
            if let Some(chance) = chance {
                let chance = chance.to_string();
                let random = ["-m", "statistic", "--mode", "random", "--probability"];
                rule.extend(random.map(String::from));
                rule.push(chance);
            }
            rule.extend(["-j", "DROP"].map(String::from));
            rules.push(rule);
        }
        for rule in &rules {
            table("-A", rule);
        }
        Dropped(rules)
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        for rule in &self.0 {
            table("-D", rule);
        }
    }
}

fn table(what: &str, rule: &[String]) {
    let mut args = vec!["-w", what];
    args.extend(rule.iter().map(String::as_str));
    run("iptables", &args);
}

/// Where Debian and others have the library.
pub fn faketime() -> Option<&'static str> {
    [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/faketime/libfaketimeMT.so.1",
        "/usr/lib64/faketime/libfaketimeMT.so.1",
    ]
    .into_iter()
    .find(|path| Path::new(path).exists())
}

/// A control group with a memory limit; removed when dropped, after its last process.
#[derive(Debug)]
pub struct Cgroup {
    folder: std::path::PathBuf,
    second: bool,
}

/// Makes one, of either version of the kernel's interface.
pub fn cgroup(name: &str, limit: u64) -> Result<Cgroup, String> {
    let first = Path::new("/sys/fs/cgroup/memory");
    let second = !first.exists();
    let root = if second {
        Path::new("/sys/fs/cgroup")
    } else {
        first
    };
    let folder = root.join(format!("agent-shim-test-{}-{name}", std::process::id()));
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir(&folder).map_err(failed)?;
    let made = Cgroup {
        folder: folder.clone(),
        second,
    };
    made.limit(limit).map_err(failed)?;
    Ok(made)
}

impl Cgroup {
    /// Another limit, in bytes. Fails where so much is in use and cannot be given back.
    pub fn limit(&self, bytes: u64) -> std::io::Result<()> {
        let file = match self.second {
            true => "memory.max",
            false => "memory.limit_in_bytes",
        };
        std::fs::write(self.folder.join(file), bytes.to_string())
    }

    /// A shell's words that put the shell, and what it becomes, into the group.
    pub fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.folder.display())
    }

    /// How often something was killed, or had to wait for memory at the limit: `(killed, at the limit)`.
    pub fn events(&self) -> (u64, u64) {
        let number = |text: &str, key: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(key));
            line.and_then(|l| l.trim().parse().ok()).unwrap_or(0)
        };
        let read = |file: &str| std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        if self.second {
            let events = read("memory.events");
            return (number(&events, "oom_kill "), number(&events, "max "));
        }
        let failed = read("memory.failcnt").trim().parse().unwrap_or(0);
        (number(&read("memory.oom_control"), "oom_kill "), failed)
    }

    /// The most that was ever in use, the kernel's part and the page cache included.
    pub fn peak(&self) -> Option<u64> {
        let file = if self.second {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        let text = std::fs::read_to_string(self.folder.join(file)).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the kernel has let go of its last process, which is a moment after that ended.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            let _ = fails("sleep", &["0.02"]);
        }
    }
}

/// The addresses of a link: this end, and the one that leads back to it over the link. For
/// documentation by their standard, so nobody has them.
pub const NEAR: [u8; 4] = [192, 0, 2, 1];
/// See [`NEAR`].
pub const FAR: [u8; 4] = [192, 0, 2, 2];

/// A link in this network namespace that delays each packet, in each direction, and loses some.
/// Dropped, it is gone.
#[derive(Debug)]
pub struct Link(std::process::Child);

impl Link {
    pub fn up(delay: std::time::Duration, loss: f64) -> Link {
        let (delay, loss) = (delay.as_secs_f64().to_string(), loss.to_string());
        let mut child = Command::new("python3")
            .args(["-c", include_str!("link.py"), "shimlink", &delay, &loss])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        let mut out = child.stdout.take().unwrap();
        std::io::Read::read_exact(&mut out, &mut said).unwrap();
        assert_eq!(&said, b"ready\n");
        run("ip", &["addr", "add", "192.0.2.1/24", "dev", "shimlink"]);
        run("ip", &["link", "set", "shimlink", "mtu", "1400", "up"]);
        Link(child)
    }

    /// Another delay, in seconds, and another chance of a loss, for packets from now on.
    pub fn set(&mut self, delay: &str, loss: &str) {
        let pipe = self.0.stdin.as_mut().unwrap();
        writeln!(pipe, "{delay} {loss}").unwrap();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
