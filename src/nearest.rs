//! How far two names are apart, and which of many is nearest: for "did you mean".

/// Edits (insert, delete, replace) between two texts.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The nearest of `known` that is not further away than a third of the name; the first in
/// alphabetical order where several are equally near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = name.chars().count() / 3;
    known
        .into_iter()
        // Cheap, and rules out most: each missing character is an edit.
        .filter(|k| k.chars().count().abs_diff(name.chars().count()) <= limit)
        .map(|k| (distance(k, name), k))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["sklearn", "xgboost", "spark-mlib"];
        for (name, expected) in [
            ("sklern", Some("sklearn")),
            ("xgbost", Some("xgboost")),
            ("spark-mllib", Some("spark-mlib")),
            ("torch", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
