//! Whether a series of samples is flat. Two statistics that a few odd samples do not move: the slope
//! of Theil and Sen (the median of the slopes of all pairs), and the medians of the first and the
//! last third, which tell a step from a slope.

/// The trend of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// Samples that it rests on.
    pub samples: usize,
    /// Slope in units a minute.
    pub per_minute: f64,
    /// Median of the first third.
    pub first: f64,
    /// Median of the last third.
    pub last: f64,
}

/// Of `(minutes, value)`, in order of time; `None` where there are fewer than a dozen.
pub fn trend(samples: &[(f64, f64)]) -> Option<Trend> {
    if samples.len() < 12 {
        return None;
    }
    let mut slopes = Vec::new();
    for (i, (at, value)) in samples.iter().enumerate() {
        for (later, other) in &samples[i + 1..] {
            if later > at {
                slopes.push((other - value) / (later - at));
            }
        }
    }
    let values: Vec<f64> = samples.iter().map(|(_, value)| *value).collect();
    let third = values.len() / 3;
    Some(Trend {
        samples: samples.len(),
        per_minute: median(&mut slopes),
        first: median(&mut values[..third].to_vec()),
        last: median(&mut values[values.len() - third..].to_vec()),
    })
}

/// How much a series may grow over a whole run, by either statistic, and still be flat.
pub fn grows(trend: &Trend, minutes: f64, allowed: f64) -> Option<String> {
    let by_slope = trend.per_minute * minutes;
    let by_thirds = trend.last - trend.first;
    // Both: a slope alone is noise around a step that is over, a step alone may be a busy third.
    (by_slope > allowed && by_thirds > allowed).then(|| {
        format!("grew by {by_slope:.0} by its slope and by {by_thirds:.0} between its first and last third; {allowed:.0} are allowed")
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise that repeats, without a trend.
    fn noise(n: usize) -> f64 {
        [0.0, 37.0, -21.0, 64.0, -50.0, 12.0, -40.0][n % 7]
    }

    fn series(value: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
        (0..210).map(|n| (n as f64 / 30.0, value(n))).collect()
    }

    #[test]
    fn noise_and_a_few_peaks_are_flat() {
        let flat = series(|n| 5000.0 + noise(n) + if n % 40 == 0 { 9000.0 } else { 0.0 });
        let trend = trend(&flat).unwrap();
        assert!(trend.per_minute.abs() < 3.0, "{trend:?}");
        assert_eq!(grows(&trend, 7.0, 100.0), None);
    }

    #[test]
    fn a_leak_below_the_noise_is_seen() {
        let leak = series(|n| 5000.0 + noise(n) + n as f64);
        let trend = trend(&leak).unwrap();
        assert!((trend.per_minute - 30.0).abs() < 3.0, "{trend:?}");
        assert!(grows(&trend, 7.0, 100.0).is_some());
        assert_eq!(grows(&trend, 7.0, 300.0), None);
    }

    #[test]
    fn a_step_near_the_end_is_no_slope_yet() {
        let step = series(|n| if n > 180 { 9000.0 } else { 5000.0 });
        assert_eq!(grows(&trend(&step).unwrap(), 7.0, 100.0), None);
        assert_eq!(trend(&step[..11]), None);
    }
}
