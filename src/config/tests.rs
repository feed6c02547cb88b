//! Every rule of the environment, and the README's table.

use super::variables::join;
use super::*;
use crate::capacity::Reserve;
use proptest::prelude::*;

fn load(pairs: &[(&str, &str)]) -> Result<Loaded, Problems> {
    load_from(pairs.iter().copied())
}

#[test]
fn an_empty_environment_gives_the_documented_defaults() {
    let loaded = load(&[]).unwrap();
    for (variable, value, origin) in loaded.effective() {
        assert_eq!(value, variable.default, "{}", variable.name);
        assert_eq!(origin, "default");
    }
}

#[test]
fn the_pods_addresses_follow_the_configured_hosts_without_repeats() {
    let loaded = load(&[
        ("POD_IPS", "10.1.2.3,fd00::3"),
        ("POD_IP", "10.1.2.3"),
        ("SHIM_INFERENCE_HOSTS", "[::1], localhost"),
    ])
    .unwrap();
    assert_eq!(join(&loaded.config.hosts), "::1,localhost,10.1.2.3,fd00::3");
}

#[test]
fn every_problem_is_reported_at_once_with_variable_value_and_accepted_form() {
    let text = load(&[
        ("SHIM_MODE", "fix"),
        ("SHIM_INFERENCE_HTTP_PORT", "70000"),
        ("SHIM_INFERENCE_GRPC_PORT", "0"),
        ("SHIM_PROBE_RISE", "0"),
        ("SHIM_PROBE_TIMEOUT", "2s"),
        ("SHIM_OUTAGE_GRACE", "20"),
        ("SHIM_RELAY_LISTEN", "localhost"),
        ("SHIM_LOG", "info,x=loud"),
        ("POD_IP", "none"),
    ])
    .unwrap_err()
    .to_string();
    for part in [
        "8 problem(s)".replace('8', "9").as_str(),
        r#"SHIM_MODE="fix": expected correct or observe"#,
        r#"SHIM_INFERENCE_HTTP_PORT="70000": expected a port"#,
        r#"SHIM_INFERENCE_GRPC_PORT="0": expected a port"#,
        r#"SHIM_PROBE_RISE="0": expected a whole number from 1 to 100"#,
        r#"SHIM_PROBE_TIMEOUT="2s": expected at most SHIM_PROBE_INTERVAL (1s)"#,
        r#"SHIM_OUTAGE_GRACE="20": expected 0s, or a duration with a unit"#,
        r#"SHIM_RELAY_LISTEN="localhost": expected IP addresses"#,
        r#"SHIM_LOG="info,x=loud": expected a level"#,
        r#"POD_IP="none": expected IP addresses"#,
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn empty_values_count_as_unset() {
    let loaded = load(&[("SHIM_PROBE_RISE", ""), ("SHIM_LOG", " "), ("POD_IP", "")]).unwrap();
    assert_eq!(loaded.config, load(&[]).unwrap().config);
    assert!(loaded.from_environment.is_empty());
}

#[test]
fn unknown_names_are_warned_about_with_the_nearest_known_one() {
    let loaded = load(&[
        ("SHIM_PROB_INTERVAL", "1s"),
        ("SHIM_ZZZZZZZZZZZZZZZZ", "1"),
        ("OTHER", "x"),
    ])
    .unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "SHIM_PROB_INTERVAL is not a variable of agent-shim: did you mean SHIM_PROBE_INTERVAL?",
            "SHIM_ZZZZZZZZZZZZZZZZ is not a variable of agent-shim: ignored",
        ]
    );
}

#[test]
fn memory_and_capabilities_are_read_with_their_rules() {
    let loaded = load(&[
        ("SHIM_MEMORY_BYTES", "4Gi"),
        ("SHIM_MEMORY_RESERVED", "10%"),
        ("SHIM_MEMORY_REQUEST", "2147483648"),
        ("SHIM_MEMORY_LIMIT", "0"),
        ("SHIM_CAPABILITIES", "explicit"),
        ("SHIM_CAPABILITIES_LIST", " sklearn, gpu-a100,"),
        ("SHIM_CAPABILITIES_FILE", "/run/shim/list"),
    ])
    .unwrap()
    .config;
    assert_eq!(loaded.memory.policy.explicit, Some(4 << 30));
    assert_eq!(loaded.memory.policy.reserve, Reserve::Percent(10));
    assert_eq!(
        (loaded.memory.request, loaded.memory.limit),
        (Some(2 << 30), Some(0))
    );
    assert_eq!(loaded.capabilities.policy.list, ["sklearn", "gpu-a100"]);
    let text = load(&[
        ("SHIM_MEMORY_BYTES", "1Gi"),
        ("SHIM_MEMORY_RESERVED", "1Gi"),
        ("SHIM_MEMORY_BASIS", "most"),
        ("SHIM_MEMORY_LIMIT", "4GB"),
        ("SHIM_MEMORY_NODE_FRACTION", "80%"),
        ("SHIM_CAPABILITIES", "explicit"),
        ("SHIM_CAPABILITIES_FILE", "list"),
        ("SHIM_CAPABILITIES_PROBE", "yes"),
    ])
    .unwrap_err()
    .to_string();
    for part in [
        "the configuration has 7 problem(s)",
        r#"SHIM_MEMORY_RESERVED="1073741824": expected less than SHIM_MEMORY_BYTES"#,
        r#"SHIM_MEMORY_BASIS="most": expected request, limit or auto"#,
        r#"SHIM_MEMORY_LIMIT="4GB": expected bytes as a Kubernetes quantity"#,
        r#"SHIM_MEMORY_NODE_FRACTION="80%": expected a number above 0"#,
        r#"SHIM_CAPABILITIES="explicit": expected SHIM_CAPABILITIES_LIST to be set"#,
        r#"SHIM_CAPABILITIES_FILE="list": expected an absolute path"#,
        r#"SHIM_CAPABILITIES_PROBE="yes": expected true or false"#,
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let zero = load(&[("SHIM_MEMORY_BYTES", "0")]).unwrap_err();
    assert_eq!(zero.0.len(), 1, "a total of 0 is never meant");
    for share in ["100%", "-1%", "1.5%", "%"] {
        assert!(load(&[("SHIM_MEMORY_RESERVED", share)]).is_err(), "{share}");
    }
}

#[test]
fn a_kubernetes_service_link_is_ignored_with_a_warning() {
    let loaded = load(&[("SHIM_ADMIN_PORT", "tcp://10.0.0.1:9680")]).unwrap();
    assert_eq!(loaded.config.admin_port, 9680);
    assert!(
        loaded.warnings[0].contains("service link"),
        "{:?}",
        loaded.warnings
    );
}

#[test]
fn the_shim_refuses_to_dial_itself_and_to_bind_one_port_twice() {
    let text = load(&[
        ("SHIM_INFERENCE_HTTP_PORT", "9600"),
        ("SHIM_RELAY_GRPC_PORT", "9680"),
    ])
    .unwrap_err()
    .to_string();
    assert!(text.contains("would dial itself"), "{text}");
    assert!(text.contains("SHIM_ADMIN_PORT=\"9680\""), "{text}");
    // The relay may share the server's port on another address.
    load(&[
        ("SHIM_INFERENCE_HOSTS", "10.0.0.9"),
        ("SHIM_INFERENCE_HTTP_PORT", "9600"),
    ])
    .unwrap();
}

#[test]
fn a_value_that_is_no_text_is_a_problem_of_that_variable() {
    use std::os::unix::ffi::OsStringExt;
    let bad = OsString::from_vec(vec![0xff]);
    let error = load_from([(OsString::from("SHIM_LOG"), bad)]).unwrap_err();
    assert_eq!(error.0[0].expected, "UTF-8 text");
}

#[test]
fn the_readme_has_the_table_of_the_code() {
    let readme = include_str!("../../README.md");
    assert!(
        readme.contains(&markdown_table()),
        "README.md does not hold the table of variables; `agent-shim config --markdown` prints it"
    );
}

proptest! {
    #[test]
    fn no_environment_panics(values in prop::collection::vec((0usize..48, ".{0,12}"), 0..12)) {
        let pairs: Vec<(String, String)> = values.into_iter().map(|(i, value)| {
            let name = VARIABLES.get(i).map_or("POD_IPS", |v| v.name);
            (name.to_string(), value)
        }).collect();
        let _ = load_from(pairs);
    }
}
