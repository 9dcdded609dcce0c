//! What codecs change of the small model, in short: the measurement itself, and that it measures what it says.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::collections::HashMap;

use common::{exact, small_model, tokens};
use potluck_core::{
    CacheId, Hidden, LayerRange, Logits, ModelId, Output, Stage, StageError, StageShape, StageSpec, Step,
};
use potluck_engine::{
    EngineSettings, LlamaStage,
    codecs::{CODECS, MeasureError, Seen, caches, measure, watch},
};
use potluck_model::proof::{At, Loss};
use potluck_wire::Codec;

const WIDTH: u32 = 64;
const VOCABULARY: u32 = 16;

#[test]
fn each_codec_is_measured_at_all_cuts_and_at_each() {
    let model = small_model();
    let settings = EngineSettings { context: 24, caches: caches(2, true), wipe_within: None, ..exact() };
    let load = |load| Box::new(LlamaStage::load(&load, |_| {}).unwrap()) as Box<dyn Stage>;
    let mut stages: Vec<_> = model.chain(3, &settings).into_iter().map(load).collect();
    let passages = [tokens(1, 25, 40_000), tokens(2, 17, 40_000)];
    let mut told = Vec::new();
    let table = measure(&mut stages, &passages, true, |at| told.push(at)).unwrap();
    assert_eq!(told.last(), Some(&(40, 40)));
    assert_eq!((table.positions, table.width, &table.cuts[..]), (40, 576, &[10, 20][..]));
    assert!(table.is_sound());
    assert_eq!(table.rows.len(), CODECS.len() * 3);
    let kl = |codec, at| table.rows.iter().find(|row| (row.codec, row.at) == (codec, at)).unwrap().change.kl;
    for at in [At::AllCuts, At::Cut(10), At::Cut(20)] {
        assert!(kl(Codec::Mixed4, at) > kl(Codec::Mixed8, at), "fewer bits move more, at {at:?}");
        assert!(kl(Codec::Mixed4, at) > kl(Codec::F16, at), "than the yardstick does, at {at:?}");
    }
    // As good as made-up text is to predict.
    assert!(table.nll > 3.0, "{}", table.nll);
    assert!(matches!(table.losses(Codec::F16)[..], [Loss::Positions { scored: 40 }, ..]));
    // The same again is the same, and what is shown is what was counted.
    let (mut unchanged, mut agreed) = (HashMap::new(), 0);
    let see = |seen: Seen<'_>| {
        let likeliest = seen.logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        let at = (seen.passage, seen.position);
        match seen.codec {
            None => drop(unchanged.insert(at, likeliest)),
            Some((Codec::Mixed4, At::AllCuts)) => agreed += u32::from(unchanged[&at] == likeliest),
            Some(_) => {}
        }
    };
    let again = watch(&mut stages, &passages, true, |_| {}, see).unwrap();
    assert_eq!((unchanged.len(), agreed), (40, again.together(Codec::Mixed4).unwrap().change.agreed));
    let changes = |table: &potluck_model::proof::Table| table.rows.iter().map(|row| row.change).collect::<Vec<_>>();
    assert_eq!((again.nll, again.halved, changes(&again)), (table.nll, table.halved, changes(&table)));
}

/// A stage that gives what it is told to, whatever comes in.
struct Said {
    shape: StageShape,
    hidden: f32,
    logit: f32,
    /// Every row another than the last, whatever it was of.
    restless: bool,
}

fn said(start: u32, hidden: f32, logit: f32) -> Box<dyn Stage> {
    Box::new(one(start, hidden, logit, false))
}

fn one(start: u32, hidden: f32, logit: f32, restless: bool) -> Said {
    let spec = StageSpec {
        model: ModelId::from_bytes([1; 32]),
        layers: LayerRange::new(start, start + 1).unwrap(),
        head: start == 0,
        tail: start == 1,
    };
    let shape = StageShape {
        spec,
        width: WIDTH,
        vocabulary: VOCABULARY,
        caches: 64,
        context: 64,
        cache_bytes_per_position: 1,
        weight_bytes: 1,
        exact: true,
    };
    Said { shape, hidden, logit, restless }
}

impl Stage for Said {
    fn shape(&self) -> &StageShape {
        &self.shape
    }

    fn open(&mut self, _: CacheId, _: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn fork(&mut self, _: CacheId, _: CacheId, _: u32) -> Result<(), StageError> {
        Ok(())
    }

    fn close(&mut self, _: CacheId) {}

    fn forward(&mut self, steps: &mut [Step]) -> Vec<Result<Output, StageError>> {
        let positions = steps[0].positions(WIDTH);
        if self.restless {
            self.logit += 1.0;
        }
        let mut row = vec![0.0; VOCABULARY as usize];
        row[0] = self.logit;
        vec![Ok(match self.shape.spec.tail {
            true => Output::Logits(vec![Logits::Whole(Hidden(row)); positions]),
            false => Output::Hidden(Hidden(vec![self.hidden; positions * WIDTH as usize])),
        })]
    }

    fn row(&mut self, _: CacheId, _: u16) -> Result<Hidden, StageError> {
        Err(StageError::BadInput("it keeps none".into()))
    }
}

#[test]
fn what_is_no_number_or_no_chain_is_refused() {
    let passages = [vec![1, 2, 3]];
    let run = |stages: &mut [Box<dyn Stage>], passages: &[Vec<u32>]| measure(stages, passages, false, |_| {});
    let table = run(&mut [said(0, 1.0, 2.0), said(1, 0.0, 2.0)], &passages).unwrap();
    assert_eq!((table.positions, table.together(Codec::Mixed4).unwrap().change.agreed), (2, 2));
    for bad in [f32::NAN, f32::INFINITY] {
        let hidden = run(&mut [said(0, bad, 0.0), said(1, 0.0, 1.0)], &passages);
        assert!(matches!(hidden, Err(MeasureError::Codec { .. })), "{hidden:?}");
        let logits = run(&mut [said(0, 1.0, 0.0), said(1, 0.0, bad)], &passages);
        assert!(matches!(logits, Err(MeasureError::NotFinite { position: 0, .. })), "{logits:?}");
    }
    let mut restless: [Box<dyn Stage>; 2] = [said(0, 1.0, 0.0), Box::new(one(1, 0.0, 0.0, true))];
    assert!(matches!(run(&mut restless, &passages), Err(MeasureError::NotExact)));
    assert!(matches!(run(&mut [said(0, 1.0, 0.0)], &passages), Err(MeasureError::Nothing(_))));
    assert!(matches!(run(&mut [said(0, 1.0, 0.0), said(1, 0.0, 1.0)], &[]), Err(MeasureError::Nothing(_))));
    let mut swapped = [said(0, 1.0, 0.0), said(2, 0.0, 1.0)];
    assert!(matches!(run(&mut swapped, &passages), Err(MeasureError::Nothing(_))), "the last stage is no tail");
}
