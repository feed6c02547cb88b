//! Texts in, texts out.

use super::*;

const POD: &str = r#"# a team's pod
apiVersion: v1
kind: Pod
metadata:
  name: mlserver-0   # the first
spec:
  terminationGracePeriodSeconds: 120
  containers:
    - name: agent
      image: 'agent:1'
      env:
        - name: SELDON_SERVER_HTTP_PORT
          value: '9000' # the server
        # the other one
        - {name: SELDON_SERVER_GRPC_PORT, value: "9500"}
        - name: SELDON_SCHEDULER_HOST
          value: seldon-scheduler
        - name: MODE
          value: "0o644"
      args: [ "--a",   '--b' ]

    # the server
    - name: mlserver
      image: mlserver
      command:
        - sh
        - -c
        - |
          exec mlserver start /mnt

      resources: {requests: {cpu: 1, memory: 1G}}
# the end
"#;

fn round_trip(text: &str) -> String {
    let options = Options::default();
    let done = inject(text, &options).unwrap();
    assert!(done.applies(), "{:?}", done.reports);
    assert_ne!(done.text, text);
    let again = inject(&done.text, &options).unwrap();
    assert_eq!(again.text, done.text);
    assert!(again.reports.iter().all(|f| !f.report.changed));
    let back = remove(&done.text, &options).unwrap();
    assert_eq!(back.text, text);
    done.text
}

#[test]
fn comments_quotes_and_order_stay_and_the_text_comes_back() {
    let text = round_trip(POD);
    for kept in [
        "# a team's pod",
        "name: mlserver-0   # the first",
        "image: 'agent:1'",
        "value: '9600' # the server",
        "# the other one",
        r#"- {name: SELDON_SERVER_GRPC_PORT, value: "9650"}"#,
        r#"args: [ "--a",   '--b' ]"#,
        "value: 127.0.0.1\n",
        r#"value: "0o644""#,
        "resources: {requests: {cpu: 1, memory: 1G}}",
        "          exec mlserver start /mnt\n\n      resources",
    ] {
        assert!(text.contains(kept), "{kept}\n{text}");
    }
    assert!(!text.contains("\"text\""), "no hint is needed here\n{text}");
}

/// The rest of a pod around an `agent` container's body.
fn pod(agent: &str, rest: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  terminationGracePeriodSeconds: 120\n  containers:\n  - name: agent\n{agent}  - name: mlserver\n    image: m\n{rest}"
    )
}

#[test]
fn every_way_to_write_it_is_changed_in_place_and_comes_back() {
    let env = "    env:\n    - name: SELDON_SERVER_HTTP_PORT\n      value: \"9000\"\n";
    for text in [
        pod("", ""),
        pod(env, ""),
        // Empty in every way.
        pod("    env: []\n", "  initContainers: [ ]  # none\n"),
        pod(
            "    env:\n    image: a\n",
            "  initContainers:\n  volumes: ~\n",
        ),
        pod("    env: null # later\n", "  initContainers: null\n"),
        // Blocks that end in unusual ways.
        pod(env, "    args:\n    - |+\n      kept\n\n\n"),
        pod(
            env,
            "    args:\n    - >-\n      folded\n      text\n\n# end",
        ),
        pod(env, "  nodeSelector:\n    a: b").trim_end().to_string(),
        // Flow, on one line and on several, with a comma at the end.
        pod(
            "    env: [{name: A, value: b}, {\"name\": \"SELDON_SERVER_GRPC_PORT\", \"value\": '1'}]\n",
            "",
        ),
        pod(
            "    env: [\n      {name: A, value: b}, # one\n      {name: B, value: c},\n    ]\n",
            "",
        ),
        // A value that comes from elsewhere, and one that is a block of text.
        pod(
            "    env:\n    - name: SELDON_SCHEDULER_HOST\n      valueFrom: # there\n        configMapKeyRef:\n          key: h  # h\n          name: c\n",
            "",
        ),
        pod(
            "    env:\n    - name: SELDON_SCHEDULER_HOST\n      value: |-\n        scheduler\n",
            "",
        ),
        pod(
            "    env:\n    - value: !!str 9000\n      name: SELDON_SERVER_HTTP_PORT\n",
            "",
        ),
        pod(env, "").replace('\n', "\r\n"),
        format!("\u{feff}---\n# first\n{}", pod(env, "")),
        format!("{}---\n{}...\n", pod(env, ""), pod("", "")),
        format!("%YAML 1.1\n---\n{}", pod(env, "")),
    ] {
        let out = round_trip(&text);
        assert!(out.contains("9600"), "{out}");
        if text.contains("\r\n") {
            assert!(!out.replace("\r\n", "").contains('\n'), "{out:?}");
        }
    }
}

#[test]
fn anchors_that_stand_elsewhere_keep_what_they_mean() {
    let shared = "x-env: &env\n- name: SELDON_SERVER_HTTP_PORT\n  value: \"9000\"\n";
    let merge =
        "x-base: &base\n  image: a\n  env: [{name: SELDON_SERVER_HTTP_PORT, value: \"9000\"}]\n";
    for text in [
        // The list is used twice, and only one use may change.
        format!("{shared}{}", pod("    env: *env\n", "    env: *env\n")),
        pod(
            "    env: &e\n    - name: SELDON_SERVER_HTTP_PORT\n      value: \"9000\"\n",
            "    env: *e\n",
        ),
        format!(
            "{merge}{}",
            pod("    <<: *base\n    args: [a] # mine\n", "")
        ),
        pod(
            "    env:\n    - name: SELDON_SERVER_HTTP_PORT\n      value: &port \"9000\"\n    - {name: B, value: *port}\n",
            "",
        ),
    ] {
        let out = round_trip(&text);
        let done = tree::read(&out).unwrap().root.unwrap().value;
        let before = tree::read(&text).unwrap().root.unwrap().value;
        let containers = |v: &Value| v["spec"]["containers"].clone();
        assert_eq!(containers(&done)[1], containers(&before)[1], "{out}");
        assert_eq!(containers(&done)[0]["env"][0]["value"], "9600", "{out}");
    }
}

#[test]
fn a_document_written_anew_says_so() {
    let text = pod(
        "    env: &e\n    - name: SELDON_SERVER_HTTP_PORT\n      value: '9000' # x\n",
        "    env: *e\n",
    );
    let done = inject(&text, &Options::default()).unwrap();
    assert!(done.reports[0].report.warns("rewritten"), "{}", done.text);
}

#[test]
fn json_stays_json() {
    let value = tree::read(POD).unwrap().root.unwrap().value;
    for text in [
        value.to_string(),
        serde_json::to_string_pretty(&value).unwrap() + "\n",
        format!("{value}\n{}\n", json_list(&value)),
    ] {
        let out = round_trip(&text);
        let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&out)
            .into_iter()
            .collect();
        assert!(values.is_ok(), "{out}");
    }
}

fn json_list(value: &Value) -> Value {
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [{ "kind": "Secret" }, value, value] })
}

#[test]
fn every_item_of_a_list_is_looked_at() {
    let value = json_list(&tree::read(POD).unwrap().root.unwrap().value);
    let done = inject(&value.to_string(), &Options::default()).unwrap();
    assert_eq!(done.reports.len(), 3);
    assert_eq!(done.reports.iter().filter(|f| f.report.changed).count(), 2);
}

#[test]
fn other_documents_pass_byte_for_byte() {
    let strange = "# only a comment\n---\n\n--- # why\nkind: Secret\nstringData: {a: on,  b: 0o644}\nmode: 1e3\n? x\n: y\n---\n";
    let done = inject(strange, &Options::default()).unwrap();
    assert_eq!(done.text, strange);
    assert!(!done.applies());
    let both = format!("{strange}{}---\n{strange}", pod("", ""));
    let done = inject(&both, &Options::default()).unwrap();
    assert!(done.text.starts_with(strange));
    assert!(done.text.ends_with(&format!("---\n{strange}")));
}

#[test]
fn what_cannot_be_read_is_refused_with_its_place() {
    let refused = |text: &str| inject(text, &Options::default()).unwrap_err();
    let error = refused(&format!("{}---\na: [1\nb: 2\n", pod("", "")));
    assert_eq!(error.document, 2);
    assert!(error.line >= 13, "{error}");
    let error = refused(&pod("    image: a\n    image: b\n", ""));
    assert_eq!((error.document, error.line), (1, 10), "{error}");
    assert!(error.why.contains("image stands twice"), "{error}");
    let error = refused(&pod("    env: all\n", ""));
    assert!(
        error
            .to_string()
            .contains("Pod p: spec.containers.env: expected a list"),
        "{error}"
    );
    // A document that is only passed on may be as it likes.
    assert!(inject("a: 1\na: 2\n", &Options::default()).is_ok());
}

#[test]
fn an_edit_after_the_injection_survives_the_removal() {
    let text = pod(
        "    env:\n    - {name: SELDON_SCHEDULER_HOST, valueFrom: {x: y}}\n",
        "",
    );
    let done = inject(&text, &Options::default()).unwrap().text;
    let edited = done.replace("    image: m\n", "    image: m2 # new\n");
    let back = remove(&edited, &Options::default()).unwrap().text;
    assert!(back.contains("image: m2 # new\n"), "{back}");
    assert!(!back.contains("agent-shim"), "{back}");
    let value = |t: &str| tree::read(t).unwrap().root.unwrap().value;
    assert_eq!(value(&back.replace("m2 # new", "m")), value(&text));
}
