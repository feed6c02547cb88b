//! Metrics of others, merged into one page: it stays valid, and the shim's own series stay as they
//! are.

use std::collections::BTreeSet;

use agent_shim::scrape::exposition::{Document, merge};

/// A byte that says which are OpenMetrics, then up to three documents; the first is the shim's own.
pub fn check(input: &[u8]) {
    let Some((&how, text)) = input.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let mut documents = super::parts(&text).take(3).enumerate();
    let (_, first) = documents.next().expect("a split has a part");
    let Ok(own) = Document::read(first, false) else {
        return;
    };
    let mut others = Vec::new();
    for (i, part) in documents {
        if let Ok(document) = Document::read(part, how >> i & 1 == 1) {
            others.push((["agent", "mlserver"][i - 1], document));
        }
    }
    let alone = merge(own.clone(), Vec::new());
    let page = merge(own, others);
    assert!(page.len() <= 64 * text.len() + 64, "the page is bounded");
    let read = Document::read(&page, false).unwrap_or_else(|error| panic!("{error}\n{page}"));
    let mut kinds = BTreeSet::new();
    for line in page.lines().filter(|l| l.starts_with("# TYPE ")) {
        assert!(
            kinds.insert(line.split(' ').nth(2)),
            "a family stands once: {line}\n{page}"
        );
    }
    let samples = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .map(str::to_string)
            .collect()
    };
    let all: BTreeSet<String> = samples(&page).into_iter().collect();
    assert!(
        samples(&alone).iter().all(|own| all.contains(own)),
        "the shim's own series stay"
    );
    let again = merge(read, Vec::new());
    let (mut before, mut after) = (samples(&page), samples(&again));
    before.sort();
    after.sort();
    assert_eq!(
        after, before,
        "what is written can be read and written again"
    );
}
