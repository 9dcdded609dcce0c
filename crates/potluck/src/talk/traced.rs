//! Where an answer's time went, for people: `--trace`.

use potluck_chain::sample::FinishReason;
use potluck_client::{Outcome, Phase, StageAccount, Trace};

use crate::screen::{Screen, size};

/// Columns of the table, aligned as the rows are.
const COLUMNS: &str =
    "  layers    peer        positions   queue  compute  handover  codec        in       out  to the next";

/// Shows an answer's trace; where it was asked for and there is none, why.
pub(crate) fn show_trace(screen: Screen, outcome: &Outcome, asked: bool) {
    match &outcome.trace {
        Some(trace) => screen.note(format!("\n{}", traced(trace))),
        None if asked && outcome.finish_reason != FinishReason::Cancel => {
            screen.note("\nno trace: a peer of the route is of a build that keeps no accounts");
        }
        None => {}
    }
}

/// Both phases as tables: of the prompt all of it, of the answer what a step took on the average.
fn traced(trace: &Trace) -> String {
    let Trace { prefill, decode } = trace;
    let steps = decode.stages.iter().map(|stage| stage.account.steps).max().unwrap_or(0);
    let mut lines = vec![format!(
        "prompt: {:.1} ms, in which stages may work at the same time (milliseconds, bytes)",
        prefill.seconds * 1e3
    )];
    lines.push(COLUMNS.into());
    lines.extend(prefill.stages.iter().map(|stage| row(stage, 1)));
    if steps > 0 {
        let each = |seconds: f64| seconds * 1e3 / steps as f64;
        let overlap = decode.overlapping > 0;
        let at_once = match overlap {
            true => format!(", {} of which left while another was under way", decode.overlapping),
            false => String::new(),
        };
        lines.push(format!(
            "answer: {:.2} ms a step, {steps} steps{at_once} (milliseconds and bytes a step)",
            each(decode.seconds)
        ));
        lines.push(COLUMNS.into());
        lines.extend(decode.stages.iter().map(|stage| row(stage, stage.account.steps.max(1))));
        let way =
            if overlap { String::new() } else { format!(", {:.2} on the way between", each(decode.elsewhere_s())) };
        lines.push(format!("  {:.2} to choose the token{way}", each(decode.client_s)));
        lines.extend(slowest(decode));
    }
    lines.join("\n")
}

fn row(stage: &StageAccount, steps: u64) -> String {
    let StageAccount { peer, layers: [from, to], account } = stage;
    let ms = |us: u64| us as f64 / 1e3 / steps as f64;
    let peer: String = if peer == "self" { "here".into() } else { peer.chars().take(10).collect() };
    let next = account.next_rtt_us.map_or("-".to_owned(), |us| format!("{:.2} rtt", f64::from(us) / 1e3));
    format!(
        "  {:<9} {peer:<11} {:>9} {:>7.2} {:>8.2} {:>9.2} {:>6.2} {:>9} {:>9}  {next}",
        format!("{from}..{to}"),
        account.positions,
        ms(account.queue_us),
        ms(account.compute_us),
        ms(account.handover_us),
        ms(account.codec_us),
        size(account.bytes_in / steps),
        size(account.bytes_out / steps),
    )
}

/// What most of a step was spent on, in words.
fn slowest(decode: &Phase) -> Option<String> {
    let parts = decode.stages.iter().flat_map(|stage| {
        let layers = format!("layers {}..{}", stage.layers[0], stage.layers[1]);
        let account = stage.account;
        [
            (account.compute_us, format!("computing {layers}")),
            (account.queue_us, format!("waiting for others at {layers}")),
            (account.handover_us, format!("the way to the engine of {layers}")),
        ]
    });
    // What nobody accounts for is the way only where one step followed the other.
    let between = if decode.overlapping > 0 { 0 } else { (decode.elsewhere_s() * 1e6) as u64 };
    let (us, what) = parts.chain([(between, "the way between machines".into())]).max()?;
    let share = us as f64 / 1e4 / decode.seconds.max(decode.busy_s());
    (decode.seconds > 0.0).then(|| format!("  most of it: {what}, {share:.0} %"))
}

#[cfg(test)]
mod tests {
    use potluck_core::Account;

    use super::*;

    fn stage(from: u32, compute_us: u64, steps: u64) -> StageAccount {
        let account = Account {
            steps,
            positions: steps,
            compute_us,
            queue_us: 1_000,
            next_rtt_us: Some(800),
            ..Account::default()
        };
        StageAccount { peer: "ab".repeat(32), layers: [from, from + 10], account }
    }

    #[test]
    fn a_trace_names_what_took_longest_and_what_is_left_is_the_way() {
        let stages = vec![stage(0, 20_000, 10), stage(10, 50_000, 10)];
        let decode = Phase { seconds: 0.1, client_s: 0.01, overlapping: 0, stages };
        let prefill = Phase { seconds: 0.2, stages: vec![stage(0, 90_000, 1)], ..Phase::default() };
        assert!((decode.elsewhere_s() - 0.018).abs() < 1e-9);
        let text = traced(&Trace { prefill, decode: decode.clone() });
        assert!(text.contains("answer: 10.00 ms a step, 10 steps"), "{text}");
        assert!(text.contains("1.00 to choose the token, 1.80 on the way between"), "{text}");
        assert!(text.ends_with("most of it: computing layers 10..20, 50 %"), "{text}");
        assert!(text.contains("0.80 rtt"), "{text}");
        // Steps under way at once: no share of more than all, and nothing said of the way.
        let decode = Phase { seconds: 0.05, overlapping: 4, ..decode };
        let text = traced(&Trace { prefill: Phase::default(), decode });
        assert!(
            text.contains("answer: 5.00 ms a step, 10 steps, 4 of which left while another was under way"),
            "{text}"
        );
        assert!(text.contains("1.00 to choose the token\n"), "{text}");
        assert!(text.ends_with("most of it: computing layers 10..20, 61 %"), "{text}");
        // Nothing was decoded: the prompt's table alone.
        let empty = Phase::default();
        assert!(!traced(&Trace { prefill: empty.clone(), decode: empty }).contains("answer"));
    }
}
