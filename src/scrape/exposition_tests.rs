//! What becomes of families, labels, types and garbage.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Document {
    Document::read(text, false).unwrap()
}

const OWN: &str = "# HELP agent_shim_x Own.\n# TYPE agent_shim_x counter\nagent_shim_x{a=\"b\"} 1\n\
# HELP process_open_fds Number.\n# TYPE process_open_fds gauge\nprocess_open_fds 7\n";

#[test]
fn a_family_that_several_have_stands_once_and_its_series_say_whose_they_are() {
    let agent = "# HELP process_open_fds Of the agent.\n# TYPE process_open_fds gauge\nprocess_open_fds 9\n\
# TYPE go_goroutines gauge\ngo_goroutines 12\n# TYPE seldon_x counter\nseldon_x{model=\"m\"} 3\n";
    let server = "# TYPE process_open_fds gauge\nprocess_open_fds 11\n# TYPE seldon_x counter\nseldon_x{model=\"m\"} 4\n\
# TYPE model_infer counter\nmodel_infer{model=\"m\",version=\"1\"} 5\n";
    let merged = merge(
        read(OWN),
        vec![("agent", read(agent)), ("mlserver", read(server))],
    );
    assert_eq!(
        merged,
        "# HELP agent_shim_x Own.\n# TYPE agent_shim_x counter\nagent_shim_x{a=\"b\"} 1\n\
# HELP process_open_fds Number.\n# TYPE process_open_fds gauge\nprocess_open_fds 7\n\
process_open_fds{merged_from=\"agent\"} 9\nprocess_open_fds{merged_from=\"mlserver\"} 11\n\
# TYPE go_goroutines gauge\ngo_goroutines{merged_from=\"agent\"} 12\n\
# TYPE seldon_x counter\nseldon_x{model=\"m\",merged_from=\"agent\"} 3\nseldon_x{model=\"m\",merged_from=\"mlserver\"} 4\n\
# TYPE model_infer counter\nmodel_infer{model=\"m\",version=\"1\"} 5\n"
    );
}

#[test]
fn what_every_process_has_is_marked_even_where_only_one_source_answers() {
    let agent = "go_goroutines 12\nprocess_start_time_seconds 1\n";
    let merged = merge(Document::default(), vec![("agent", read(agent))]);
    assert!(merged.contains("go_goroutines{merged_from=\"agent\"} 12\n"));
    assert!(merged.contains("process_start_time_seconds{merged_from=\"agent\"} 1\n"));
}

#[test]
fn one_name_with_two_types_is_left_to_the_first() {
    let one = "# TYPE x counter\nx 1\n";
    let two = "# TYPE x gauge\nx 2\n";
    let merged = merge(read(one), vec![("agent", read(two))]);
    assert_eq!(merged, one);
}

#[test]
fn histograms_and_summaries_stay_whole_and_scattered_families_are_gathered() {
    let text = "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nother 5\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n\
# TYPE s summary\ns{quantile=\"0.5\"} 1\ns_sum 1\ns_count 1\n# TYPE other_count counter\nother_count 1\n";
    let merged = merge(Document::default(), vec![("agent", read(text))]);
    assert_eq!(
        merged,
        "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n\
# TYPE other untyped\nother 5\n# TYPE s summary\ns{quantile=\"0.5\"} 1\ns_sum 1\ns_count 1\n\
# TYPE other_count counter\nother_count 1\n"
    );
}

#[test]
fn openmetrics_becomes_text_format() {
    let text = "# TYPE foo counter\n# HELP foo A \\\"quoted\\\" text.\n# UNIT foo seconds\nfoo_total{a=\"}\"} 1.5 1700000000.25 # {trace_id=\"x\"} 1 2\n\
foo_created 1.6e9\n# TYPE build info\nbuild_info{v=\"1\"} 1\n# TYPE u unknown\nu 3\n\
# TYPE h histogram\nh_bucket{le=\"+Inf\"} 2 # {trace_id=\"y\"} 0.5\nh_count 2\nh_sum 1\nh_created 4\n# EOF\nafter the end\n";
    let document = Document::read(text, true).unwrap();
    let merged = merge(Document::default(), vec![("agent", document)]);
    assert_eq!(
        merged,
        "# HELP foo_total A \"quoted\" text.\n# TYPE foo_total counter\nfoo_total{a=\"}\"} 1.5 1700000000250\n\
# TYPE foo_created gauge\nfoo_created 1.6e9\n# TYPE build_info gauge\nbuild_info{v=\"1\"} 1\n# TYPE u untyped\nu 3\n\
# TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_count 2\nh_sum 1\n# TYPE h_created gauge\nh_created 4\n"
    );
}

#[test]
fn a_line_that_is_no_metric_refuses_the_document() {
    for bad in [
        "<html>",
        "x",
        "x{ 1",
        "x{a=1} 1",
        "x{a=\"b} 1",
        "x{a=\"\\q\"} 1",
        "x{a=\"b\"c=\"d\"} 1",
        "x{\"quoted.name\",a=\"b\"} 1",
        "x y",
        "x 1 soon",
        "x 1 2 3",
        "1x 1",
        "# TYPE x florid",
        "# TYPE x info",
        "{\"json\": true}",
    ] {
        let text = format!("ok 1\n{bad}\n");
        let error = Document::read(&text, false).unwrap_err().to_string();
        assert!(
            error.starts_with("line 2 is not a metric"),
            "{bad}: {error}"
        );
    }
}

#[test]
fn what_is_valid_and_rare_is_taken() {
    for good in [
        "x NaN",
        "x +Inf",
        "x -Inf 5",
        "x{} 1",
        "x{a=\"b\",} 1",
        "x { a = \"b\" , c=\"}\\\"{\" } 1e-9 -5",
        "# a comment",
        "#EOF",
        "# HELP x",
        "x{a=\"ü\"} 1",
    ] {
        assert!(Document::read(good, false).is_ok(), "{good}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_and_what_is_read_can_be_read_again(
        lines in prop::collection::vec(
            prop_oneof![
                2 => "\\PC{0,30}",
                4 => "[a-c]_?(total|count|sum|bucket|info|created)?(\\{[a-c]=\"[a-z\\\\\"]{0,3}\"\\})? [0-9]{1,3}( [0-9]{1,3})?",
                2 => "# (HELP|TYPE) [a-c] (counter|gauge|histogram|summary|info|x)?",
            ], 0..12),
        openmetrics in any::<bool>(),
    ) {
        if let Ok(document) = Document::read(&lines.join("\n"), openmetrics) {
            let once = merge(document, Vec::new());
            let again = merge(Document::read(&once, false).unwrap(), Vec::new());
            prop_assert_eq!(&once, &again);
            let mut types: Vec<&str> = once.lines().filter(|l| l.starts_with("# TYPE")).collect();
            let n = types.len();
            types.sort_unstable();
            types.dedup_by_key(|l| l.split(' ').nth(2));
            prop_assert_eq!(types.len(), n, "one TYPE for each family");
        }
    }
}
