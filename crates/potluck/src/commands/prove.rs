//! `potluck model prove`: which codec changes nothing of a model, measured here and signed.

use clap::Args;
use potluck_core::{Stage, StageSpec};
use potluck_engine::{
    EngineSettings, EngineStage, FlashAttention, KvType,
    codecs::{self, MeasureError},
};
use potluck_model::{
    Facts,
    proof::{At, Change, Loss, Measured, Note, POSITIONS_MIN, Table},
};
use potluck_store::Entry;
use potluck_wire::Codec;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::swarm::utc_now;
use crate::{
    engines::{self, start_vocabulary},
    failure::{Failure, OrFail},
    home::{Home, Identity, Role},
    models::{self, Models, Proven, admit, load_stage, load_vocabulary},
    screen::{Screen, table},
    talk::split,
};

/// Peers of the chain that is measured, and layers of each end that stay with the client, as it would be used: the first that the
/// model can be cut for.
const CHAINS: [(usize, u32); 5] = [(3, 1), (2, 1), (1, 1), (3, 0), (2, 0)];

#[derive(Debug, Args)]
pub(crate) struct Prove {
    /// Its name, its id, or a path
    model: String,
    /// Measure each cut alone as well: three times the work, for the table only
    #[arg(long)]
    each_cut: bool,
    /// Threads of the engines [default: one a core, less one where they are more than four]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Layers to place on the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu_layers: u32,
    /// Score so many positions. Fewer than a proof takes are a trial, which proves nothing
    #[arg(long, value_name = "N", hide = true, default_value_t = POSITIONS_MIN, value_parser = clap::value_parser!(u32).range(8..=i64::from(POSITIONS_MIN)))]
    positions: u32,
}

impl Prove {
    pub(crate) async fn run(self, home: &Home, screen: Screen) -> Result<(), Failure> {
        let models = Models::open(home)?;
        let entry = models.find(&self.model, screen)?;
        if !entry.is_whole() {
            let hint = format!("potluck model pull {}", entry.name);
            return Err(Failure::new("not_here", format!("only a part of {} is here", entry.name), hint));
        }
        let stages = chain(&entry)?;
        for &spec in &stages {
            admit(&entry, spec).await?;
        }
        let passages = self.passages(&entry).await?;
        let scored: usize = passages.iter().map(|passage| passage.len() - 1).sum();
        if scored < self.positions as usize {
            let message = format!("the text has {scored} positions for {}; {} are needed", entry.name, self.positions);
            return Err(Failure::new("text_too_short", message, "report this, with the model's name"));
        }
        let window = passages.iter().map(|passage| passage.len() - 1).max().unwrap_or(0) as u32;
        let table = self.measure(&entry, &stages, passages, screen).await?;
        let key = Identity::open(home, Role::Peer)?.key;
        let note = Note {
            signer: key.peer_id(),
            model: entry.id,
            codec: table.smallest_without_loss(),
            table,
            text: models::scored(),
            gpu_layers: self.gpu_layers,
            window,
            program: env!("CARGO_PKG_VERSION").into(),
            made: utc_now(),
        };
        let kept = keep(home, &models, &note, &note.sign(&key))?;
        if screen.json {
            let mut object = note_json(&note);
            object["name"] = entry.name.clone().into();
            object["kept"] = kept.into();
            return screen.object(&object);
        }
        screen.text(&show(&note.table))?;
        screen.note(verdict(&entry.name, &note, kept));
        Ok(())
    }

    /// The text, as the model reads it.
    async fn passages(&self, entry: &Entry) -> Result<Vec<Vec<u32>>, Failure> {
        let settings = EngineSettings::default();
        let vocabulary = start_vocabulary(load_vocabulary(entry, &settings)?).await?;
        let tokens =
            vocabulary.tokenize(codecs::TEXT, false, false).await.map_err(potluck_client::GenerateError::from)?;
        let info = vocabulary.info();
        let begin = info.begin.filter(|_| info.adds_begin);
        let window = codecs::WINDOW.min(Facts::of(&entry.manifest).context as usize);
        Ok(codecs::passages(&tokens, begin, window, self.positions as usize))
    }

    /// Loads the chain, each stage in a child of its own, and measures.
    async fn measure(
        &self,
        entry: &Entry,
        stages: &[StageSpec],
        passages: Vec<Vec<u32>>,
        screen: Screen,
    ) -> Result<Table, Failure> {
        let default = EngineSettings::default();
        let threads = self.threads.unwrap_or(default.threads);
        let longest = passages.iter().map(|passage| passage.len() - 1).max().unwrap_or(1);
        let settings = EngineSettings {
            threads,
            threads_batch: threads,
            gpu_layers: self.gpu_layers,
            kv: KvType::F16,
            flash: FlashAttention::Off,
            context: longest as u32,
            caches: codecs::caches(stages.len() - 1, self.each_cut),
            exact: true,
            // Nothing of anybody's is in these caches.
            wipe_within: None,
            ..default
        };
        let loads = stages.iter().map(|&spec| load_stage(entry, spec, &settings)).collect::<Result<Vec<_>, _>>()?;
        let (program, each_cut) = (engines::program()?, self.each_cut);
        let bar = screen.count(format!("measuring codecs with {}", entry.name));
        let (told, mut telling) = tokio::sync::mpsc::unbounded_channel();
        let measuring = spawn_blocking(move || {
            let mut stages = Vec::with_capacity(loads.len());
            for load in loads {
                stages.push(Box::new(EngineStage::start(program.clone(), load)?) as Box<dyn Stage>);
            }
            let progress = |at| {
                // Whoever showed it is gone: then nobody is to be told.
                let _ = told.send(at);
            };
            Ok::<_, Failure>(codecs::measure(&mut stages, &passages, each_cut, progress)?)
        });
        while let Some((scored, all)) = telling.recv().await {
            bar.at(scored.into(), all.into());
        }
        measuring.await.or_fail("internal", "report this")?
    }
}

/// The stages that are measured, as a route would have them.
fn chain(entry: &Entry) -> Result<Vec<StageSpec>, Failure> {
    let mut refused = None;
    for (peers, ends) in CHAINS {
        match split(entry, peers, ends) {
            Ok(stages) => return Ok(stages),
            Err(failure) => {
                refused.get_or_insert(failure);
            }
        }
    }
    let why = refused.map_or_else(String::new, |failure| failure.message);
    let message = format!("{} runs on one machine only, so that its hidden states never travel: {why}", entry.name);
    Err(Failure::new("illegal_cut", message, "potluck model show says where it may be cut"))
}

/// Keeps the note in the catalogue. A trial takes no proof's place.
fn keep(home: &Home, models: &Models, note: &Note, signed: &[u8]) -> Result<bool, Failure> {
    let earlier = Proven::of(home, note.model)?;
    let trial = note.table.positions < POSITIONS_MIN;
    if trial && matches!(&earlier, Proven::Noted(noted) if noted.table.positions >= POSITIONS_MIN) {
        return Ok(false);
    }
    models.catalogue.write_proof(note.model, signed)?;
    Ok(true)
}

fn verdict(name: &str, note: &Note, kept: bool) -> String {
    if note.table.positions < POSITIONS_MIN {
        let loss = Loss::Positions { scored: note.table.positions };
        return format!("a trial: {loss}{}", if kept { "" } else { "; the earlier proof stays" });
    }
    match note.codec {
        Some(codec) => format!(
            "{codec} is the smallest without loss: {name} travels so from now on, over up to {} hops, unless --codec says otherwise",
            note.table.cuts.len()
        ),
        None => format!("nothing is without loss, not even f16: {name} travels as f16, as before"),
    }
}

/// A note, for `--json`.
pub(crate) fn note_json(note: &Note) -> Value {
    let table = &note.table;
    let row = |row: &Measured| {
        let losses: Vec<String> = match row.at {
            At::AllCuts => table.losses(row.codec).iter().map(ToString::to_string).collect(),
            At::Cut(_) => Vec::new(),
        };
        let mut object = change_json(&row.change, table);
        object["codec"] = row.codec.to_string().into();
        object["cut"] = match row.at {
            At::AllCuts => Value::Null,
            At::Cut(layer) => layer.into(),
        };
        object["bytes_per_value"] = round(table.bytes_per_value(row.codec), 4).into();
        object["encode_ns"] = round(row.encode_ns, 3).into();
        object["decode_ns"] = round(row.decode_ns, 3).into();
        object["losses"] = losses.into();
        object
    };
    json!({
        "model": note.model.to_string(),
        "codec": note.codec.map(|codec| codec.to_string()),
        "positions": table.positions,
        "gpu_layers": note.gpu_layers,
        "window": note.window,
        "text": blake3::Hash::from_bytes(note.text).to_hex().as_str(),
        "width": table.width,
        "cuts": table.cuts,
        "nll": round(table.nll, 6),
        "perplexity": round(table.nll.exp(), 4),
        "halved_steps": change_json(&table.halved, table),
        "rows": table.rows.iter().map(row).collect::<Vec<_>>(),
        "signer": note.signer.to_string(),
        "program": note.program,
        "made": note.made,
    })
}

fn change_json(change: &Change, table: &Table) -> Value {
    json!({
        "loss": round(change.loss, 8),
        "loss_error": round(change.loss_error, 8),
        "loss_percent": round(100.0 * change.loss / table.nll, 4),
        "kl": round(change.kl, 8),
        "agreed": change.agreed,
        "margin_median": round(change.margin_median, 4),
        "margin_max": round(change.margin_max, 4),
    })
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// The table, for people.
fn show(found: &Table) -> String {
    let heading = ["CODEC", "BYTES", "LOSS %", "+- %", "KL", "SAME", "MARGIN", "ENC NS", "DEC NS", ""];
    let cells = |name: String, bytes: String, change: &Change, times: Option<&Measured>, why: String| {
        let percent = |value: f64| format!("{:.3}", 100.0 * value / found.nll);
        let same = f64::from(change.agreed) * 100.0 / f64::from(found.positions.max(1));
        let ns = |of: fn(&Measured) -> f64| times.map_or_else(String::new, |row| format!("{:.1}", of(row)));
        let (encode, decode) = (ns(|row| row.encode_ns), ns(|row| row.decode_ns));
        let margin = format!("{:.2}", change.margin_max);
        let kl = format!("{:.5}", change.kl);
        let (loss, error) = (percent(change.loss), percent(change.loss_error));
        vec![name, bytes, loss, error, kl, format!("{same:.2} %"), margin, encode, decode, why]
    };
    let row = |row: &Measured| {
        let (name, why) = match row.at {
            At::AllCuts => (row.codec.to_string(), judged(found, row.codec)),
            At::Cut(layer) => (format!("  {} at {layer}", row.codec), String::new()),
        };
        let bytes = format!("{:.3}", found.bytes_per_value(row.codec));
        cells(name, bytes, &row.change, Some(row), why)
    };
    let shape = cells("none".into(), "4".into(), &found.halved, None, "in steps of half the positions".into());
    let rows = [heading.map(str::to_owned).to_vec(), shape].into_iter().chain(found.rows.iter().map(row));
    let cuts: Vec<_> = found.cuts.iter().map(u32::to_string).collect();
    format!(
        "{} positions, cut before layers {}, {:.4} nats a token (perplexity {:.3})\n{}",
        found.positions,
        cuts.join(", "),
        found.nll,
        found.nll.exp(),
        table(&rows.collect::<Vec<_>>()),
    )
}

fn judged(found: &Table, codec: Codec) -> String {
    let losses = found.losses(codec);
    if losses.is_empty() {
        return "without loss".into();
    }
    losses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl From<MeasureError> for Failure {
    fn from(error: MeasureError) -> Self {
        let (code, hint) = match &error {
            MeasureError::Nothing(_) => ("illegal_cut", "potluck model show says where it may be cut"),
            MeasureError::NotFinite { .. } | MeasureError::Codec { .. } => ("bad_model", "download the model again"),
            _ => ("engine_error", "run it again with RUST_LOG=debug to see the engine's own words"),
        };
        Self::new(code, &error, hint)
    }
}
