//! `kill -9` at any moment: what was acknowledged is there, and the catalogue works.
#![allow(clippy::unwrap_used)]

mod tiny;

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use potluck_store::{Catalogue, Locations};
use tiny::{Home, model};

/// Set in the child: the folder of its models and its catalogue.
const FOLDER: &str = "POTLUCK_TEST_ADDS_IN";
/// Models that the child adds and removes in turn.
const MODELS: u8 = 5;

/// Adds models without end, and says so after each; without the variable it has nothing to do.
fn add_without_end(home: &str) {
    let catalogue = Catalogue::open(format!("{home}/catalogue")).unwrap();
    let locations = Locations::from_env();
    for round in 0u64.. {
        let number = round % u64::from(MODELS);
        let source = locations.find(&format!("{home}/{number}.gguf")).unwrap();
        let id = catalogue.add(&source, None, &mut |_| {}).unwrap().entry.id;
        println!("added {id}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives() {
    if let Ok(home) = env::var(FOLDER) {
        return add_without_end(&home);
    }
    let home = Home::new();
    for number in 0..MODELS {
        let mut bytes = model();
        *bytes.last_mut().unwrap() ^= number;
        home.write(&format!("{number}.gguf"), &bytes);
    }
    let catalogue = Catalogue::open(home.path("catalogue")).unwrap();
    for acknowledged in 1..=12 {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "what_was_acknowledged_survives", "--nocapture"])
            .env(FOLDER, home.folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let added = lines.filter_map(|line| line.unwrap().split_once("added ").map(|(_, id)| id.to_owned()));
        let ids: Vec<String> = added.take(acknowledged).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(ids.len(), acknowledged, "the child stopped by itself");
        for id in ids {
            catalogue.get(&id).unwrap().check().unwrap();
        }
        let entries = fs::read_dir(home.path("catalogue")).unwrap().flatten();
        let records = entries.filter(|file| file.path().extension().is_some_and(|e| e == "json")).count();
        assert_eq!(catalogue.list().unwrap().len(), records, "no entry is damaged");
        for entry in catalogue.list().unwrap() {
            catalogue.rm(entry.id).unwrap();
        }
    }
}
