use serde_json::json;

use super::*;

fn labels(all: &[(&str, &str)]) -> Labels {
    all.iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

fn policy(selector: serde_json::Value, rules: serde_json::Value) -> NetworkPolicy {
    NetworkPolicy {
        name: "default-deny".into(),
        selector: serde_json::from_value(selector).unwrap(),
        egress: true,
        rules: serde_json::from_value(rules).unwrap(),
    }
}

fn check(rules: serde_json::Value, change: impl Fn(&mut Destination<'_>)) -> Egress {
    let (pod, namespace) = (
        labels(&[("app.kubernetes.io/name", "seldon-scheduler")]),
        labels(&[("kubernetes.io/metadata.name", "seldon-system")]),
    );
    let mut to = Destination {
        pod: Some(&pod),
        namespace: Some(&namespace),
        same_namespace: false,
        addresses: &[],
        protocol: "TCP",
        port: 9005,
        port_name: "agent",
    };
    change(&mut to);
    egress(&[policy(json!({}), rules)], &labels(&[("a", "b")]), &to)
}

fn allowed(rules: serde_json::Value) -> bool {
    check(rules, |_| {}) == Egress::Allowed
}

#[test]
fn without_a_policy_for_the_pod_everything_leaves() {
    let pod = labels(&[("app", "mlserver")]);
    let to = Destination {
        protocol: "TCP",
        port: 9005,
        ..Destination::default()
    };
    assert_eq!(egress(&[], &pod, &to), Egress::Allowed);
    let other = policy(json!({"matchLabels": {"app": "other"}}), json!([]));
    assert_eq!(egress(&[other], &pod, &to), Egress::Allowed);
    let mut only_ingress = policy(json!({}), json!([]));
    only_ingress.egress = false;
    assert_eq!(egress(&[only_ingress], &pod, &to), Egress::Allowed);
    let denied = Egress::Denied(vec!["default-deny".into()]);
    assert_eq!(egress(&[policy(json!({}), json!([]))], &pod, &to), denied);
}

#[test]
fn one_policy_that_allows_is_enough() {
    let pod = labels(&[]);
    let to = Destination {
        protocol: "TCP",
        port: 9005,
        ..Destination::default()
    };
    let both = [policy(json!({}), json!([])), policy(json!({}), json!([{}]))];
    assert_eq!(egress(&both, &pod, &to), Egress::Allowed);
}

#[test]
fn expressions_select_as_kubernetes_does() {
    let pod = labels(&[("tier", "gold")]);
    for (operator, values, key, expected) in [
        ("In", json!(["gold"]), "tier", true),
        ("In", json!(["tin"]), "tier", false),
        ("NotIn", json!(["tin"]), "tier", true),
        ("NotIn", json!(["tin"]), "absent", true),
        ("Exists", json!([]), "tier", true),
        ("DoesNotExist", json!([]), "tier", false),
        ("DoesNotExist", json!([]), "absent", true),
    ] {
        let selector: Selector = serde_json::from_value(json!({
            "matchExpressions": [{"key": key, "operator": operator, "values": values}]
        }))
        .unwrap();
        assert_eq!(selector.selects(&pod), expected, "{operator} {key}");
    }
}

#[test]
fn ports_ranges_names_and_protocols_count() {
    assert!(allowed(json!([{"ports": [{"port": 9005}]}])));
    assert!(allowed(
        json!([{"ports": [{"port": "agent", "protocol": "TCP"}]}])
    ));
    assert!(allowed(
        json!([{"ports": [{"port": 9000, "endPort": 9100}]}])
    ));
    assert!(allowed(json!([{"ports": [{"protocol": "TCP"}]}])));
    assert!(!allowed(json!([{"ports": [{"port": 9004}]}])));
    assert!(!allowed(json!([{"ports": [{"port": "scheduler"}]}])));
    assert!(!allowed(
        json!([{"ports": [{"port": 9006, "endPort": 9100}]}])
    ));
    assert!(!allowed(
        json!([{"ports": [{"port": 9005, "protocol": "UDP"}]}])
    ));
}

#[test]
fn peers_are_pods_of_namespaces() {
    let system = json!({"matchLabels": {"kubernetes.io/metadata.name": "seldon-system"}});
    let scheduler = json!({"matchLabels": {"app.kubernetes.io/name": "seldon-scheduler"}});
    let other = json!({"matchLabels": {"app": "other"}});
    assert!(allowed(json!([{"to": [{"namespaceSelector": system}]}])));
    assert!(allowed(
        json!([{"to": [{"namespaceSelector": {}, "podSelector": scheduler}]}])
    ));
    assert!(!allowed(
        json!([{"to": [{"namespaceSelector": system, "podSelector": other}]}])
    ));
    // Without a namespaceSelector only the policy's own namespace is meant.
    let own = json!([{"to": [{"podSelector": scheduler}]}]);
    assert!(!allowed(own.clone()));
    assert_eq!(check(own, |to| to.same_namespace = true), Egress::Allowed);
    // Two peers are alternatives.
    assert!(allowed(
        json!([{"to": [{"podSelector": other}, {"namespaceSelector": system}]}])
    ));
}

#[test]
fn ranges_need_an_address_to_be_judged() {
    let block = json!([{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]);
    assert_eq!(check(block.clone(), |_| {}), Egress::Unknown);
    for (address, expected) in [("10.2.3.4", true), ("10.1.3.4", false), ("11.0.0.1", false)] {
        let address = [address.parse().unwrap()];
        let seen = check(block.clone(), |to| {
            // The borrow lives as long as the check.
            to.addresses = Box::leak(Box::new(address));
        });
        assert_eq!(seen == Egress::Allowed, expected, "{address:?}");
    }
    assert!(within("0.0.0.0/0", "1.2.3.4".parse().unwrap()));
    assert!(within("fd00::/8", "fd12::1".parse().unwrap()));
    assert!(within("::/0", "fd12::1".parse().unwrap()));
    assert!(!within("fd00::/8", "10.0.0.1".parse().unwrap()));
    assert!(!within("10.0.0.0/33", "10.0.0.1".parse().unwrap()));
}

#[test]
fn labels_that_are_not_known_leave_it_open() {
    let scheduler = json!({"matchLabels": {"app.kubernetes.io/name": "seldon-scheduler"}});
    let rules = json!([{"to": [{"namespaceSelector": {}, "podSelector": scheduler}]}]);
    assert_eq!(check(rules, |to| to.pod = None), Egress::Unknown);
}
