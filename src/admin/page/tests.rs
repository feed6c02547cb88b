//! The page as a function of the document: content, escaping, bounds.

use super::*;
use serde_json::{Value, json};
use std::time::Duration;

const AT: &str = "2026-03-01T12:00:00.000Z";

fn now() -> SystemTime {
    humantime::parse_rfc3339(AT).unwrap() + Duration::from_secs(90)
}

fn endpoint(protocol: &str, state: &str, reason: Value) -> Value {
    json!({
        "host": "127.0.0.1", "port": 9000, "protocol": protocol, "state": state, "reason": reason,
        "detail": null, "since": AT, "last_success": AT, "latency_ms": 1.25, "server_ready": true,
        "recent": [
            {"outcome": "ok", "reason": null, "probes": 57, "slots": 57, "from": AT, "to": AT, "slowest_ms": 3.1},
            {"outcome": "failed", "reason": "refused", "probes": 3, "slots": 3, "from": AT, "to": AT, "slowest_ms": null},
        ],
    })
}

fn condition(name: &str, holds: bool, reason: &str) -> Value {
    json!({"name": name, "status": holds, "reason": reason, "since": AT})
}

/// A pod as it should be.
fn document() -> Value {
    json!({
        "build": {"version": "0.0.0", "target": "test"},
        "mode": "correct",
        "endpoints": [endpoint("http", "up", Value::Null), endpoint("grpc", "up", Value::Null)],
        "selection": {"http": "127.0.0.1", "grpc": "127.0.0.1"},
        "server": {"name": "mlserver", "version": "1.7.1", "extensions": [], "read_at": AT, "error": null},
        "models": [{"name": "iris", "version": "v1", "state": "READY", "reason": ""}],
        "capacity": {"requested": 1000000, "observed": 4u64 << 30, "reported": 4u64 << 30, "believed": 4u64 << 30,
            "why": "taken from the limit", "available": null, "available_believed": null, "sources": [],
            "used": 2u64 << 30, "cgroup_used": null},
        "capabilities": {"requested": ["mlserver", "spark"], "reported": ["mlserver", "torch"], "added": ["torch", "sk-learn"],
            "dropped": ["spark"], "aliased": ["sk-learn"], "missing": ["huggingface"], "source": "explicit", "distributions": 3},
        "conditions": [
            condition("probed", true, "yes"), condition("inference-http", true, "answers"),
            condition("inference-grpc", true, "answers"), condition("not-draining", true, "no"),
            condition("subscribed", true, "stands"), condition("registered", true, "listed"),
        ],
        "findings": [],
        "transitions": [{"at": AT, "kind": "endpoint", "subject": "HTTP 127.0.0.1:9000", "from": "unknown", "to": "up", "reason": null}],
    })
}

fn page(document: Value) -> String {
    let document: Document = serde_json::from_value(document).unwrap();
    String::from_utf8(whole(&document, now()).to_vec()).unwrap()
}

fn verdict_of(document: Value) -> (&'static str, String, bool) {
    let verdict = verdict::of(&serde_json::from_value(document).unwrap());
    (verdict.word, verdict.short, verdict.pod_ready)
}

/// The document with one condition that does not hold.
fn without(name: &str) -> Value {
    let mut d = document();
    for c in d["conditions"].as_array_mut().unwrap() {
        if c["name"] == name {
            c["status"] = false.into();
            c["reason"] = "for a reason".into();
        }
    }
    d
}

#[test]
fn the_verdict_looks_beyond_the_pod_and_readiness_does_not() {
    assert_eq!(verdict_of(document()).0, "ready");
    for (name, word, said, pod_ready) in [
        ("inference-grpc", "degraded", "does not answer gRPC", false),
        ("inference-http", "degraded", "does not answer HTTP", false),
        ("registered", "degraded", "does not list this replica", true),
        ("subscribed", "degraded", "no subscription", true),
        ("not-draining", "stopping", "told to stop", false),
    ] {
        let (is, short, ready) = verdict_of(without(name));
        assert!(
            (is, ready) == (word, pod_ready) && short.contains(said),
            "{name}: {is}, {short}"
        );
    }
}

#[test]
fn both_protocols_gone_is_down_and_before_that_is_known_it_is_starting() {
    let mut d = without("inference-http");
    d["conditions"][2]["status"] = false.into();
    assert_eq!(verdict_of(d.clone()).0, "down");
    d["conditions"][0]["status"] = false.into();
    assert_eq!(verdict_of(d).0, "starting");
}

#[test]
fn a_silent_server_is_degraded_although_the_pod_is_ready() {
    let mut d = document();
    d["endpoints"][1]["state"] = "stalled".into();
    let (word, short, ready) = verdict_of(d);
    assert_eq!(
        (word, short.as_str(), ready),
        ("degraded", "the inference server is silent on gRPC", true)
    );
}

#[test]
fn every_part_of_the_document_is_on_the_page() {
    let text = page(document());
    for part in [
        "the scheduler lists this replica",
        "12:00:00",
        "(1 min)",
        "57 ok",
        "3 failed (refused)",
        "4.00 GiB",
        "4\u{202f}294\u{202f}967\u{202f}296",
        "1\u{202f}000\u{202f}000",
        "taken from the limit",
        "mlserver 1.7.1",
        "iris",
        "Nothing is known to be wrong",
        "HTTP 127.0.0.1:9000",
        "href=\"status\"",
        "href=\"metrics\"",
        "href=\"readyz?verbose\"",
    ] {
        let plain = text.replace("<bdi>", "").replace("</bdi>", "");
        assert!(plain.contains(part), "{part} is not on the page");
    }
    let chips = |title: &str| {
        let from = text.find(&format!("<h3>{title}")).unwrap();
        let end = text[from..].find("</ul>").unwrap();
        text[from..from + end].to_string()
    };
    assert!(chips("Kept").contains("mlserver") && !chips("Kept").contains("spark"));
    assert!(chips("Added").contains("torch") && !chips("Added").contains("sk-learn"));
    assert!(chips("Aliased").contains("sk-learn"));
    assert!(chips("Dropped").contains("spark"));
    assert!(chips("Missing").contains("huggingface"));
}

#[test]
fn a_fix_is_shown_where_a_finding_has_one() {
    let with = |finding: Value| {
        let document: Document = serde_json::from_value(document()).unwrap();
        let mut page = Page::new(&document, now());
        page.findings = vec![finding];
        page.main().into_string()
    };
    let text = with(
        json!({"rule": "AS007", "name": "no memory", "text": "It is so.", "fix": "env:\n  - name: <X>"}),
    );
    for part in [
        "AS007",
        "no memory",
        "It is so.",
        "What to do",
        "  - name: &lt;X&gt;",
    ] {
        assert!(text.contains(part), "{part}");
    }
    let text = with(json!({"rule": "inference-http", "text": "It is so.", "fix": null}));
    assert!(text.contains("It is so.") && !text.contains("What to do"));
}

#[test]
fn a_finding_says_how_bad_it_is_by_word_and_icon_and_what_was_seen() {
    let mut d = document();
    d["findings"] = json!([
        {"rule": "AS001", "name": "one", "severity": "broken", "text": "It is so.", "fix": "x",
            "evidence": ["HTTP <a>: refused", "gRPC: refused"]},
        {"rule": "AS002", "name": "two", "severity": "warning", "text": "It may be.", "fix": "y", "evidence": []},
    ]);
    let text = page(d);
    let findings = text.split("id=\"findings\"").nth(1).unwrap();
    let (first, second) = findings.split_once("AS002").unwrap();
    for part in [
        "#i-bad",
        "broken",
        "Because",
        "HTTP &lt;a&gt;: refused",
        "gRPC: refused",
    ] {
        assert!(first.contains(part), "{part} is not in {first}");
    }
    let second = second.split("</li>").next().unwrap();
    assert!(second.contains("#i-warn") && second.contains("worth a look"));
    assert!(!second.contains("Because"));
}

#[test]
fn the_picture_has_the_agents_own_word_and_what_is_wrong_with_the_servers_models() {
    let picture = |change: &dyn Fn(&mut Value)| {
        let mut d = document();
        change(&mut d);
        let text = page(d);
        let from = text.find("aria-label=\"Agent").unwrap();
        let label = &text[from + 12..];
        label[..label.find('"').unwrap()].to_string()
    };
    let agent = |state: &str| {
        let state = json!({"state": state, "since": AT, "reason": "so", "live": true});
        picture(&|d| d["agent"] = state.clone())
    };
    assert!(agent("unknown").starts_with("Agent seen to Shim ready"));
    for (state, word) in [
        ("ready", "Agent ready"),
        ("not-ready", "Agent not ready"),
        ("silent", "Agent silent"),
        ("stuck", "Agent stuck"),
    ] {
        assert!(agent(state).starts_with(word), "{}", agent(state));
    }
    let lost = json!([{"model": "iris", "stage": "given-up", "failures": 3, "error": "no <file>"}]);
    assert!(picture(&|d| d["restoring"] = lost.clone()).contains("Server models missing"));
    let worker = condition(crate::worker::CONDITION, false, "it is gone");
    let broken = picture(&|d| d["conditions"].as_array_mut().unwrap().push(worker.clone()));
    assert!(broken.contains("Server worker broken") && broken.contains("Shim not ready"));
    let mut d = document();
    d["restoring"] = lost;
    let text = page(d).replace("<bdi>", "").replace("</bdi>", "");
    for part in [
        "iris</strong> could not be loaded again",
        "3 failed tries",
        "no &lt;file&gt;",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn a_drain_that_was_called_for_is_not_called_a_stop() {
    for (state, word, said) in [
        ("draining", "draining", "what runs is waited for"),
        ("drained", "drained", "no call runs any more"),
        ("gave-up", "drained", "calls still ran"),
        ("stopping", "stopping", "told to stop"),
    ] {
        let mut d = without("not-draining");
        d["drain"] = json!({"state": state, "since": AT, "running": 2, "at_start": 2, "waiting": 1,
            "agent": "has drained", "summary": "", "undone": 0});
        let (is, short, ready) = verdict_of(d.clone());
        assert!(
            (is, ready) == (word, false) && short.contains(said),
            "{state}: {is}, {short}"
        );
        assert!(page(d).contains(&format!("Shim {word}")), "{state}");
    }
}

/// A name in every place that takes text from outside.
fn named(name: &str) -> Value {
    let mut d = document();
    d["server"]["name"] = name.into();
    d["server"]["version"] = name.into();
    d["server"]["error"] = name.into();
    d["models"] = json!([{"name": name, "version": name, "state": name, "reason": name}]);
    d["capacity"]["why"] = name.into();
    d["capacity"]["sources"] =
        json!([{"source": name, "bytes": 1, "age_s": 0.0, "chosen": true, "reason": name}]);
    for key in [
        "requested",
        "reported",
        "added",
        "dropped",
        "aliased",
        "missing",
    ] {
        d["capabilities"][key] = json!([name, "x"]);
    }
    d["capabilities"]["source"] = name.into();
    for e in d["endpoints"].as_array_mut().unwrap() {
        for key in ["host", "state", "reason", "detail"] {
            e[key] = name.into();
        }
        e["recent"][1]["outcome"] = name.into();
        e["recent"][1]["reason"] = name.into();
    }
    d["conditions"][4]["reason"] = name.into();
    d["conditions"][4]["status"] = false.into();
    d["conditions"][5]["name"] = name.into();
    d["findings"] = json!([{"rule": name, "text": name}]);
    d["transitions"] = json!([{"at": name, "kind": name, "subject": name, "from": name, "to": name, "reason": name}]);
    d["mode"] = name.into();
    d["build"]["version"] = name.into();
    d
}

#[test]
fn a_name_from_outside_is_text_wherever_it_stands() {
    let harmless = page(named("harmless"));
    let tags = |text: &str| text.matches('<').count();
    for name in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "</title></style></script></main><p>",
        "<!--",
        "&lt;b&gt;",
    ] {
        let text = page(named(name));
        assert_eq!(tags(&text), tags(&harmless), "{name} has made markup");
        let inside = text.replace(CSS, "").replace(JS, "");
        assert!(
            !inside.contains("<script>alert") && !inside.contains("<img"),
            "{name}"
        );
        // Every attribute is in double quotes, so a double quote is what could end one.
        assert_eq!(
            text.matches('"').count(),
            harmless.matches('"').count(),
            "{name} has ended an attribute"
        );
    }
}

#[test]
fn marks_that_reorder_text_do_not_reach_the_page() {
    let text = page(named("a\u{202e}b\u{2066}c\u{200f}d\u{0}e"));
    for mark in ['\u{202e}', '\u{2066}', '\u{200f}', '\u{0}'] {
        assert!(!text.contains(mark), "{}", mark.escape_unicode());
    }
    assert!(text.contains("a\\u{202e}b\\u{2066}c\\u{200f}d\\u{0}e"));
}

#[test]
fn a_long_name_is_shortened_and_its_whole_is_the_title() {
    let long = format!("{}-v17", "x".repeat(10_000));
    let mut d = document();
    d["models"][0]["name"] = long.clone().into();
    let text = page(d);
    assert!(text.contains(&format!("title=\"{long}\"")));
    let shown = text.replace(&long, "");
    assert!(
        shown.contains("xxx…") && shown.contains("-v17</bdi>") && !shown.contains(&"x".repeat(65))
    );
}

#[test]
fn the_page_is_bounded_whatever_the_document_holds() {
    assert!(
        page(document()).len() < 60_000,
        "{}",
        page(document()).len()
    );
    let long = "ä<&\"".repeat(2_500);
    let mut d = named(&long);
    let many = |one: &Value, n: usize| Value::Array(vec![one.clone(); n]);
    for key in [
        "models",
        "findings",
        "transitions",
        "endpoints",
        "conditions",
    ] {
        d[key] = many(&d[key][0].clone(), 2_000);
    }
    d["capabilities"]["added"] = many(&long.clone().into(), 2_000);
    d["capacity"]["sources"] = many(&d["capacity"]["sources"][0].clone(), 2_000);
    // What the program itself says comes from closed sets.
    d["mode"] = "correct".into();
    for e in d["endpoints"].as_array_mut().unwrap() {
        e["state"] = "down".into();
        e["reason"] = "refused".into();
        e["recent"] = json!([]);
    }
    for t in d["transitions"].as_array_mut().unwrap() {
        t["at"] = AT.into();
        t["kind"] = "endpoint".into();
    }
    let run = json!({"outcome": "ok", "reason": null, "probes": 1, "slots": 1, "from": AT, "to": AT, "slowest_ms": 1.0});
    d["endpoints"][0]["recent"] = many(&run, 60);
    let text = page(d);
    // Of a document that is a thousand times as large.
    assert!(text.len() < 2_000_000, "{}", text.len());
    assert!(text.contains("and 1900 more, see"));
}

#[test]
fn two_thousand_models_are_capped_and_those_in_trouble_come_first() {
    let mut d = document();
    let mut models: Vec<Value> = (0..2_000)
        .map(|i| json!({"name": format!("m{i:04}"), "version": "", "state": "READY", "reason": ""}))
        .collect();
    models[1_999]["state"] = "FAILED".into();
    d["models"] = models.into();
    let text = page(d);
    let rows = text.matches("<th scope=\"row\"><bdi>m").count();
    assert_eq!(rows, 100);
    assert!(text.contains("and 1900 more, see"));
    assert!(text.find("m1999").unwrap() < text.find("m0000").unwrap());
    assert!(text.len() < 100_000, "{}", text.len());
}

#[test]
fn browsers_get_the_page_and_curl_a_line() {
    let wants = |accept: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        wanted(&headers)
    };
    assert!(wants(
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    ));
    assert!(wants("application/json, Text/HTML;q=0.5"));
    assert!(!wants("*/*") && !wants("application/json") && !wants("text/html;q=0, */*"));
    assert!(!wanted(&HeaderMap::new()));
}

#[test]
fn style_and_script_cannot_end_their_elements_and_their_hashes_are_in_the_policy() {
    assert!(!CSS.contains("</") && !JS.contains("</") && !JS.contains("<!--"));
    let policy = POLICY.to_str().unwrap();
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
    assert_eq!(policy.matches("'sha256-").count(), 2);
}
