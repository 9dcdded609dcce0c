//! What the controller makes of chains and texts of many kinds, in virtual time, against plain steps and against the best
//! of all fixed policies: `cargo run -p potluck-chain --example speculation`.

#[path = "../tests/virtual_time/mod.rs"]
mod virtual_time;

use virtual_time::{
    Policy,
    machine::{Device, Setting},
    run,
    text::Kind,
};

const KINDS: [Kind; 6] = [
    Kind::novel("novel 0.35", 0.35),
    Kind::novel("novel 0.70", 0.70),
    Kind::novel("novel 0.92", 0.92),
    Kind::copying("copying", 160.0, 12.0),
    Kind::copying("mixed", 40.0, 80.0),
    Kind { boasts: true, ..Kind::novel("boaster 0.05", 0.05) },
];
const TOKENS: usize = 2_000;

fn main() {
    let drafts: Vec<f64> = std::env::args().skip(1).filter_map(|draft| draft.parse().ok()).collect();
    let drafts = if drafts.is_empty() { vec![0.1] } else { drafts };
    println!(
        "text          dev  lines draft | plain t/s  controlled (x plain)  best fixed (of best) | plain/lookup/model rounds, behind, drafts, trees | best"
    );
    for kind in KINDS {
        for device in [Device::Cpu, Device::Gpu] {
            for lines in [0.0, 0.02, 0.05, 0.1, 0.2] {
                for draft in &drafts {
                    let setting = Setting { device, lines, draft: *draft, noise: 0.2, drift: 1.0 };
                    row(kind, setting);
                }
            }
        }
    }
}

fn row(kind: Kind, setting: Setting) {
    let measure = |policy| run(kind, setting, policy, 7, TOKENS);
    let (plain, controlled) = (measure(Policy::PLAIN), measure(Policy::Controlled));
    let fixed = Policy::fixed().into_iter().map(|policy| (measure(policy), policy));
    let Some((best, policy)) = fixed.max_by(|a, b| a.0.rate().total_cmp(&b.0.rate())) else { return };
    let name = match policy {
        Policy::Controlled => String::new(),
        Policy::Fixed { lookup, model, depth, width, windows } => {
            let source = match (lookup, model) {
                (false, false) => "plain",
                (true, false) => "lookup",
                (false, true) => "model",
                (true, true) => "both",
            };
            format!("{source} depth {depth} width {width} windows {windows}")
        }
    };
    println!(
        "{:13} {:?} {:4.0} ms {:5.2} | {:8.1}  {:9.1} ({:5.2})  {:9.1} ({:4.2}) | {}/{}/{}, {}, {}, {} | {name}",
        kind.name,
        setting.device,
        setting.lines * 1_000.0,
        setting.draft,
        plain.rate(),
        controlled.rate(),
        controlled.rate() / plain.rate(),
        best.rate(),
        controlled.rate() / best.rate(),
        controlled.plain,
        controlled.looked_up,
        controlled.modelled,
        controlled.behind,
        controlled.drafts,
        controlled.trees,
    );
}
