//! `potluck model`: what this machine knows, and how it would be placed.

use std::time::UNIX_EPOCH;

use clap::{Args, Subcommand};
use potluck_core::LayerRange;
use potluck_model::{Admission, Facts, Family, slice};
use potluck_pull::{Address, Pulled};
use potluck_store::{Entry, Fetched};
use serde_json::{Value, json};

use super::{
    order::{Load, Unload},
    plan::Plan,
    prove::{Prove, note_json},
    serve::parse_layers,
};
use crate::{
    args::{DiskArgs, parse_bytes},
    failure::Failure,
    home::Home,
    models::{Models, Proven, age, pull_from_web, pull_model, room, tell_removed},
    screen::{Screen, size, table},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// Add a model: a GGUF, one of its parts, a folder, a wheel, ollama:NAME, or hf:ORG/NAME
    Add(Add),
    /// Get a model from the swarm, hf:ORG/NAME, ollama:NAME or https://...
    Pull(Pull),
    /// The models that this machine knows
    List,
    /// What a model is, and where it may be cut
    Show(Named),
    /// Forget a model; its files stay where they are, what Potluck fetched goes
    #[command(visible_alias = "rm")]
    Remove(Named),
    /// Remove what is left of downloads that broke off, and models that were used longest ago
    Prune(Prune),
    /// Have a peer serve these layers: where the swarm was made
    Load(Load),
    /// Have a peer serve nothing
    Unload(Unload),
    /// Find the smallest codec that changes nothing of a model, to be used from then on
    Prove(Prove),
    /// Preview a placement: who would hold what, and how fast it would be
    Plan(Plan),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Where it lies
    source: String,
    /// What to call it [default: after its file]
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Its name in the swarm, or its id; hf:ORG/NAME[:QUANTISATION], ollama:NAME[:TAG], or https://...
    model: String,
    /// What to call it, where it comes from the web [default: after its file]
    #[arg(long)]
    name: Option<String>,
    /// From the swarm, only what a peer needs that serves these layers, half open [default: all of it]
    #[arg(long, value_name = "A..B", value_parser = parse_layers)]
    layers: Option<LayerRange>,
    #[command(flatten)]
    disk: DiskArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Keep so much of what was fetched, such as 50GB: what was used last [default: all models]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    keep: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Its name, its id, or a path
    model: String,
}

impl Model {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let models = Models::open(home)?;
        match self {
            Self::Add(Add { source, name }) => show_added(home, screen, &models.add(&source, name.as_deref(), screen)?),
            Self::Pull(pull) => pull.run(home, screen).await,
            Self::List => list(screen, home, &models),
            Self::Show(Named { model }) => show(screen, home, &models.find(&model, screen)?),
            Self::Remove(Named { model }) => remove(screen, home, &models, &model),
            Self::Prune(prune) => prune.run(home, screen),
            Self::Load(load) => load.run(home, screen).await,
            Self::Unload(unload) => unload.run(home, screen).await,
            Self::Prove(prove) => prove.run(home, screen).await,
            Self::Plan(plan) => plan.run(home, screen).await,
        }
    }
}

fn show_added(home: &Home, screen: Screen, entry: &Entry) -> Result<(), Failure> {
    if screen.json {
        return screen.object(&row(entry));
    }
    hint_at_proof(home, screen, entry);
    screen.text(&format!("{}  {}\n", entry.name, entry.id))
}

/// How hidden states of the model come to travel in fewer bytes: what that changes is measured, model by model.
fn hint_at_proof(home: &Home, screen: Screen, entry: &Entry) {
    let proven = Proven::of(home, entry.id).is_ok_and(|proven| proven.codec().is_some());
    if entry.is_whole() && !proven {
        screen.note(format!(
            "hint: over slow lines, fewer bytes: potluck model prove {} (some minutes; until then hidden states travel as f16)",
            entry.name
        ));
    }
}

impl Pull {
    async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let Self { model, name, layers, disk } = self;
        let home = &disk.limit(home);
        let Some(address) = Address::of(&model) else {
            return show_pulled(home, screen, &pull_model(home, screen, &model, layers).await?);
        };
        if layers.is_some() {
            return Err(Failure::usage("a file comes as a whole", "leave --layers out, or pull from the swarm"));
        }
        show_added(home, screen, &pull_from_web(home, screen, &address, name.as_deref()).await?)
    }
}

fn show_pulled(home: &Home, screen: Screen, pulled: &Pulled) -> Result<(), Failure> {
    let entry = &pulled.entry;
    let from = pulled.from.iter().map(|(peer, bytes)| (peer.to_string(), json!(bytes)));
    if screen.json {
        let mut object = row(entry);
        object["wanted_bytes"] = pulled.wanted_bytes.into();
        object["received_bytes"] = pulled.received_bytes.into();
        object["from"] = Value::Object(from.collect());
        return screen.object(&object);
    }
    for (peer, bytes) in &pulled.from {
        screen.note(format!("{} from {}", size(*bytes), peer.short()));
    }
    hint_at_proof(home, screen, entry);
    screen.text(&format!("{}  {}\n", entry.name, entry.id))
}

fn list(screen: Screen, home: &Home, models: &Models) -> Result<(), Failure> {
    let (entries, fetched) = (models.catalogue.list()?, room(home)?.fetched()?);
    let of = |entry: &Entry| fetched.iter().find(|fetched| fetched.model == Some(entry.id));
    let used = |entry: &Entry| models.catalogue.last_used(entry.id);
    // A note that counts for nothing is told of by `show`.
    let proven = |entry: &Entry| Proven::of(home, entry.id).ok().and_then(|proven| proven.codec());
    let codec = |entry: &Entry| proven(entry).map(|codec| codec.to_string());
    if screen.json {
        let row = |entry: &Entry| {
            let mut object = row(entry);
            let used = used(entry).and_then(|used| used.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
            object["fetched_bytes"] = of(entry).map_or(0, |fetched| fetched.bytes).into();
            object["last_used"] = used.into();
            object["codec"] = codec(entry).into();
            object["in_use"] = models.catalogue.is_in_use(entry.id)?.into();
            Ok(object)
        };
        let rows = entries.iter().map(row).collect::<Result<Vec<_>, Failure>>()?;
        let fetched_bytes = fetched.iter().map(|fetched| fetched.bytes).sum::<u64>();
        return screen.object(&json!({ "models": rows, "fetched_bytes": fetched_bytes }));
    }
    if entries.is_empty() {
        screen.note("no models yet: potluck model add PATH");
        return Ok(());
    }
    let heading = ["NAME", "ID", "SIZE", "HERE", "FETCHED", "USED", "LAYERS", "TYPE", "CONTEXT", "CODEC"]
        .map(str::to_owned)
        .to_vec();
    let rows = entries.iter().map(|entry| {
        let facts = Facts::of(&entry.manifest);
        let [layers, context] = [facts.layers, facts.context].map(|n| n.to_string());
        let here = if entry.is_whole() { "all".to_owned() } else { size(entry.held_bytes()) };
        let own = of(entry).map_or_else(|| "-".to_owned(), |fetched| size(fetched.bytes));
        let (size, used) = (size(facts.bytes), age(used(entry)));
        let codec = codec(entry).unwrap_or_else(|| "-".to_owned());
        vec![entry.name.clone(), entry.id.short(), size, here, own, used, layers, facts.quantisation, context, codec]
    });
    screen.text(&table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()))
}

fn show(screen: Screen, home: &Home, entry: &Entry) -> Result<(), Failure> {
    let facts = Facts::of(&entry.manifest);
    let cuts = slice::legal_cuts(&entry.manifest);
    let (legal, refused): (Vec<_>, Vec<_>) = (1..).zip(&cuts).partition(|(_, cut)| cut.is_ok());
    let proven = Proven::of(home, entry.id)?;
    let reason = refused.first().and_then(|(_, cut)| cut.as_ref().err()).map(ToString::to_string);
    if screen.json {
        let mut object = row(entry);
        object["cuts"] = legal.iter().map(|&(layer, _)| layer).collect::<Vec<u32>>().into();
        object["admission"] = admission(entry).into();
        object["why_not_elsewhere"] = reason.into();
        object["codec"] = proven.codec().map(|codec| codec.to_string()).into();
        object["proof"] = proof_json(&proven);
        object["files"] = entry.place.files.iter().map(|file| file.path.display().to_string()).collect();
        return screen.object(&object);
    }
    let cuts = match (legal.len(), reason) {
        (n, None) => format!("at all {n} boundaries"),
        (0, Some(reason)) => format!("nowhere: {reason}"),
        (n, Some(reason)) => format!("at {n} of {} boundaries; elsewhere: {reason}", cuts.len()),
    };
    let files: Vec<_> = entry.place.files.iter().map(|file| file.path.display().to_string()).collect();
    let lines = [
        ("name", entry.name.clone()),
        ("id", entry.id.to_string()),
        ("architecture", facts.architecture),
        ("layers", format!("{} of width {}", facts.layers, facts.width)),
        ("parameters", format!("{:.1} million, mostly {}", facts.parameters as f64 / 1e6, facts.quantisation)),
        ("context", format!("{} positions, {} of cache each", facts.context, size(facts.cache_bytes_per_position))),
        ("size", size(facts.bytes)),
        ("licence", facts.licence.unwrap_or_else(|| "not said".into())),
        ("slicing", admission(entry)),
        ("cuts", cuts),
        ("codec", proven.words(&entry.name)),
        ("files", files.join("\n              ")),
    ];
    screen.text(&lines.map(|(name, value)| format!("{name:12}  {value}\n")).concat())
}

/// The note of a proof, or why it counts for nothing; null where there is none.
fn proof_json(proven: &Proven) -> Value {
    match proven {
        Proven::Untried => Value::Null,
        Proven::Void(error) => json!({ "counts": false, "why": error.to_string() }),
        Proven::Noted(note) => {
            let mut object = note_json(note);
            object["counts"] = note.codec.is_some().into();
            object
        }
    }
}

fn remove(screen: Screen, home: &Home, models: &Models, model: &str) -> Result<(), Failure> {
    let entry = models.catalogue.get(model)?;
    let removed = room(home)?.remove(entry.id)?;
    let bytes = removed.map_or(0, |fetched| fetched.bytes);
    if screen.json {
        return screen.object(&json!({ "removed": entry.id.to_string(), "bytes": bytes }));
    }
    let what = match bytes {
        0 => "its files stay where they are".to_owned(),
        bytes => format!("what was fetched of it is removed: {}", size(bytes)),
    };
    screen.note(format!("forgot {}; {what}", entry.name));
    Ok(())
}

impl Prune {
    fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let removed = room(home)?.prune(self.keep)?;
        let bytes = removed.iter().map(|fetched| fetched.bytes).sum::<u64>();
        if screen.json {
            let row = |fetched: &Fetched| {
                let id = fetched.model.map(|id| id.to_string());
                json!({ "name": fetched.name, "id": id, "bytes": fetched.bytes })
            };
            return screen.object(&json!({ "removed": removed.iter().map(row).collect::<Vec<_>>(), "bytes": bytes }));
        }
        tell_removed(screen, &removed);
        screen.note(format!("{} are free again", size(bytes)));
        Ok(())
    }
}

fn admission(entry: &Entry) -> String {
    match Family::of(&entry.manifest).admission {
        Admission::Exact => "exact".into(),
        Admission::Probe => "to be probed before it serves".into(),
        Admission::Refused(reason) => format!("refused: {reason}"),
    }
}

fn row(entry: &Entry) -> Value {
    let facts = Facts::of(&entry.manifest);
    json!({
        "name": entry.name,
        "id": entry.id.to_string(),
        "architecture": facts.architecture,
        "layers": facts.layers,
        "width": facts.width,
        "vocabulary": facts.vocabulary,
        "context": facts.context,
        "parameters": facts.parameters,
        "bytes": facts.bytes,
        "held_bytes": entry.held_bytes(),
        "quantisation": facts.quantisation,
        "cache_bytes_per_position": facts.cache_bytes_per_position,
        "licence": facts.licence,
    })
}
