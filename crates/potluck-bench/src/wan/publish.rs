//! The report: plots in `docs/wan/`, and a section of `docs/benchmarks.md`, both made of `bench/results/wan.json`
//! alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{
    figures::{ArmFigure, Figure, Report, Spread},
    parts::RPC_TOKENS,
    plot::{self, Series},
};
use crate::Outcome;

/// What encloses the section in the document.
const BEGIN: &str = "<!-- wan: begin; `potluck-bench wan-report` writes this -->";
const END: &str = "<!-- wan: end -->";

/// Plots and tables of what was measured
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// What was measured
    #[arg(long, default_value = "bench/results/wan.json")]
    results: PathBuf,
    /// The folder of the documents
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
}

/// Writes both.
pub(crate) fn run(args: &ReportArgs) -> Outcome<()> {
    let report = Report::read(&args.results)?;
    let folder = args.docs.join("wan");
    fs::create_dir_all(&folder)?;
    let mut plots = Vec::new();
    for (name, drawing) in draw(&report) {
        fs::write(folder.join(format!("{name}.svg")), drawing)?;
        plots.push(name);
    }
    let document = args.docs.join("benchmarks.md");
    let text = fs::read_to_string(&document)?;
    fs::write(&document, replace(&text, &section(&report, &plots)))?;
    eprintln!("written to {} and {}", folder.display(), Path::new(&document).display());
    Ok(())
}

/// The document with this section, in the place of the one that it had or at its end.
fn replace(document: &str, section: &str) -> String {
    let enclosed = format!("{BEGIN}\n{section}{END}\n");
    match (document.find(BEGIN), document.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let rest = document[end + END.len()..].trim_start_matches('\n');
            format!("{}{enclosed}{}{rest}", &document[..begin], if rest.is_empty() { "" } else { "\n" })
        }
        _ => format!("{}\n\n{enclosed}", document.trim_end()),
    }
}

fn kind(figure: &Figure) -> &'static str {
    if figure.paced { "paced" } else { "real" }
}

/// The same, of how many rounds, and what went wrong in them.
fn of_rounds(figure: &Figure) -> String {
    let lost = match figure.lost {
        0 => String::new(),
        lost => format!(", {lost} times a chain was lost and opened again"),
    };
    format!("{}, {} rounds{lost}", kind(figure), figure.rounds)
}

/// Each plot's name and drawing, as far as it was measured.
fn draw(report: &Report) -> Vec<(&'static str, String)> {
    let mut plots = Vec::new();
    for (part, file, title) in [
        ("plain", "plain", "A token a traversal, by loss"),
        ("novel", "novel", "Novel text, by loss"),
        ("draftable", "draftable", "Text that repeats what was given, by loss"),
        ("sessions", "sessions", "Eight sessions at once"),
        ("prefill", "prefill", "A prompt of 2,048 tokens, to its first token"),
        ("codecs", "codecs", "Codecs, by Mbit/s"),
    ] {
        let figures: Vec<&Figure> = report.figures.iter().filter(|figure| figure.part == part).collect();
        let Some(first) = figures.first() else { continue };
        let figures: Vec<&Figure> = figures.iter().copied().filter(|figure| figure.unit == first.unit).collect();
        let kinds = names(&figures);
        let group = |figure: &&Figure| {
            let setting = match part {
                "codecs" => format!("{} Mbit/s", figure.setting.mbit),
                _ => format!("{} %", figure.setting.loss * 100.0),
            };
            let find = |name: &String| figure.arms.iter().find(|arm| arm.name == *name);
            let bar = |arm: &ArmFigure| [arm.value.low, arm.value.median, arm.value.high];
            (format!("{}, {setting}", kind(figure)), kinds.iter().map(|name| find(name).map(bar)).collect())
        };
        let groups: Vec<_> = figures.iter().map(group).collect();
        plots.push((file, plot::bars(title, &first.unit, &kinds, &groups)));
    }
    let by_rtt = |figure: &Figure| figure.setting.rtt_ms;
    let by_peers = |figure: &Figure| figure.setting.peers as f64;
    for (part, title, axis, x) in [
        ("rtt", "A token a traversal, three peers", "round trip, ms", &by_rtt as &dyn Fn(&Figure) -> f64),
        ("stages", "A token a traversal, 50 ms", "peers", &by_peers),
    ] {
        let series = curves(report, part, x);
        if !series.is_empty() {
            plots.push((part, plot::lines(title, [axis, "tokens/s"], &series)));
        }
    }
    plots
}

/// The arms' names, in the order in which they come.
fn names(figures: &[&Figure]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let all = figures.iter().flat_map(|figure| figure.arms.iter().map(|arm| arm.name.clone()));
    all.filter(|name| seen.insert(name.clone())).collect()
}

/// A line for each arm and kind, and one for each bound.
fn curves(report: &Report, part: &str, x: &dyn Fn(&Figure) -> f64) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    let mut put = |name: String, point: (f64, f64)| match series.iter_mut().find(|(known, _)| *known == name) {
        Some((_, points)) => points.push(point),
        None => series.push((name, vec![point])),
    };
    for figure in report.figures.iter().filter(|figure| figure.part == part) {
        for arm in &figure.arms {
            put(format!("{} ({})", arm.name, kind(figure)), (x(figure), arm.value.median));
            if let Some(bound) = arm.bound {
                put(format!("bound of {} ({})", arm.name, kind(figure)), (x(figure), bound));
            }
        }
    }
    series.iter_mut().for_each(|(_, points)| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    series
}

/// The section: tables, and the plots.
fn section(report: &Report, plots: &[&str]) -> String {
    let mut text = format!(
        "## Over a wide-area network\n\n\
         `make bench-wan` measures, `make report-wan` writes this section and the plots out of `bench/results/wan.json`. {}; \
         {}.\n\n\
         Each machine is a network namespace on a line of its own. *Real* stages compute, and share this machine's cores; *paced* \
         ones sleep for the time that the stage was measured to take with the cores to itself and answer from a recording, so that \
         they overlap as on machines of their own. llama.cpp's RPC is real in both, and asked for {RPC_TOKENS} tokens at most of novel and \
         draftable answers, so that its prompt weighs more in its bytes a token. A bound is every line's delay, the bytes at the line's \
         rate and the stages' times with all cores, where traversals do not overlap. Values are medians over the rounds, with quartiles.\n\n",
        report.model,
        commits(report)
    );
    text += "| part | setting | kind | arm | value | first token | tokens a traversal | drafts accepted; rows, forwards a token | bytes, packets a token | of the bound |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for figure in &report.figures {
        for arm in &figure.arms {
            let share =
                arm.bound.map_or(String::new(), |bound| format!("{:.2} of {bound:.2}", arm.value.median / bound));
            let drafts = arm.accepted.map_or(String::new(), |accepted| {
                format!("{accepted:.2}; {:.2}, {:.2}", arm.rows_per_token, arm.forwards_per_token)
            });
            let packets = Some(arm.packets_per_token).filter(|packets| *packets > 0.0);
            let packets = packets.map_or(String::new(), |packets| format!(", {packets:.1}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} {} | {:.2} s | {:.2} | {drafts} | {:.0}{packets} | {share} |",
                figure.part,
                figure.setting.words(),
                of_rounds(figure),
                arm.name,
                spread(arm.value),
                figure.unit,
                arm.first_s.median,
                arm.tokens_per_traversal,
                arm.bytes_per_token
            );
        }
    }
    text += "\n| part | setting | kind | ratio | value | goal | |\n| --- | --- | --- | --- | --- | --- | --- |\n";
    for figure in &report.figures {
        for ratio in &figure.ratios {
            let verdict = match ratio.goal {
                Some(goal) if ratio.value.median >= goal => "met",
                Some(_) => "**missed**",
                None => "",
            };
            let goal = ratio.goal.map_or(String::new(), |goal| goal.to_string());
            let (setting, kind, value) = (figure.setting.words(), kind(figure), spread(ratio.value));
            let _ = writeln!(
                text,
                "| {} | {setting} | {kind} | {} ÷ {} | {value} | {goal} | {verdict} |",
                figure.part, ratio.of, ratio.over
            );
        }
    }
    text += &equal(report);
    text += &costs(report);
    for plot in plots {
        let _ = writeln!(text, "\n![{plot}](wan/{plot}.svg)");
    }
    text
}

/// Of what commits the figures are, and on what machines: they add up over runs.
fn commits(report: &Report) -> String {
    let mut parts: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for figure in &report.figures {
        parts.entry((&figure.machine, &figure.commit)).or_default().insert(&figure.part);
    }
    let of = |((machine, commit), parts): ((&str, &str), BTreeSet<&str>)| {
        format!("commit {commit} on {machine} ({})", parts.into_iter().collect::<Vec<_>>().join(", "))
    };
    parts.into_iter().map(of).collect::<Vec<_>>().join("; ")
}

/// What stages take, and how a reader computes another pair of models from it.
fn costs(report: &Report) -> String {
    let mut text = "\nTokens a second are E ÷ (hops × (round trip ÷ 2 + bytes ÷ rate) + Σ stage(rows) + draft), where E is the tokens that \
                    a traversal gives, which is 1 without drafts and (1 - aⁿ⁺¹) ÷ (1 - a) for a chain of n drafts of which each is \
                    accepted with probability a; hops are one more than peers; and a draft takes n times the draft model's step unless \
                    it is made while the last traversal is under way. For another pair of models, put in its stages' times, its \
                    width and its acceptance. Here the stages took, in milliseconds a step:\n\n"
        .to_owned();
    let Some(first) = report.stages.first() else { return String::new() };
    let columns: Vec<u32> = first.ms.iter().map(|(rows, _)| *rows).filter(|rows| rows.is_power_of_two()).collect();
    let heads: String = columns.iter().map(|rows| format!(" {rows} |")).collect();
    let _ = writeln!(text, "| layers, threads |{heads}\n| --- |{}", " --- |".repeat(columns.len()));
    for stage in &report.stages {
        let find =
            |rows: &u32| stage.ms.iter().find(|(measured, _)| measured == rows).map(|(_, ms)| format!(" {ms:.2} |"));
        let cells: String = columns.iter().map(|rows| find(rows).unwrap_or_else(|| " |".into())).collect();
        let _ = writeln!(text, "| {}, {} |{cells}", stage.layers, stage.threads);
    }
    text
}

fn spread(Spread { low, median, high }: Spread) -> String {
    format!("{median:.2} ({low:.2} to {high:.2})")
}

/// Whose tokens were the unsliced model's, and where they parted.
fn equal(report: &Report) -> String {
    let mut text = "\n| part | setting | arm | tokens equal up to the first that is not | answers equal | largest margin there |\n\
                    | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for figure in &report.figures {
        for equality in &figure.equality {
            let margins = equality.parted.iter().filter_map(|parting| parting.margin);
            let largest = margins.fold(None, |most: Option<f32>, margin| Some(most.map_or(margin, |m| m.max(margin))));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} of {} | {} of {} | {} |",
                figure.part,
                figure.setting.words(),
                equality.of,
                equality.tokens[0],
                equality.tokens[1],
                equality.answers[0],
                equality.answers[1],
                largest.map_or("none parted".into(), |margin| format!("{margin:.3}"))
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_is_replaced_and_nothing_else() {
        let once = replace("# Benchmarks\n\nText.\n", "one\n");
        assert!(once.starts_with("# Benchmarks\n\nText.\n\n<!-- wan"), "{once}");
        assert_eq!(replace(&once, "one\n"), once);
        let middle = once.clone() + "\n## After\n";
        let twice = replace(&middle, "two\n");
        assert!(twice.contains("two\n") && !twice.contains("one\n") && twice.ends_with("\n## After\n"), "{twice}");
    }
}
