//! `agent-shim status`: the `/status` of a running shim as a table that a person can read.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::print;
use crate::admin::status::Document;
use crate::readiness::NAMES;
use crate::worker;

/// Arguments of `agent-shim status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where the shim's admin port is; by default that of this pod
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// Print the JSON document as it came
    #[arg(long)]
    pub json: bool,
    /// How long to wait for the answer
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// The admin URL of this pod, from the same settings as the sidecar's.
pub fn own_admin() -> String {
    let port = crate::config::load().map_or(9680, |loaded| loaded.config.admin_port);
    format!("http://127.0.0.1:{port}")
}

/// Runs the command.
pub async fn main(args: StatusArgs) -> ExitCode {
    let admin = args.admin.unwrap_or_else(own_admin);
    let text = match fetch(&admin, args.timeout).await {
        Ok(text) => text,
        Err(why) => {
            return super::failed(&why);
        }
    };
    if args.json {
        return print::out(&format!("{text}\n"), ExitCode::SUCCESS);
    }
    match serde_json::from_str::<Document>(&text) {
        Ok(document) => print::out(&table(&document), ExitCode::SUCCESS),
        Err(error) => super::failed(&format!(
            "{admin}/status did not answer with the status of an agent-shim: {error}"
        )),
    }
}

/// The `/status` of the shim at an admin URL, or why there is none.
pub async fn fetch(admin: &str, limit: Duration) -> Result<String, String> {
    let url = format!("{}/status", admin.trim_end_matches('/'));
    let explain = |error: reqwest::Error| {
        format!(
            "no answer from {url}: {}; is the shim running there? (--admin URL names another place)",
            crate::prober::connect::innermost(&error)
        )
    };
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(limit)
        .build()
        .map_err(explain)?;
    let answer = client.get(&url).send().await.map_err(explain)?;
    if !answer.status().is_success() {
        return Err(format!("{url} answered {}", answer.status()));
    }
    answer.text().await.map_err(explain)
}

/// The table, 80 columns wide where the content allows.
pub fn table(d: &Document) -> String {
    let mut out = String::new();
    // As /readyz has it: what lies beyond the pod decides nothing.
    let local = |name: &str| NAMES.contains(&name) || name == worker::CONDITION;
    let ready = d.conditions.iter().all(|c| c.status || !local(&c.name));
    let verdict = if ready { "READY" } else { "NOT READY" };
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "agent-shim {} ({})  mode {}",
        d.build.version, verdict, d.mode
    );
    if let Some(server) = &d.server {
        let _ = writeln!(
            out,
            "server     {} {}",
            server.metadata.name, server.metadata.version
        );
    }
    let _ = writeln!(
        out,
        "\n{:<6}{:<9}{:<28}{:<9}{:<18}{:>8}",
        "USED", "PROTOCOL", "ENDPOINT", "STATE", "REASON", "LATENCY"
    );
    for e in &d.endpoints {
        let selected = match e.protocol.as_str() {
            "http" => &d.selection.http,
            _ => &d.selection.grpc,
        };
        let used = if selected.as_deref() == Some(e.host.as_str()) {
            "  *"
        } else {
            ""
        };
        let host = if e.host.contains(':') {
            format!("[{}]", e.host)
        } else {
            e.host.clone()
        };
        let latency = match (e.state.as_str(), e.latency_ms) {
            ("up", Some(ms)) => format!("{ms:.2}ms"),
            _ => String::new(),
        };
        let _ = writeln!(
            out,
            "{used:<6}{:<9}{:<28}{:<9}{:<18}{latency:>8}",
            e.protocol,
            format!("{host}:{}", e.port),
            e.state,
            e.reason.as_deref().unwrap_or("-"),
        );
    }
    let _ = writeln!(out, "\n{:<18}{:<8}REASON", "CONDITION", "HOLDS");
    for c in &d.conditions {
        let holds = if c.status { "yes" } else { "NO" };
        let _ = writeln!(out, "{:<18}{holds:<8}{}", c.name, wrapped(&c.reason, 26));
    }
    findings(&mut out, d);
    capacity(&mut out, d);
    if !d.models.is_empty() {
        let _ = writeln!(out, "\n{:<40}{:<12}STATE", "MODEL", "VERSION");
        for m in &d.models {
            let version = if m.version.is_empty() {
                "-"
            } else {
                &m.version
            };
            let _ = writeln!(out, "{:<40}{version:<12}{}", m.name, m.state);
        }
    }
    let trimmed: Vec<&str> = out.lines().map(str::trim_end).collect();
    trimmed.join("\n") + "\n"
}

/// What is wrong, and the fix.
fn findings(out: &mut String, d: &Document) {
    if d.findings.is_empty() {
        return;
    }
    // Writing to a string cannot fail.
    let _ = writeln!(out, "\n{:<8}{:<10}WHAT, AND THE FIX", "FINDING", "SEVERITY");
    for f in &d.findings {
        let text = format!("{}: {}", f.name, f.text);
        let _ = writeln!(out, "{:<8}{:<10}{}", f.rule, f.severity, wrapped(&text, 18));
        let _ = writeln!(out, "{:<18}fix: {}", "", wrapped(&f.fix, 23));
    }
}

/// Capacity and capabilities: requested, observed, reported, believed.
fn capacity(out: &mut String, d: &Document) {
    let bytes = |figure: Option<u64>| match figure {
        Some(bytes) => crate::capacity::quantity::shown(bytes),
        None => "-".into(),
    };
    let c = &d.capacity;
    let source = c.sources.iter().find(|s| s.chosen);
    let _ = writeln!(out, "\n{:<12}{:<14}FROM", "CAPACITY", "BYTES");
    let observed = source.map_or("", |s| s.source.as_str());
    for (name, figure, from) in [
        ("requested", c.requested, "the agent"),
        ("observed", c.observed, observed),
        ("reported", c.reported, c.why.as_deref().unwrap_or("")),
        ("believed", c.believed, "the scheduler"),
        ("used", c.used, "the server's processes"),
    ] {
        let from = if figure.is_some() { from } else { "" };
        let _ = writeln!(out, "{name:<12}{:<14}{}", bytes(figure), wrapped(from, 26));
    }
    let k = &d.capabilities;
    if k.requested.is_empty() && k.reported.is_empty() {
        return;
    }
    let kept: Vec<String> = k
        .requested
        .iter()
        .filter(|name| k.reported.contains(name))
        .cloned()
        .collect();
    let _ = writeln!(out, "\nCAPABILITIES");
    for (name, list) in [
        ("kept", &kept),
        ("added", &k.added),
        ("aliased", &k.aliased),
        ("dropped", &k.dropped),
        ("missing", &k.missing),
    ] {
        if !list.is_empty() {
            let _ = writeln!(out, "{name:<12}{}", wrapped(&list.join(", "), 12));
        }
    }
}

/// Breaks text at blanks so that it fits into 80 columns behind an indent.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for word in text.split(' ') {
        if column > indent && column + word.len() > 80 {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if column > indent {
            out.push(' ');
        }
        out.push_str(word);
        column += word.len() + 1;
    }
    out
}
