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
    contest::{ALONE, RPC, UNSLICED},
    figures::{ArmFigure, Equality, Figure, NEAR_TIE, Report, Spread},
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

/// What its stages do; of each arm, see [`Figure::kind`].
fn stages(figure: &Figure) -> &'static str {
    if figure.paced { "paced" } else { "real" }
}

/// What was measured, in short: a part may have several figures.
fn what(figure: &Figure) -> String {
    format!("{}: {}", figure.part, figure.name)
}

/// Whether an arm computed or was paced, in how many rounds, and what went wrong in them.
fn of_rounds(figure: &Figure, arm: &ArmFigure) -> String {
    let lost = match figure.lost {
        0 => String::new(),
        lost => format!(", {lost} times a chain was lost and opened again"),
    };
    format!("{}, {} rounds{lost}", figure.kind(&arm.name), figure.rounds)
}

/// Each plot's name and drawing, as far as it was measured.
fn draw(report: &Report) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for (part, unit, file, title) in [
        ("plain", "tokens/s", "plain", "A token a traversal, by loss"),
        ("novel", "tokens/s", "novel", "Novel text, by loss"),
        ("draftable", "tokens/s", "draftable", "Text that repeats what was given, by loss"),
        ("sessions", "tokens/s", "sessions", "Eight sessions at once"),
        ("prefill", "positions/s", "prefill", "A prompt of 2,048 tokens, to its first token"),
        ("codecs", "tokens/s", "codecs", "Codecs, a token a traversal, by Mbit/s"),
        ("codecs", "positions/s", "codecs-first", "Codecs, a prompt of 2,048 tokens to its first token, by Mbit/s"),
    ] {
        let is_of = |figure: &&Figure| figure.part == part && figure.unit == unit && figure.setting.line.is_none();
        let figures: Vec<&Figure> = report.figures.iter().filter(is_of).collect();
        let label = |figure: &Figure| match part {
            "codecs" => format!("{}, {} Mbit/s", stages(figure), figure.setting.mbit),
            _ => format!("{}, {} %", stages(figure), figure.setting.loss * 100.0),
        };
        plots.extend(bars(title, &figures, label).map(|drawing| (file.to_owned(), drawing)));
    }
    for (part, title) in
        [("plain", "A token a traversal"), ("novel", "Novel text"), ("draftable", "Text that repeats what was given")]
    {
        // Each kind by itself: there are many lines.
        for paced in [false, true] {
            let is_of =
                |figure: &&Figure| figure.part == part && figure.paced == paced && figure.setting.line.is_some();
            let figures: Vec<&Figure> = report.figures.iter().filter(is_of).collect();
            let label = |figure: &Figure| figure.setting.line.map_or(String::new(), |line| line.to_string());
            let kind = if paced { "paced" } else { "real" };
            let drawing = bars(&format!("{title}, by line ({kind})"), &figures, label);
            plots.extend(drawing.map(|drawing| (format!("{part}-lines-{kind}"), drawing)));
        }
    }
    let by_rtt = |figure: &Figure| figure.setting.rtt_ms;
    let by_peers = |figure: &Figure| figure.setting.peers as f64;
    for (part, title, axis, x) in [
        ("rtt", "A token a traversal, three peers", "round trip, ms", &by_rtt as &dyn Fn(&Figure) -> f64),
        ("stages", "A token a traversal, 50 ms", "peers", &by_peers),
    ] {
        let series = curves(report, part, x);
        if !series.is_empty() {
            plots.push((part.to_owned(), plot::lines(title, [axis, "tokens/s"], &series)));
        }
    }
    plots
}

/// Bars of figures, a group for each figure; none where there are none.
fn bars(title: &str, figures: &[&Figure], label: impl Fn(&Figure) -> String) -> Option<String> {
    let unit = &figures.first()?.unit;
    let names = names(figures);
    let mut groups = Vec::with_capacity(figures.len());
    for figure in figures {
        let find = |name: &String| figure.arms.iter().find(|arm| arm.name == *name);
        let bar = |arm: &ArmFigure| [arm.value.low, arm.value.median, arm.value.high];
        let bars: Vec<Option<[f64; 3]>> = names.iter().map(|name| find(name).map(bar)).collect();
        groups.push((label(figure), bars));
    }
    // Some are real in a group that is called paced, too.
    let any_paced = figures.iter().any(|figure| figure.paced);
    let told = |name: &String| match any_paced && [RPC, ALONE].contains(&name.as_str()) {
        true => format!("{name} (real)"),
        false => name.clone(),
    };
    let kinds: Vec<String> = names.iter().map(told).collect();
    Some(plot::bars(title, unit, &kinds, &groups))
}

/// The arms' names, in the order in which they come.
fn names(figures: &[&Figure]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let all = figures.iter().flat_map(|figure| figure.arms.iter().map(|arm| arm.name.clone()));
    all.filter(|name| seen.insert(name.clone())).collect()
}

/// A line for each arm and kind, one for each bound, and one for what the planner predicts.
fn curves(report: &Report, part: &str, x: &dyn Fn(&Figure) -> f64) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    let mut put = |name: String, point: (f64, f64)| match series.iter_mut().find(|(known, _)| *known == name) {
        // What computes in either kind of figure, and what is predicted, has a point of each: the first is enough.
        Some((_, points)) if points.iter().any(|known| known.0 == point.0) => {}
        Some((_, points)) => points.push(point),
        None => series.push((name, vec![point])),
    };
    for figure in report.figures.iter().filter(|figure| figure.part == part) {
        for arm in &figure.arms {
            let kind = figure.kind(&arm.name);
            put(format!("{} ({kind})", arm.name), (x(figure), arm.value.median));
            if let Some(bound) = arm.bound {
                put(format!("bound of {} ({kind})", arm.name), (x(figure), bound));
            }
        }
        if let Some(predicted) = figure.predicted {
            put("predicted".to_owned(), (x(figure), predicted));
        }
    }
    series.iter_mut().for_each(|(_, points)| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    series
}

/// The section: tables, and the plots.
fn section(report: &Report, plots: &[String]) -> String {
    let mut text = format!(
        "## Over a wide-area network\n\n\
         `make bench-wan` measures, `make report-wan` writes this section and the plots out of `bench/results/wan.json`. {}; \
         {}.\n\n\
         Each machine is a network namespace on a line of its own. *Real* stages compute, and share this machine's cores; *paced* \
         ones sleep for the time that the stage was measured to take with the cores to itself and answer from a recording, so that \
         they overlap as on machines of their own. llama.cpp's RPC and the machine that holds the whole model are real beside either kind \
         of stages, and named so; the RPC is asked for {RPC_TOKENS} tokens at most of novel and draftable answers, so that its prompt weighs \
         more in its bytes a token. Values are medians over the rounds, with quartiles.\n\n\
         A bound is what no implementation exceeds that cuts the model as we do, with these lines and the stages' times with all cores. One \
         session without drafts: 1 ÷ (every line's delay + the bytes at the line's rate + the stages' times). n sessions without drafts: \
         min(n × one session's bound, 1 ÷ slowest), where slowest is the most seconds that a stage takes for a token, in batches of the best \
         size up to n, or a line for its bytes; real stages share the cores and take turns, so that all of them count together as one stage. \
         A prompt: the first chunk through every line and stage, the rest at the slowest of them, likewise. Arms that draft have no bound: \
         their traversals overlap, so that no time has to pass between two tokens that a draft got right, and what is left depends on \
         acceptance. Nor have llama.cpp's RPC and one machine, which do not run these stages. What is predicted is the planner's, \
         which `potluck model plan` tells, from the same times and lines.\n\n",
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
            let predicted = figure.predicted.filter(|_| arm.bound.is_some());
            let predicted = predicted.map_or(String::new(), |rate| format!(", predicted {rate:.2}"));
            let packets = Some(arm.packets_per_token).filter(|packets| *packets > 0.0);
            let packets = packets.map_or(String::new(), |packets| format!(", {packets:.1}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} {} | {:.2} s | {:.2} | {drafts} | {:.0}{packets} | {share}{predicted} |",
                what(figure),
                figure.setting.words(),
                of_rounds(figure, arm),
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
            let (setting, kind, value) = (figure.setting.words(), figure.kind_of_ratio(ratio), spread(ratio.value));
            let _ = writeln!(
                text,
                "| {} | {setting} | {kind} | {} ÷ {} | {value} | {goal} | {verdict} |",
                what(figure),
                ratio.of,
                ratio.over
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

/// Partings from the unsliced model that are told one by one; of more only the largest margin.
const FEW_PARTINGS: usize = 3;

/// Whose tokens were the unsliced model's, or those without drafts, and where they parted.
fn equal(report: &Report) -> String {
    let mut text = format!(
        "\nReal answers beside those of {UNSLICED}, and those with drafts beside those without over the same chain. Where they part, \
         a margin says by how much the likeliest token's logit exceeded the next in the unsliced model's own run: up to {NEAR_TIE} it is a \
         near-tie, which the shape of a batch decides. Where both had left that run's text before, the model was asked \
         anew with the text up to there. Tokens count from 0.\n\n\
         | part | setting | arm | beside | tokens equal up to the first that is not | answers equal | parted, and the margin there | beyond a near-tie |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for figure in &report.figures {
        for equality in &figure.equality {
            let Equality { of, with, answers, tokens, parted } = equality;
            let _ = writeln!(
                text,
                "| {} | {} | {of} | {with} | {} of {} | {} of {} | {} | {} of {} |",
                what(figure),
                figure.setting.words(),
                tokens[0],
                tokens[1],
                answers[0],
                answers[1],
                partings(equality),
                equality.beyond_near_ties(),
                parted.len()
            );
        }
    }
    text
}

/// Where answers parted, and by what margin.
fn partings(equality: &Equality) -> String {
    let words = |margin: Option<f32>| match margin {
        Some(margin) if margin > NEAR_TIE => format!("{margin:.3} **no near-tie**"),
        Some(margin) => format!("{margin:.3}"),
        None => "margin unknown".into(),
    };
    let parted = &equality.parted;
    if parted.is_empty() {
        return "none parted".into();
    }
    if equality.with == UNSLICED && parted.len() > FEW_PARTINGS {
        let largest = parted.iter().filter_map(|parting| parting.margin).max_by(f32::total_cmp);
        return format!("the largest of {}: {}", parted.len(), words(largest));
    }
    let each = parted.iter().map(|parting| format!("{} at {}: {}", parting.prompt, parting.at, words(parting.margin)));
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::{figures::Parting, net::Setting};

    fn arm(name: &str, median: f64) -> ArmFigure {
        ArmFigure { name: name.into(), value: Spread { median, ..Spread::default() }, ..ArmFigure::default() }
    }

    #[test]
    fn partings_are_told_and_those_beyond_a_near_tie_marked() {
        let parting = |prompt: &str, at, margin| Parting { prompt: prompt.into(), at, margin };
        let parted =
            vec![parting("edit-1", 23, Some(0.227)), parting("edit-2", 0, Some(0.5)), parting("quote-1", 7, None)];
        let beside = |with: &str, parted| Equality {
            of: "lookup".into(),
            with: with.into(),
            answers: [1, 4],
            tokens: [30, 90],
            parted,
        };
        let told = "edit-1 at 23: 0.227; edit-2 at 0: 0.500 **no near-tie**; quote-1 at 7: margin unknown";
        assert_eq!(partings(&beside("plain", parted.clone())), told);
        let many = [parted.clone(), parted.clone()].concat();
        assert_eq!(partings(&beside("plain", many.clone())), format!("{told}; {told}"));
        assert_eq!(partings(&beside(UNSLICED, many)), "the largest of 6: 0.500 **no near-tie**");
        assert_eq!(partings(&beside(UNSLICED, Vec::new())), "none parted");
        let figure = Figure { equality: vec![beside("plain", parted)], ..Figure::default() };
        let text = equal(&Report { figures: vec![figure], ..Report::default() });
        assert!(text.ends_with(&format!("| lookup | plain | 30 of 90 | 1 of 4 | {told} | 1 of 3 |\n")), "{text}");
    }

    #[test]
    fn each_plot_is_of_one_unit_and_each_line_has_its_place() {
        use potluck_netem::link::Line;
        let figure = |part: &str, unit: &str| Figure {
            part: part.into(),
            unit: unit.into(),
            arms: vec![arm("f16", 3.0)],
            ..Figure::default()
        };
        let on_a_line = Figure { setting: Setting::on(Line::Dsl), paced: true, ..figure("novel", "tokens/s") };
        let figures = vec![figure("codecs", "tokens/s"), figure("codecs", "positions/s"), on_a_line];
        let plots = draw(&Report { figures, ..Report::default() });
        let names: Vec<&str> = plots.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["codecs", "codecs-first", "novel-lines-paced"]);
        assert!(plots[1].1.contains("positions/s") && !plots[1].1.contains("tokens/s"));
        assert!(plots[2].1.contains(">dsl<"), "{}", plots[2].1);
    }

    #[test]
    fn a_curve_has_one_line_for_what_is_the_same_in_both_kinds() {
        let figure = |paced| Figure {
            part: "rtt".into(),
            paced,
            arms: vec![arm(ALONE, 60.0), arm("plain", 8.0)],
            predicted: Some(8.5),
            ..Figure::default()
        };
        let report = Report { figures: vec![figure(false), figure(true)], ..Report::default() };
        let series = curves(&report, "rtt", &|figure: &Figure| figure.setting.rtt_ms);
        let names: Vec<&str> = series.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["one machine (real)", "plain (real)", "predicted", "plain (paced)"]);
        assert!(series.iter().all(|(_, points)| points.len() == 1), "{series:?}");
    }

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
