//! The same, for people.

use super::{
    Compared, Link, Measured, Report, Times,
    links::one_way_ms,
    phase::StageTime,
    report::{Drafted, Predicted},
};
use crate::screen::{size, table};

/// All of it as tables, each with what it is above it.
pub(crate) fn show(report: &Report) -> String {
    let Report { name, machine, machine_skipped, route, links, transfer, prompt, plain, drafted, predicted, .. } =
        report;
    let mut parts = Vec::new();
    parts.extend(machine.as_ref().map(|machine| show_machine(name, machine)));
    parts.extend(machine_skipped.as_ref().map(|why| format!("this machine alone: not measured: {why}\n")));
    let stages = route.iter().map(|stage| {
        let [from, to] = stage.layers;
        vec![format!("  {from}..{to}"), place(&stage.peer), stage.path.to_owned(), stage.sees.words().to_owned()]
    });
    parts.push(format!("route\n{}", table(&stages.collect::<Vec<_>>())));
    if !links.is_empty() {
        parts.push(show_links(links));
    }
    if let Some(transfer) = transfer {
        parts.push(format!(
            "  a prompt of {} tokens went over them at {}/s: its bytes over its time on the way, less half the round trips\n",
            prompt.tokens,
            size(transfer.bytes_per_s as u64)
        ));
    }
    match &plain.step {
        Some(step) => {
            let whole = format!("a token: {:.2} ms, of {} (milliseconds)", step.ms, plain.tokens);
            parts.push(format!("{whole}\n{}", show_times(step, links)));
        }
        None => parts.push("where the time goes is not known: a peer of the route keeps no accounts\n".into()),
    }
    if let Some(step) = &prompt.step {
        let whole =
            format!("a prompt of {} tokens: {:.1} ms (milliseconds)", prompt.tokens, step.ms * step.steps as f64);
        parts.push(format!("{whole}\n{}", show_times(step, links)));
    }
    let drafts = drafted.as_ref().map_or(String::new(), |Drafted { tokens_per_s, drafts, .. }| {
        let (right, all) = (drafts.accepted, drafts.drafted);
        format!(", {tokens_per_s:.1} with guesses ({right} of {all} right)")
    });
    parts.push(format!(
        "the route: {:.1} tokens/s{drafts}, prompts at {:.0} tokens/s, {:.0} bytes a token on the wire\n",
        plain.tokens_per_s, prompt.tokens_per_s, plain.bytes_per_position
    ));
    parts.push(show_predicted(predicted));
    parts.join("\n")
}

fn show_machine(name: &str, machine: &Measured) -> String {
    let mut rows = vec![["  ROWS A STEP", "MS", "ROWS/S"].map(str::to_owned).to_vec()];
    rows.extend(
        machine
            .steps
            .iter()
            .map(|step| vec![format!("  {}", step.rows), format!("{:.2}", step.ms), format!("{:.1}", step.rows_per_s)]),
    );
    format!(
        "this machine alone: {name}, {}\n{}  it reads weights at about {}/s, as a step of one row shows: an estimate\n",
        machine.engine(),
        table(&rows),
        size(machine.weights_bytes_per_s as u64)
    )
}

fn show_links(links: &[Link]) -> String {
    let mut rows = vec![["  FROM", "TO", "RTT MS", "BYTES/TOKEN"].map(str::to_owned).to_vec()];
    rows.extend(links.iter().map(|link| {
        let rtt = link.rtt_ms.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
        vec![format!("  {}", place(&link.from)), place(&link.to), rtt, format!("{:.0}", link.bytes_per_token)]
    }));
    format!("links\n{}", table(&rows))
}

fn show_times(times: &Times, links: &[Link]) -> String {
    let mut rows = vec![["  LAYERS", "AT", "QUEUE", "COMPUTE", "HANDOVER", "CODEC", "ALL"].map(str::to_owned).to_vec()];
    rows.extend(times.stages.iter().map(|stage| {
        let StageTime { layers: [from, to], queue_ms, compute_ms, handover_ms, codec_ms, .. } = stage;
        let numbers = [*queue_ms, *compute_ms, *handover_ms, *codec_ms, stage.ms()];
        let cells = [format!("  {from}..{to}"), place(&stage.peer)].into_iter();
        cells.chain(numbers.map(|ms| format!("{ms:.2}"))).collect()
    }));
    let half = match links {
        [] => String::new(),
        links => format!(" (half of each round trip: {:.2})", one_way_ms(links)),
    };
    format!("{}  choosing {:.2}, on the way {:.2}{half}\n", table(&rows), times.choosing_ms, times.way_ms)
}

fn show_predicted(predicted: &Predicted) -> String {
    let Predicted { tokens_per_s, prompt_ms, computing_ms, between_ms, verdict } = predicted;
    let rows = [
        Some(("tokens/s", *tokens_per_s)),
        Some(("ms a prompt", *prompt_ms)),
        computing_ms.map(|compared| ("ms a token, computing", compared)),
        between_ms.map(|compared| ("ms a token, between", compared)),
    ];
    let mut cells = vec![["  ", "PREDICTED", "MEASURED", "RATIO"].map(str::to_owned).to_vec()];
    cells.extend(rows.into_iter().flatten().map(|(what, Compared { predicted, measured, ratio })| {
        let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        vec![format!("  {what}"), format!("{predicted:.2}"), format!("{measured:.2}"), ratio]
    }));
    format!("predicted: {verdict}\n{}", table(&cells))
}

fn place(peer: &str) -> String {
    if peer == "self" { "this machine".into() } else { peer.chars().take(10).collect() }
}
