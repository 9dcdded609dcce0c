//! `potluck model plan`: who would hold what, and how fast it would be, before anything is loaded.

use clap::Args;
use potluck_chain::plan::{Preview, Who};
use serde_json::json;

use crate::{
    args::{EngineArgs, Prefer, parse_bytes},
    failure::{Failure, OrFail},
    home::Home,
    models::Models,
    screen::{Screen, size, table},
    talk::{Surveyed, Wanted, preview},
};

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Its name, its id, or a path
    model: String,
    /// What a route is chosen for
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Prefer::Private)]
    prefer: Prefer,
    /// Memory that this machine gives to the model, such as 4GB [default: most of what is free]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Plan {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let entry = Models::open(home)?.find(&self.model, screen)?;
        let settings = self.engine.settings(1);
        settings.check()?;
        let wanted =
            Wanted { home, entry: &entry, settings: &settings, codec: self.engine.codec(), memory: self.memory };
        let Surveyed { preview, silent, .. } = preview(&wanted, self.prefer).await?;
        if screen.json {
            let mut object = serde_json::to_value(preview?).or_fail("internal", "report this")?;
            object["name"] = entry.name.into();
            object["silent"] = json!(silent);
            return screen.object(&object);
        }
        silent.iter().for_each(|why| screen.note(why));
        screen.text(&show(&preview?))
    }
}

fn show(plan: &Preview) -> String {
    let heading = ["", "LAYERS", "WEIGHTS", "CACHE", "MS/TOKEN", "HOP MS", ""].map(str::to_owned).to_vec();
    let rows = plan.stages.iter().map(|stage| {
        vec![
            name(stage.who),
            stage.layers.to_string(),
            size(stage.weight_bytes),
            size(stage.cache_bytes),
            format!("{:.2}", stage.decode_ms),
            format!("{:.2}", stage.hop_ms),
            (if stage.loaded { "serves it now" } else { "would load it" }).to_owned(),
        ]
    });
    let stages = table(&[heading].into_iter().chain(rows).collect::<Vec<_>>());
    let left_out = plan.left_out.iter().map(|out| format!("left out: {}: {}\n", name(out.who), out.reason));
    format!(
        "{stages}\n{}\npredicted: {:.1} tokens/s, prompts at {:.0} tokens/s, {:.0} bytes a token on the wire\n{}",
        plan.verdict.reason,
        plan.decode_tokens_per_s,
        plan.prefill_tokens_per_s,
        plan.bytes_per_position,
        left_out.collect::<String>(),
    )
}

fn name(who: Who) -> String {
    match who {
        Who::Own => "this machine".into(),
        Who::Peer(peer) => peer.short(),
    }
}
