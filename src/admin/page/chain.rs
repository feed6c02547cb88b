//! The chain as a picture: agent -> shim -> server, and agent -> shim -> scheduler. Drawn twice from
//! one description, lying for wide screens and standing for narrow ones; the style shows one.

use maud::{Markup, html};

use super::Page;
use super::text::{Mark, count, fitted};
use super::verdict::{is_called, protocol_state, selected};
use crate::worker;

/// A party.
struct Node {
    title: &'static str,
    mark: Mark,
    word: &'static str,
    note: String,
}

/// A way from one party to the next.
struct Way {
    label: &'static str,
    mark: Mark,
    word: &'static str,
}

/// The whole picture, as facts.
struct Chain {
    agent: Node,
    shim: Node,
    server: Node,
    scheduler: Node,
    calls: Way,
    subscription: Way,
    http: Way,
    grpc: Way,
    upstream: Way,
}

/// A place in the picture: left, top, width, height.
type Place = (u32, u32, u32, u32);

impl Page<'_> {
    pub(super) fn chain(&self) -> Markup {
        let chain = self.facts();
        let said = chain.said();
        html! {
            section #chain aria-labelledby="chain-head" {
                h2 #chain-head .quiet { "Chain" }
                (lying(&chain, &said))
                (standing(&chain, &said))
            }
        }
    }

    fn facts(&self) -> Chain {
        let doc = self.doc;
        let states = ["http", "grpc"].map(|p| protocol_state(doc, p));
        let [http, grpc] = states.map(word_of);
        let find = |name: &str| doc.conditions.iter().find(|c| c.name == name);
        let subscribed = find("subscribed");
        let asked = doc.capacity.requested.is_some();
        let (calls_mark, calls_word) = match (relays(doc, "http"), relays(doc, "grpc")) {
            (true, true) if states.contains(&"stalled") => (Mark::Warn, "carried, waiting"),
            (true, true) => (Mark::Good, "carried on"),
            (false, false) => (Mark::Bad, "answered: why not"),
            _ => (Mark::Warn, "carried in part"),
        };
        let scheduler_on = subscribed.is_some();
        let (sub_mark, sub_word) = match (subscribed.map(|c| c.status), asked) {
            (None, _) => (Mark::Off, "not through here"),
            (Some(true), _) => (Mark::Good, "subscribed"),
            (Some(false), true) => (Mark::Warn, "waiting"),
            (Some(false), false) => (Mark::Busy, "not asked yet"),
        };
        let (up_mark, up_word) = match subscribed.map(|c| c.status) {
            None => (Mark::Off, "not configured"),
            Some(true) => (Mark::Good, "carried on"),
            Some(false) if asked => (Mark::Bad, "not open"),
            Some(false) => (Mark::Busy, "nothing to carry"),
        };
        let registered = find("registered").map(|c| c.status);
        let agrees = find("capacity-agrees").map(|c| c.status);
        let (sched_mark, sched_word) = match (scheduler_on, registered, agrees) {
            (false, _, _) => (Mark::Off, "not configured"),
            (_, Some(true), Some(false)) => (Mark::Warn, "other capacity"),
            (_, Some(true), _) => (Mark::Good, "registered"),
            (_, Some(false), _) => (Mark::Bad, "not registered"),
            (_, None, _) => (Mark::Busy, "belief not read"),
        };
        let ready = doc.models.iter().filter(|m| m.state == "READY").count();
        let (server_mark, server_word) = match states {
            ["up", "up"] => (Mark::Good, "answers"),
            ["down", "down"] => (Mark::Bad, "does not answer"),
            ["unknown", "unknown"] => (Mark::Busy, "not known yet"),
            s if s.contains(&"stalled") => (Mark::Warn, "silent"),
            _ => (Mark::Warn, "answers in part"),
        };
        let worker_failed = find(worker::CONDITION).is_some_and(|c| !c.status);
        let lost = doc.restoring.len();
        let (server_mark, server_word) = match server_mark {
            Mark::Good if worker_failed => (Mark::Bad, "worker broken"),
            Mark::Good if lost > 0 => (Mark::Warn, "models missing"),
            mark => (mark, server_word),
        };
        let (agent_mark, agent_word) = match (doc.agent.state.as_str(), scheduler_on, asked) {
            ("ready", _, _) => (Mark::Good, "ready"),
            ("not-ready", _, _) => (Mark::Warn, "not ready"),
            ("silent", _, _) => (Mark::Warn, "silent"),
            ("stuck", _, _) => (Mark::Bad, "stuck"),
            // Older agents do not say; what they do is seen at the subscription.
            (_, false, _) => (Mark::Off, "not observed"),
            (_, true, true) => (sub_mark, "seen"),
            (_, true, false) => (Mark::Busy, "not seen yet"),
        };
        let called = is_called(&doc.drain.state);
        let verdict = &self.verdict;
        Chain {
            agent: Node {
                title: "Agent",
                mark: agent_mark,
                word: agent_word,
                note: "Seldon's, in this pod".into(),
            },
            shim: Node {
                title: "Shim",
                mark: match (verdict.pod_ready, called) {
                    (true, _) => Mark::Good,
                    (false, true) => Mark::Warn,
                    (false, false) => Mark::Bad,
                },
                word: match (verdict.pod_ready, doc.drain.state.as_str()) {
                    (true, _) => "ready",
                    (false, "draining") => "draining",
                    (false, "drained" | "gave-up") => "drained",
                    (false, "stopping") => "stopping",
                    (false, _) => "not ready",
                },
                note: match doc.drain.running {
                    running if called && running > 0 => format!("{} run", count(running, "call")),
                    _ => format!("mode {}", doc.mode),
                },
            },
            server: Node {
                title: "Server",
                mark: server_mark,
                word: server_word,
                note: match &doc.server {
                    Some(_) if lost > 0 => format!("{} not back", count(lost, "model")),
                    Some(_) if ready > 0 && server_mark == Mark::Good => {
                        format!("{} ready", count(ready, "model"))
                    }
                    Some(server) => {
                        format!("{} {}", server.metadata.name, server.metadata.version)
                    }
                    None => "not heard yet".into(),
                },
            },
            scheduler: Node {
                title: "Scheduler",
                mark: sched_mark,
                word: sched_word,
                note: if scheduler_on {
                    "Seldon's control plane".into()
                } else {
                    "SHIM_SCHEDULER unset".into()
                },
            },
            calls: Way {
                label: "inference",
                mark: calls_mark,
                word: calls_word,
            },
            subscription: Way {
                label: "subscription",
                mark: sub_mark,
                word: sub_word,
            },
            http: Way {
                label: "HTTP",
                mark: Mark::of_state(states[0]),
                word: http,
            },
            grpc: Way {
                label: "gRPC",
                mark: Mark::of_state(states[1]),
                word: grpc,
            },
            upstream: Way {
                label: "subscription",
                mark: up_mark,
                word: up_word,
            },
        }
    }
}

/// Whether callers of a protocol are carried to a server.
fn relays(doc: &super::Document, protocol: &str) -> bool {
    selected(doc, protocol).is_some_and(|e| e.state == "up" || e.state == "stalled")
}

fn word_of(state: &str) -> &'static str {
    match state {
        "up" => "up",
        "stalled" => "stalled",
        "down" => "down",
        _ => "unknown",
    }
}

impl Chain {
    /// The picture for those who do not see it.
    fn said(&self) -> String {
        let node = |n: &Node| format!("{} {}", n.title, n.word);
        let way = |w: &Way| format!("{} {}", w.label, w.word);
        format!(
            "{} to {}: {}. {} to {}: {}, {}. {} to {}: {}; from the agent, {}.",
            node(&self.agent),
            node(&self.shim),
            way(&self.calls),
            self.shim.title,
            node(&self.server),
            way(&self.http),
            way(&self.grpc),
            self.shim.title,
            node(&self.scheduler),
            way(&self.upstream),
            way(&self.subscription),
        )
    }
}

fn mark_at(mark: Mark, x: u32, y: u32, size: u32) -> Markup {
    let class = mark.class();
    html! { use .i.(class) href={ "#i-" (class) } x=(x) y=(y) width=(size) height=(size) {} }
}

fn node(node: &Node, (x, y, w, h): Place) -> Markup {
    let middle = y + h / 2;
    html! {
        g .node.(node.mark.class()) {
            rect x=(x) y=(y) width=(w) height=(h) rx="10" {}
            rect .edge x=(x) y=(y + 12) width="4" height=(h - 24) rx="2" {}
            text .t x=(x + 18) y=(middle - 16) { (node.title) }
            (mark_at(node.mark, x + 18, middle - 6, 15))
            text x=(x + 39) y=(middle + 7) { (node.word) }
            text .n x=(x + 18) y=(middle + 28) { title { (fitted(&node.note, 200)) } (fitted(&node.note, 22)) }
        }
    }
}

/// A way that lies: its label above the line, its state below.
fn across(way: &Way, x: u32, y: u32, to: u32) -> Markup {
    html! {
        g .way.(way.mark.class()) {
            text .n x=(x + 12) y=(y - 9) { (way.label) }
            path d=(format!("M{x} {y}H{}", to - 9)) {}
            path .head d=(format!("M{} {}l9 5-9 5z", to - 10, y - 5)) {}
            (mark_at(way.mark, x + 12, y + 8, 14))
            text x=(x + 31) y=(y + 20) { (way.word) }
        }
    }
}

/// A way that stands: label and state beside the line.
fn down(way: &Way, x: u32, y: u32, to: u32) -> Markup {
    let middle = (y + to) / 2;
    html! {
        g .way.(way.mark.class()) {
            path d=(format!("M{x} {y}V{}", to - 9)) {}
            path .head d=(format!("M{} {}l5 9 5-9z", x - 5, to - 10)) {}
            text .n x=(x + 11) y=(middle - 9) { (way.label) }
            (mark_at(way.mark, x + 11, middle - 3, 14))
            text x=(x + 29) y=(middle + 9) { (way.word) }
        }
    }
}

fn lying(c: &Chain, said: &str) -> Markup {
    html! {
        svg .lying viewBox="0 0 880 252" role="img" aria-label=(said) {
            (across(&c.calls, 182, 62, 342))
            (across(&c.subscription, 182, 190, 342))
            (across(&c.http, 524, 34, 698))
            (across(&c.grpc, 524, 90, 698))
            (across(&c.upstream, 524, 190, 698))
            (node(&c.agent, (1, 1, 180, 250)))
            (node(&c.shim, (343, 1, 180, 250)))
            (node(&c.server, (699, 1, 180, 116)))
            (node(&c.scheduler, (699, 135, 180, 116)))
        }
    }
}

fn standing(c: &Chain, said: &str) -> Markup {
    html! {
        svg .standing viewBox="0 0 344 466" role="img" aria-label=(said) {
            (down(&c.calls, 24, 92, 168))
            (down(&c.subscription, 196, 92, 168))
            (down(&c.http, 16, 264, 360))
            (down(&c.grpc, 92, 264, 360))
            (down(&c.upstream, 196, 264, 360))
            (node(&c.agent, (1, 1, 342, 90)))
            (node(&c.shim, (1, 169, 342, 94)))
            (node(&c.server, (1, 361, 164, 104)))
            (node(&c.scheduler, (179, 361, 164, 104)))
        }
    }
}
