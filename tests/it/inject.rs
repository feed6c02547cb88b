//! `agent-shim inject` as a person starts it, and the pods that come of it.
//!
//! The manifests stand in `tests/it/inject/`; `UPDATE_GOLDEN=1` writes the expected ones anew.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent_shim::inject::manifest;
use agent_shim::inject::{self, Options, Skipped, Style};
use serde_json::Value;

use crate::support::merge::{self, container, variable};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/inject")
        .join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap()
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(args: &[&str], stdin: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_agent-shim"))
        .arg("inject")
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A command that was refused for its arguments reads nothing.
    let _ = pipe.write_all(stdin.as_bytes());
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder of its own that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("agent-shim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn json(yaml: &str) -> Value {
    let mut objects = objects(yaml);
    assert_eq!(objects.len(), 1);
    objects.remove(0)
}

/// The objects of a text, by the program's own reader.
fn objects(yaml: &str) -> Vec<Value> {
    manifest::values(yaml).unwrap()
}

const CASES: [(&str, &[&str]); 6] = [
    ("serverconfig", &[]),
    (
        "server",
        &["--plain", "--image", "registry.example/agent-shim:0.1.0"],
    ),
    ("mtls", &["--share-process-namespace", "--agent-watchdog"]),
    (
        "pod",
        &[
            "--set",
            "SHIM_LOG_FORMAT=json",
            "--observe",
            "--limits",
            "memory=96Mi",
        ],
    ),
    (
        "pod",
        &[
            "--plain",
            "--no-scheduler",
            "--requests",
            "none",
            "--limits",
            "none",
        ],
    ),
    ("serverconfig", &["--drain-hook", "--plain"]),
];

#[test]
fn every_manifest_becomes_the_expected_one_and_comes_back_byte_for_byte() {
    for (at, (name, flags)) in CASES.iter().enumerate() {
        let original = text(&format!("{name}.yaml"));
        let done = run(flags, &original);
        assert_eq!(done.code, 0, "{}", done.err);
        let golden = fixture(&format!("{at}-{name}.expected.yaml"));
        let both = format!("{}\n# stderr\n{}", done.out, done.err);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &both).unwrap();
        }
        assert_eq!(both, std::fs::read_to_string(&golden).unwrap(), "{name}");
        let again = run(flags, &done.out);
        assert_eq!(again.out, done.out, "{name} twice");
        assert_eq!(run(&[&["--check"], *flags].concat(), &done.out).code, 0);
        let back = run(&["--remove"], &done.out);
        assert_eq!((back.code, back.out), (0, original), "{name}");
    }
}

#[test]
fn check_says_what_is_missing_and_diff_shows_it() {
    let original = text("serverconfig.yaml");
    let check = run(&["--check"], &original);
    assert_eq!(check.code, 1);
    for line in [
        "spec.podSpec.initContainers is missing",
        "spec.podSpec.containers[agent].env[SELDON_SERVER_HTTP_PORT].value is \"9000\", expected \"9600\"",
    ] {
        assert!(check.out.contains(line), "{}", check.out);
    }
    let diff = run(&["--diff", "--quiet"], &original);
    assert_eq!((diff.code, diff.err.as_str()), (0, ""));
    assert!(
        diff.out.starts_with("--- a/stdin\n+++ b/stdin\n@@"),
        "{}",
        diff.out
    );
    let removed: Vec<&str> = diff
        .out
        .lines()
        .filter(|l| l.starts_with('-') && !l.starts_with("---"))
        .collect();
    assert_eq!(removed.len(), 4, "{removed:?}");
    // Injected with other settings: not complete for these.
    let done = run(&["--observe"], &original).out;
    let check = run(&["--check"], &done);
    assert_eq!(
        check.code, 0,
        "what is there besides is no fault: {}",
        check.out
    );
    let check = run(&["--check", "--set", "SHIM_DRAIN_TIME=90s"], &done);
    assert_eq!(check.code, 1);
    assert!(
        check.out.contains("[SHIM_DRAIN_TIME] is missing"),
        "{}",
        check.out
    );
}

#[test]
fn files_are_written_back_all_or_none() {
    let folder = Folder::new("in-place");
    let config = folder.file("config.yaml", &text("serverconfig.yaml"));
    let other = folder.file("other.yaml", "kind: Secret\n");
    let broken = folder.file("broken.yaml", "kind: Secret\n---\n# here\na: [1\n");
    let all = run(&["--in-place", &config, &other, &broken], "");
    assert_eq!(all.code, 1);
    assert!(
        all.err.contains("broken.yaml, document 2, line "),
        "{}",
        all.err
    );
    assert_eq!(
        std::fs::read_to_string(&config).unwrap(),
        text("serverconfig.yaml")
    );
    let good = run(&["--in-place", &config, &other], "");
    assert_eq!((good.code, good.out.as_str()), (0, ""));
    assert!(
        std::fs::read_to_string(&config)
            .unwrap()
            .contains("agent-shim")
    );
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "kind: Secret\n");
    assert_eq!(run(&["--in-place", "--remove", &config], "").code, 0);
    assert_eq!(
        std::fs::read_to_string(&config).unwrap(),
        text("serverconfig.yaml")
    );
    assert_eq!(
        std::fs::read_dir(&folder.0).unwrap().count(),
        3,
        "nothing is left behind"
    );
    // Several files become one stream.
    let out = folder.0.join("all.yaml");
    let one = run(&[&config, &other, "-o", out.to_str().unwrap()], "");
    assert_eq!(one.code, 0, "{}", one.err);
    assert_eq!(objects(&std::fs::read_to_string(out).unwrap()).len(), 2);
}

#[test]
fn mistakes_are_named() {
    for (args, code, said) in [
        (
            &["--set", "SHIM_MOD=observe"][..],
            2,
            "did you mean SHIM_MODE?",
        ),
        (
            &["--set", "SHIM_DRAIN_TIME=100"],
            2,
            "a duration with a unit",
        ),
        (&["--set", "SHIM_MODE"], 2, "expected NAME=VALUE"),
        (
            &["--scheduler", "seldon-scheduler"],
            2,
            "expected host:port",
        ),
        (&["--limits", "memory=1Mi"], 2, "above the limit"),
        (&["--limits", "disk=1Gi"], 2, "expected cpu=QUANTITY"),
        (&["--in-place"], 2, "not stdin"),
        (&["--plain", "--native"], 2, "cannot be used with"),
        (&["--image-pull-policy", "Sometimes"], 2, "IfNotPresent"),
        (&["/nowhere/x.yaml"], 1, "/nowhere/x.yaml: No such file"),
    ] {
        let ran = run(args, "");
        assert_eq!(ran.code, code, "{args:?} {}", ran.err);
        assert!(ran.err.contains(said), "{args:?} {}", ran.err);
    }
    let foreign = text("pod.yaml").replace("istio-proxy", "agent-shim");
    let ran = run(&[], &foreign);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("not put there by"), "{}", ran.err);
    let nothing = run(&["--check"], "kind: Secret\n");
    assert_eq!(nothing.code, 1);
    assert!(nothing.err.contains("nothing to do"), "{}", nothing.err);
}

/// The pod that the operator makes of a `ServerConfig` and a `Server`.
fn merged(config: &str, server: &str) -> Value {
    let server = objects(server).into_iter().find(|o| o["kind"] == "Server");
    merge::pod(&merge::merge(&json(config), &server.unwrap()))
}

#[test]
fn the_merged_pod_is_whole_whichever_of_the_two_was_injected() {
    let (config, server) = (text("serverconfig.yaml"), text("server.yaml"));
    for style in [Style::Native, Style::Plain] {
        let options = Options {
            style,
            ..Options::default()
        };
        let done = |text: &str| manifest::inject(text, &options).unwrap().text;
        for (which, pod) in [
            ("ServerConfig", merged(&done(&config), &server)),
            ("Server", merged(&config, &done(&server))),
        ] {
            let agent = container(&pod, "agent").unwrap();
            for (name, value) in [
                ("SELDON_SERVER_HTTP_PORT", "9600"),
                ("SELDON_SERVER_GRPC_PORT", "9650"),
                ("SELDON_SCHEDULER_HOST", "127.0.0.1"),
                ("SELDON_SCHEDULER_PORT", "9605"),
                ("SELDON_REVERSE_PROXY_HTTP_PORT", "9001"),
            ] {
                assert_eq!(variable(agent, name), Some(value), "{which} {name}");
            }
            assert_eq!(agent["image"], "registry.example/agent:2.9.1");
            let shim = container(&pod, "agent-shim").unwrap();
            assert_eq!(
                variable(shim, "SHIM_SCHEDULER"),
                Some("seldon-scheduler:9005")
            );
            assert_eq!(shim["restartPolicy"] == "Always", style == Style::Native);
            assert_eq!(shim["ports"].as_array().unwrap().len(), 1);
            for part in ["requests", "limits"] {
                for resource in ["cpu", "memory"] {
                    assert!(shim["resources"][part][resource].is_string());
                }
            }
            let names: Vec<&str> = ["containers", "initContainers"]
                .iter()
                .filter_map(|list| pod["spec"][list].as_array())
                .flatten()
                .map(|c| c["name"].as_str().unwrap())
                .collect();
            let mut once = names.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), names.len(), "{names:?}");
            assert_eq!(names.len(), 4);
            let server = container(&pod, "mlserver").unwrap();
            assert_eq!(server["resources"]["requests"]["memory"], "4Gi");
            // What travels to the pod in annotations is no reason to inject it again.
            let mut again = pod.clone();
            let report = inject::inject(&mut again, &options).unwrap();
            assert_eq!(report.skipped, Some(Skipped::Inherited(which.into())));
            assert_eq!(again, pod);
        }
    }
}

#[test]
fn a_merged_pod_can_be_injected_itself_and_all_of_it_is_removed() {
    let pod = merged(&text("serverconfig.yaml"), &text("server.yaml"));
    let mut done = pod.clone();
    let report = inject::inject(&mut done, &Options::default()).unwrap();
    assert!(report.changed);
    assert!(container(&done, "agent-shim").is_some());
    inject::remove(&mut done, &Options::default()).unwrap();
    assert_eq!(done.to_string(), pod.to_string());
}

#[test]
fn a_server_gets_no_shim_of_its_own_beside_its_server_config() {
    let both = format!("{}---\n{}", text("serverconfig.yaml"), text("server.yaml"));
    let done = run(&[], &both);
    assert_eq!(done.code, 0);
    assert!(
        done.err.contains(
            "Server/financial-ml/mlserver is left alone: its ServerConfig mlserver has the shim"
        ),
        "{}",
        done.err
    );
    assert!(done.out.ends_with(&text("server.yaml")));
    // One after the other they would have both: that is said.
    let server = run(&[], &text("server.yaml")).out;
    let twice = run(
        &["--check"],
        &format!("{}---\n{server}", text("serverconfig.yaml")),
    );
    assert!(
        twice.err.contains("warning[injected-twice]"),
        "{}",
        twice.err
    );
}
