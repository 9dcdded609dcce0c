//! `potluck model plan`: who would hold what, and how fast it would be, before anything is loaded.

use clap::Args;
use potluck_chain::plan::{PlannedStage, Preview, Who};
use serde_json::json;

use crate::{
    args::{EngineArgs, PEERS_MAX, Prefer, PrivacyArgs, parse_bytes},
    failure::{Failure, OrFail},
    home::Home,
    models::{CodecChoice, find_model},
    screen::{Screen, size, table},
    talk::{Surveyed, Wanted, advice, own_peers_plan, preview, who_name},
};

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Its name, its id, or a path
    model: String,
    /// What a route is chosen for
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Prefer::Private)]
    prefer: Prefer,
    /// What `run --peers N` would start: N peers on this machine, all layers spread over them
    #[arg(long, value_name = "N", conflicts_with = "prefer", value_parser = clap::value_parser!(u16).range(1..=i64::from(PEERS_MAX)))]
    peers: Option<u16>,
    /// The same with the first and the last layer in the command itself
    #[arg(long, requires = "peers")]
    own_ends: bool,
    #[command(flatten)]
    privacy: PrivacyArgs,
    /// Memory that this machine gives to the model, such as 4GB [default: most of what is free]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Plan {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let entry = find_model(home, screen, Some(&self.model)).await?;
        let settings = self.engine.settings(1);
        settings.check()?;
        if self.peers.is_none() {
            self.privacy.check(self.prefer)?;
        }
        let (privacy, codec) = (self.privacy.read(), CodecChoice::of(home, screen, &entry, &self.engine));
        let wanted = Wanted {
            home,
            entry: &entry,
            settings: &settings,
            codec,
            memory: self.memory,
            privacy: &privacy,
            standby: 0,
            screen: None,
        };
        let ends = self.privacy.ends(self.own_ends);
        let (preview, silent) = match self.peers {
            Some(peers) => (Ok(own_peers_plan(&wanted, peers.into(), ends)?), Vec::new()),
            None => {
                let Surveyed { preview, silent, .. } = preview(&wanted, self.prefer).await?;
                (preview, silent)
            }
        };
        if screen.json {
            let mut object = serde_json::to_value(preview?).or_fail("internal", "report this")?;
            object["name"] = entry.name.clone().into();
            object["silent"] = json!(silent);
            return screen.object(&object);
        }
        silent.iter().for_each(|why| screen.note(why));
        let plan = preview?;
        screen.text(&show(&plan))?;
        if let Some(advice) = advice(&plan, &entry.name) {
            screen.note(format!("hint: {advice}"));
        }
        Ok(())
    }
}

fn show(plan: &Preview) -> String {
    let heading =
        ["", "LAYERS", "WEIGHTS", "CACHE", "MEMORY", "MS/TOKEN", "HOP MS", "", ""].map(str::to_owned).to_vec();
    let rows = plan.stages.iter().map(|stage| {
        vec![
            who_name(stage.who),
            stage.layers.to_string(),
            size(stage.weight_bytes),
            size(stage.cache_bytes),
            size(stage.memory_bytes),
            format!("{:.2}", stage.decode_ms),
            format!("{:.2}", stage.hop_ms),
            doing(stage).to_owned(),
            stage.sees.words().to_owned(),
        ]
    });
    let stages = table(&[heading].into_iter().chain(rows).collect::<Vec<_>>());
    let left_out = plan.left_out.iter().map(|out| format!("left out: {}: {}\n", who_name(out.who), out.reason));
    format!(
        "{stages}\n{}\npredicted: {:.1} tokens/s, prompts at {:.0} tokens/s, {:.0} bytes a token on the wire\n{}",
        plan.verdict.reason,
        plan.decode_tokens_per_s,
        plan.prefill_tokens_per_s,
        plan.bytes_per_position,
        left_out.collect::<String>(),
    )
}

fn doing(stage: &PlannedStage) -> &'static str {
    match (stage.who, stage.loaded) {
        (_, true) => "serves it now",
        (Who::Started(_), false) => "would be started",
        _ => "would load it",
    }
}
