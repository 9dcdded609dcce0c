//! What is reported of a measurement.

use serde::Serialize;

/// One line of the results. `ratio` is always better when larger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// The median of the rounds' ratios.
    pub(crate) ratio: f64,
    /// Distance between the quartiles of the rounds' ratios.
    pub(crate) spread: f64,
    /// What the ratio should be at least; none: it is told for comparison.
    pub(crate) goal: Option<f64>,
    /// The median of what was measured itself, in `unit`.
    pub(crate) value: f64,
    /// The unit of `value`.
    pub(crate) unit: String,
    /// Under which conditions, and against what.
    pub(crate) setting: String,
}

impl Row {
    /// From the ratio and the value of each round.
    pub(crate) fn of(name: &str, ratios: &[f64], values: &[f64], unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            ratio: round(quantile(ratios, 0.5)),
            spread: round(quantile(ratios, 0.75) - quantile(ratios, 0.25)),
            goal: None,
            value: round(quantile(values, 0.5)),
            unit: unit.to_owned(),
            setting: String::new(),
        }
    }

    pub(crate) fn goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    pub(crate) fn setting(mut self, setting: impl Into<String>) -> Self {
        self.setting = setting.into();
        self
    }

    /// For people.
    pub(crate) fn line(&self) -> String {
        let verdict = match self.goal {
            Some(goal) if self.ratio >= goal => format!("goal {goal}: met"),
            Some(goal) => format!("goal {goal}: MISSED"),
            None => "no goal".into(),
        };
        let Self { name, ratio, spread, value, unit, .. } = self;
        format!("{name:38} {ratio:8.3} +-{spread:.3}  {value:10.3} {unit:14} {verdict}")
    }
}

/// The value below which a share of `values` lies; 0 where there are none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Four digits behind the point: no measurement here has more.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.5), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_row_is_what_readers_of_the_results_expect() {
        let row = Row::of("x", &[0.9, 1.0, 1.1], &[9.0, 10.0, 11.0], "tokens/s").goal(0.95).setting("here");
        let json =
            r#"{"name":"x","ratio":1.0,"spread":0.1,"goal":0.95,"value":10.0,"unit":"tokens/s","setting":"here"}"#;
        assert_eq!(serde_json::to_string(&row).unwrap(), json);
        assert!(row.line().ends_with("met"));
    }
}
