//! The catalogue keeps what it acknowledged, and notices when a file is not what was added.
#![allow(clippy::unwrap_used)]

mod tiny;

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    time::{Duration, SystemTime},
};

use potluck_core::LayerRange;
use potluck_model::{Extent, VirtualFile, gguf, slice};
use potluck_store::{Added, Catalogue, StageFiles, StoreError, WholeFiles, open_stage, open_whole, verify};
use tiny::{Home, LAYERS, bytes_below, data, model};
use zip::CompressionMethod;

fn catalogue(home: &Home) -> Catalogue {
    Catalogue::open(home.path("catalogue")).unwrap()
}

fn add(home: &Home, text: &str, name: Option<&str>) -> Result<Added, StoreError> {
    catalogue(home).add(&home.locations.find(text)?, name, &mut |_| {})
}

fn with_model() -> (Home, Added) {
    let home = Home::new();
    home.write("tiny.gguf", &model());
    let added = add(&home, &home.path("tiny.gguf"), None).unwrap();
    (home, added)
}

fn range(start: u32, end: u32) -> LayerRange {
    LayerRange::new(start, end).unwrap()
}

#[test]
fn a_model_is_found_by_name_id_and_path() {
    let (home, Added { entry, known }) = with_model();
    assert!(!known);
    let catalogue = catalogue(&home);
    let id = entry.id.to_string();
    for text in ["tiny", &id, &id[..8], &id[..8].to_uppercase(), &home.path("tiny.gguf")] {
        assert_eq!(catalogue.get(text).unwrap(), entry, "{text}");
    }
    for text in ["", "tin", "other", &id[..3], &home.path("catalogue")] {
        assert!(matches!(catalogue.get(text), Err(StoreError::Unknown(_))), "{text}");
    }
    assert_eq!(catalogue.list().unwrap(), std::slice::from_ref(&entry));
    catalogue.rm(entry.id).unwrap();
    catalogue.rm(entry.id).unwrap();
    assert_eq!(catalogue.list().unwrap(), []);
    assert!(fs::exists(home.path("tiny.gguf")).unwrap(), "the files stay");
}

#[test]
fn adding_again_notes_the_new_place_and_keeps_the_name() {
    let (home, first) = with_model();
    home.write_parts("parts");
    let again = add(&home, &home.path("parts"), None).unwrap();
    assert!(again.known && again.entry.id == first.entry.id && again.entry.name == "tiny");
    assert_eq!(again.entry.place.files.len(), 2);
    assert_eq!(catalogue(&home).list().unwrap(), [again.entry]);
    assert_eq!(add(&home, &home.path("parts"), Some("better")).unwrap().entry.name, "better");
}

#[test]
fn a_name_belongs_to_one_model() {
    let (home, first) = with_model();
    let mut other = model();
    *other.last_mut().unwrap() ^= 1;
    home.write("other/tiny.gguf", &other);
    let second = add(&home, &home.path("other/tiny.gguf"), None).unwrap().entry;
    assert_ne!(second.id, first.entry.id);
    assert_eq!(second.name, format!("model-{}", second.id.short()));
    let taken = add(&home, &home.path("other/tiny.gguf"), Some("tiny"));
    assert!(matches!(taken, Err(StoreError::NameTaken(_))));
    for name in ["", "-x", "a\nb", " a", &"x".repeat(129)] {
        assert!(matches!(add(&home, &home.path("tiny.gguf"), Some(name)), Err(StoreError::BadName(_))), "{name:?}");
    }
}

#[test]
fn the_catalogue_is_small_and_holds_no_copy() {
    let (home, _) = with_model();
    let mut files: Vec<_> = fs::read_dir(home.path("catalogue")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let kinds: Vec<_> = files.iter().map(|f| f.extension().map(|e| e.to_str().unwrap().to_owned())).collect();
    assert_eq!(kinds, [Some("json".into()), Some("manifest".into()), None], "no leftovers beside the lock");
    assert!(bytes_below(home.folder.path().join("catalogue").as_path()) < model().len() as u64);
}

#[test]
fn what_a_crash_leaves_is_either_entry_or_nothing() {
    let (home, Added { entry, .. }) = with_model();
    let json = home.path(&format!("catalogue/{}.json", entry.id));
    let manifest = home.path(&format!("catalogue/{}.manifest", entry.id));
    let partial = home.write("catalogue/.partial-XYZ", b"half a file");
    add(&home, &home.path("tiny.gguf"), None).unwrap();
    assert!(!partial.exists(), "the next writer sweeps");
    let whole = fs::read(&json).unwrap();
    fs::remove_file(&json).unwrap();
    assert_eq!(catalogue(&home).list().unwrap(), [], "a manifest alone is no entry");
    fs::write(&json, &whole).unwrap();
    for damage in [(&json, whole[..whole.len() / 2].to_vec()), (&manifest, vec![1, 2, 3])] {
        let before = fs::read(damage.0).unwrap();
        fs::write(damage.0, damage.1).unwrap();
        assert_eq!(catalogue(&home).list().unwrap(), []);
        assert!(matches!(catalogue(&home).get(&entry.id.to_string()), Err(StoreError::Catalogue { .. })));
        fs::write(damage.0, before).unwrap();
    }
    assert_eq!(catalogue(&home).get("tiny").unwrap(), entry);
}

#[test]
fn writers_take_turns() {
    let home = Home::new();
    home.write("tiny.gguf", &model());
    std::thread::scope(|scope| {
        let adders: Vec<_> =
            (0..8).map(|_| scope.spawn(|| add(&home, &home.path("tiny.gguf"), None).unwrap())).collect();
        let known = adders.into_iter().map(|a| a.join().unwrap()).filter(|added| added.known).count();
        assert_eq!(known, 7, "exactly one was first");
    });
}

/// The bytes of a virtual file, as the engine reads them.
fn read(files: &[fs::File], file: &VirtualFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    for extent in &file.extents {
        match extent {
            Extent::Inline(inline) => bytes.extend(inline),
            Extent::Zeros { len } => bytes.resize(bytes.len() + *len as usize, 0),
            Extent::File { file, offset, len } => {
                let mut file = &files[*file as usize];
                file.seek(SeekFrom::Start(*offset)).unwrap();
                file.take(*len).read_to_end(&mut bytes).unwrap();
            }
        }
    }
    assert_eq!(bytes.len() as u64, file.size);
    bytes
}

#[test]
fn a_stage_reads_its_tensors_in_place() {
    let home = Home::new();
    home.write("one.gguf", &model());
    home.write_parts("parts");
    let wheel = home.write_wheel("stored.whl", CompressionMethod::Stored);
    let mut stages = Vec::new();
    for text in [&home.path("one.gguf"), &home.path("parts"), wheel.to_str().unwrap()] {
        let entry = add(&home, text, None).unwrap().entry;
        let plan = slice::plan(&entry.manifest, range(0, 2), true, false).unwrap();
        let StageFiles { files, source } = open_stage(&entry, &plan).unwrap();
        let (table, extents) = source.embedding.clone().unwrap();
        let bytes = u64::from(table.rows) * table.row_bytes;
        assert_eq!(read(&files, &VirtualFile::new(extents)), data("token_embd.weight", bytes));
        stages.push(read(&files, &source.model));
    }
    assert!(stages.windows(2).all(|pair| pair[0] == pair[1]), "the same stage from any of them");
    let header = gguf::parse(&stages[0]).unwrap();
    let tensor = header.tensors.iter().find(|t| t.name == "blk.1.ffn_up.weight").unwrap();
    let at = (header.data_offset + tensor.offset) as usize;
    assert_eq!(stages[0][at..at + tensor.bytes as usize], data("blk.1.ffn_up.weight", tensor.bytes));
}

#[test]
fn a_whole_model_is_one_file_wherever_it_lies() {
    let home = Home::new();
    home.write("one.gguf", &model());
    home.write_parts("parts");
    let wheel = home.write_wheel("stored.whl", CompressionMethod::Stored);
    for text in [&home.path("one.gguf"), wheel.to_str().unwrap()] {
        let WholeFiles { files, model: whole } = open_whole(&add(&home, text, None).unwrap().entry).unwrap();
        assert_eq!(whole.extents.len(), 1, "{text}: as it is, header and all");
        assert_eq!(read(&files, &whole), model(), "{text}");
    }
    let WholeFiles { files, model: whole } = open_whole(&add(&home, &home.path("parts"), None).unwrap().entry).unwrap();
    let bytes = read(&files, &whole);
    let (merged, one) = (gguf::parse(&bytes).unwrap(), gguf::parse(&model()).unwrap());
    let sorted = |header: &gguf::Header| {
        let mut metadata = header.metadata.clone();
        metadata.sort_by(|a, b| a.0.cmp(&b.0));
        metadata
    };
    assert_eq!(sorted(&merged), sorted(&one), "no word of the split");
    assert_eq!(merged.tensors.len(), one.tensors.len());
    for tensor in &merged.tensors {
        let at = (merged.data_offset + tensor.offset) as usize;
        assert_eq!(bytes[at..at + tensor.bytes as usize], data(&tensor.name, tensor.bytes), "{}", tensor.name);
    }
}

#[test]
fn only_the_files_that_a_stage_needs_are_opened() {
    let home = Home::new();
    home.write_parts("parts");
    let entry = add(&home, &home.path("parts"), None).unwrap().entry;
    let plan = slice::plan(&entry.manifest, range(2, 4), false, false).unwrap();
    fs::remove_file(home.path("parts/tiny-00001-of-00002.gguf")).unwrap();
    let stage = open_stage(&entry, &plan).unwrap();
    assert_eq!(stage.files.len(), 1);
    assert!(stage.source.model.extents.iter().all(|e| !matches!(e, Extent::File { file, .. } if *file > 0)));
}

#[test]
fn a_file_that_changed_is_noticed() {
    let (home, Added { entry, .. }) = with_model();
    let plan = slice::plan(&entry.manifest, range(0, LAYERS), true, true).unwrap();
    entry.check().unwrap();
    let path = home.path("tiny.gguf");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(3)).unwrap();
    let error = open_stage(&entry, &plan).unwrap_err();
    assert!(matches!(error, StoreError::SourceChanged { .. }));
    assert_eq!(error.hint(), Some("potluck model add"));
    assert!(matches!(entry.check(), Err(StoreError::SourceChanged { .. })));
    let entry = add(&home, &path, None).unwrap().entry;
    entry.check().unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(open_stage(&entry, &plan), Err(StoreError::SourceMissing { .. })));
    assert!(matches!(verify(&entry, None, &mut |_| {}), Err(StoreError::SourceMissing { .. })));
}

#[test]
fn a_damaged_tensor_is_found_by_its_hash() {
    let (home, Added { entry, .. }) = with_model();
    verify(&entry, None, &mut |_| {}).unwrap();
    let path = home.path("tiny.gguf");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = entry.place.tensors["blk.2.ffn_up.weight"].offset as usize + 5;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(verify(&entry, Some(range(0, 2)), &mut |_| {}).is_ok(), "other layers are sound");
    let error = verify(&entry, Some(range(2, 3)), &mut |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { tensor, .. } if tensor == "blk.2.ffn_up.weight"));
}

#[test]
fn the_real_model_keeps_its_id() {
    let cached = || std::env::home_dir().unwrap().join(".cache/potluck/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("POTLUCK_TEST_MODEL").map_or_else(cached, Into::into);
    assert!(path.is_file(), "{} is missing: run `make model`, or set POTLUCK_TEST_MODEL", path.display());
    let home = Home::new();
    let entry = add(&home, path.to_str().unwrap(), None).unwrap().entry;
    assert_eq!(entry.id.short(), "4bcf406f19");
    let all = LayerRange::new(0, 30).unwrap();
    for layers in all.split(3).unwrap() {
        let plan = slice::plan(&entry.manifest, layers, layers.start() == 0, layers.end() == 30).unwrap();
        let stage = open_stage(&entry, &plan).unwrap();
        gguf::parse(&read(&stage.files, &stage.source.model)).unwrap();
    }
}

#[test]
fn a_stranger_s_name_is_no_id_and_no_place() {
    let (home, original) = with_model();
    let other = Home::new();
    let there = catalogue(&other);
    let manifest = || original.entry.manifest.clone();
    let own = format!("model-{}", original.entry.id.short());
    let id = original.entry.id.to_string();
    for name in ["hf:org/x", "ollama:x", "../x", "a\\b", "beef", "9adfef30b5", &id, "a\u{202e}b", "-x", "", " a"] {
        assert_eq!(there.note(manifest(), name).unwrap().name, own, "{name:?}");
        there.rm(original.entry.id).unwrap();
    }
    assert_eq!(there.note(manifest(), "tiny").unwrap().name, "tiny");
    assert_eq!(there.note(manifest(), "another").unwrap().name, "tiny", "it keeps the name that it has here");
    // A whole id is an id, whatever somebody has called a model here.
    let mut bytes = model();
    *bytes.last_mut().unwrap() ^= 1;
    home.write("second.gguf", &bytes);
    let second = add(&home, &home.path("second.gguf"), Some(&id)).unwrap().entry;
    assert_ne!(second.id, original.entry.id);
    assert_eq!(catalogue(&home).get(&id).unwrap().id, original.entry.id);
}

#[test]
fn what_was_pulled_and_is_gone_does_not_come_back_as_holes() {
    let (_home, original) = with_model();
    let other = Home::new();
    let there = catalogue(&other);
    let entry = there.note(original.entry.manifest.clone(), "tiny").unwrap();
    let tensor = &entry.manifest.tensors[0];
    let (hashes, piece) = (
        potluck_store::read_piece_hashes(&original.entry, tensor).unwrap(),
        potluck_store::read_piece(&original.entry, tensor, 0).unwrap(),
    );
    let mut intake = potluck_store::Intake::open(&there, &entry).unwrap();
    assert!(!intake.has(0, tensor, 0, &hashes[0]).unwrap());
    let wrong = intake.write(0, tensor, 0, &hashes[0], &piece[1..]);
    assert!(matches!(wrong, Err(StoreError::WrongPiece { .. })));
    intake.write(0, tensor, 0, &hashes[0], &piece).unwrap();
    let saved = intake.save(&entry, &[0]).unwrap();
    assert!(saved.has(tensor) && !saved.is_whole());
    verify(&saved, None, &mut |_| {}).unwrap();
    assert!(matches!(open_whole(&saved), Err(StoreError::NotHere { .. })));

    fs::remove_file(&saved.place.files[0].path).unwrap();
    let again = potluck_store::Intake::open(&there, &saved);
    assert!(matches!(again, Err(StoreError::SourceMissing { .. })), "{again:?}");
    assert!(matches!(saved.check(), Err(StoreError::SourceMissing { .. })));
}

#[test]
fn the_note_of_a_proof_lies_beside_its_model_and_goes_with_it() {
    let (home, Added { entry, .. }) = with_model();
    let catalogue = catalogue(&home);
    assert_eq!(catalogue.proof(entry.id, 16).unwrap(), None);
    catalogue.write_proof(entry.id, b"a note").unwrap();
    catalogue.write_proof(entry.id, b"another").unwrap();
    assert_eq!(catalogue.proof(entry.id, 16).unwrap().unwrap(), b"another");
    assert_eq!(catalogue.proof(entry.id, 3).unwrap().unwrap(), b"anot", "one byte more than is allowed, to be refused");
    assert_eq!(add(&home, &home.path("tiny.gguf"), None).unwrap().entry, entry);
    assert!(catalogue.proof(entry.id, 16).unwrap().is_some(), "the same model, added again");
    catalogue.rm(entry.id).unwrap();
    assert_eq!(catalogue.proof(entry.id, 16).unwrap(), None);
    assert!(matches!(catalogue.write_proof(entry.id, b"late"), Err(StoreError::Unknown(_))));
}
