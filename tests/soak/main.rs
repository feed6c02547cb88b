//! A long run: steady mixed load through one shim, faults at random by a seed, an account of every
//! call, and memory and descriptors that must stay flat. `make soak`; exit code 1 on any violation.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

mod callers;
mod faults;
mod ledger;
mod stage;
mod trend;

use faults::{Plan, may_drop_packets};
use ledger::Ledger;
use stage::Stage;
use trend::{Trend, grows, trend};

/// What memory may grow by between the end of the warm-up and the end of the run, in KiB. A leak
/// of one small buffer a connection is some ten times this in ten minutes.
const MEMORY_KIB: f64 = 768.0;
/// The same for descriptors, in calms.
const DESCRIPTORS: f64 = 8.0;

#[derive(Debug, Parser)]
#[command(about = "Runs the shim for long, under load and faults, and holds it to its account")]
struct Args {
    /// For how long, in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What decides the faults and their order; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// The program
    #[arg(long, default_value = "target/debug/agent-shim")]
    shim: PathBuf,
    /// Where the report goes, as JSON
    #[arg(long, default_value = "target/soak.json")]
    json: PathBuf,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    minutes: f64,
    calm: bool,
    anon_kib: f64,
    rss_kib: f64,
    descriptors: f64,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let packets = may_drop_packets();
    println!(
        "soak: {} for {} min, seed {seed}",
        args.shim.display(),
        args.minutes
    );
    if !packets {
        println!(
            "soak: SKIPPED, NOT CHECKED: half-open and lossy links: not in a network namespace of its own with iptables"
        );
    }
    let ledger = Ledger::new();
    let mut tasks = JoinSet::new();
    let stage = match Stage::set(&args.shim, ledger.clone(), &mut tasks).await {
        Ok(stage) => Arc::new(stage),
        Err(error) => {
            eprintln!(
                "soak: cannot start {}: {error}; build it first (`cargo build`)",
                args.shim.display()
            );
            return ExitCode::FAILURE;
        }
    };
    stage.recovered("the start").await;
    let mut load = JoinSet::new();
    callers::start(&mut load, stage.ports, &ledger);
    let (models, account) = (stage.clone(), stage.clone());
    load.spawn(async move { models.models().await });
    tasks.spawn(async move { account.account().await });
    let end = Instant::now() + Duration::from_secs_f64(args.minutes * 60.0);
    // A fault that is under way at the end ends in order, too.
    let limit = Duration::from_secs_f64(args.minutes * 60.0 + 180.0);
    let plan = Plan::new(seed, packets);
    let (samples, ended) = tokio::join!(
        watch(&stage, end),
        timeout(limit, weather(stage.clone(), plan, end))
    );
    if ended.is_err() {
        ledger.violation("the last fault did not end".into());
    }
    ledger.calm(false);
    load.shutdown().await;
    sleep(Duration::from_secs(2)).await;
    finish(&stage).await;
    tasks.shutdown().await;
    let report = report(&args, seed, &ledger, &samples);
    tell(&args, &report)
}

/// Calm and faults in turn, until the end.
async fn weather(stage: Arc<Stage>, mut plan: Plan, end: Instant) {
    loop {
        let (calm, faults) = plan.next();
        stage.ledger.calm(true);
        sleep(calm).await;
        if Instant::now() >= end {
            return;
        }
        stage.ledger.calm(false);
        let names: Vec<&str> = faults.iter().map(|(f, _)| f.name()).collect();
        let names = names.join(" + ");
        println!("soak: {:6.2} min: {names}", stage.ledger.minutes());
        let mut all = JoinSet::new();
        for (fault, lasts) in faults {
            let stage = stage.clone();
            all.spawn(async move { stage.happen(fault, lasts).await });
        }
        while all.join_next().await.is_some() {}
        stage.recovered(&names).await;
    }
}

async fn watch(stage: &Stage, end: Instant) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut ticks = interval(Duration::from_secs(2));
    while Instant::now() < end {
        ticks.tick().await;
        if let Ok(Some(code)) = stage.child.lock().await.try_wait() {
            stage
                .ledger
                .violation(format!("the shim has ended: {code}"));
            return samples;
        }
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", stage.pid)).unwrap_or_default();
        let kib = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse().ok())
                .unwrap_or(0.0)
        };
        let open = std::fs::read_dir(format!("/proc/{}/fd", stage.pid)).map_or(0, Iterator::count);
        samples.push(Sample {
            minutes: stage.ledger.minutes(),
            calm: stage.ledger.is_calm(),
            anon_kib: kib("RssAnon:"),
            rss_kib: kib("VmRSS:"),
            descriptors: open as f64,
        });
    }
    samples
}

/// SIGTERM, with no caller left: it must end by itself, and well.
async fn finish(stage: &Stage) {
    drop(stage.agent.lock().await.take());
    let pid = stage.pid.to_string();
    let told = std::process::Command::new("kill").arg(&pid).status();
    let mut child = stage.child.lock().await;
    match timeout(Duration::from_secs(20), child.wait()).await {
        Ok(Ok(code)) if code.success() && told.is_ok() => {}
        Ok(code) => stage
            .ledger
            .violation(format!("the end after SIGTERM: {code:?}")),
        Err(_) => stage
            .ledger
            .violation("no end within 20 s of SIGTERM".into()),
    }
}

fn shown(trend: Option<Trend>) -> Value {
    trend.map_or(Value::Null, |t| {
        let round = |x: f64| (x * 100.0).round() / 100.0;
        json!({"samples": t.samples, "slope_per_minute": round(t.per_minute), "median_first_third": t.first, "median_last_third": t.last})
    })
}

fn report(args: &Args, seed: u64, ledger: &Ledger, samples: &[Sample]) -> Value {
    // A quarter of the run, and 3 minutes at most, until every buffer has been as large as it gets.
    let warm = (args.minutes / 4.0).min(3.0);
    let of = |value: fn(&Sample) -> f64, calm_only: bool| {
        let kept = samples
            .iter()
            .filter(|s| s.minutes >= warm && (s.calm || !calm_only));
        trend(&kept.map(|s| (s.minutes, value(s))).collect::<Vec<_>>())
    };
    let memory = of(|s| s.anon_kib, false);
    let descriptors = of(|s| s.descriptors, true);
    for (what, trend, allowed) in [
        ("memory (RssAnon, KiB)", &memory, MEMORY_KIB),
        ("descriptors", &descriptors, DESCRIPTORS),
    ] {
        match trend {
            Some(trend) => {
                if let Some(why) = grows(trend, args.minutes - warm, allowed) {
                    ledger.violation(format!("{what} {why}"));
                }
            }
            None => println!("soak: SKIPPED, NOT CHECKED: the trend of {what}: too short a run"),
        }
    }
    let most = |value: fn(&Sample) -> f64| samples.iter().map(value).fold(0.0, f64::max);
    let mut report = ledger.report();
    report["seed"] = json!(seed);
    report["minutes"] = json!(args.minutes);
    report["shim"] = json!(args.shim);
    report["memory_kib"] = shown(memory);
    report["memory_kib"]["most_anon"] = json!(most(|s| s.anon_kib));
    report["memory_kib"]["most_rss"] = json!(most(|s| s.rss_kib));
    let series = samples
        .iter()
        .map(|s| json!([s.minutes, s.anon_kib, s.descriptors]));
    report["samples_minutes_kib_descriptors"] = series.collect();
    report["descriptors"] = shown(descriptors);
    report["descriptors"]["most"] = json!(most(|s| s.descriptors));
    report
}

fn tell(args: &Args, report: &Value) -> ExitCode {
    println!("soak: calls");
    for (kind, counts) in report["calls"].as_object().unwrap() {
        println!("  {kind:<18} {counts}");
    }
    println!("soak: faults");
    for (fault, n) in report["faults"].as_object().unwrap() {
        println!("  {n:>3} x {fault}");
    }
    println!("soak: memory in KiB: {}", report["memory_kib"]);
    println!("soak: descriptors:   {}", report["descriptors"]);
    if let Err(error) = std::fs::write(&args.json, format!("{report:#}\n")) {
        eprintln!("soak: {}: {error}", args.json.display());
        return ExitCode::FAILURE;
    }
    let violations = report["violations"].as_array().unwrap();
    for violation in violations {
        println!("soak: VIOLATION {}", violation.as_str().unwrap());
    }
    println!(
        "soak: {} violations, seed {}, report in {}",
        violations.len(),
        report["seed"],
        args.json.display()
    );
    if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
