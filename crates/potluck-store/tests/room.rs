//! Room on the disk: what was used longest ago makes way, what anybody uses does not, and a crash leaves a store that opens.
#![allow(clippy::unwrap_used)]

mod tiny;

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use potluck_core::ModelId;
use potluck_store::{
    Catalogue, Entry, Fetched, For, InUse, Intake, Room, StoreError, read_piece, read_piece_hashes, verify,
};
use tiny::{Home, model};

/// Set in the child: the folder of its catalogue.
const FOLDER: &str = "POTLUCK_TEST_ROOM_IN";

/// A machine that has fetched models.
struct Machine {
    home: Home,
    catalogue: Catalogue,
}

impl Machine {
    fn new() -> Self {
        let home = Home::new();
        let catalogue = Catalogue::open(home.path("models")).unwrap();
        Self { home, catalogue }
    }

    fn room(&self, quota: Option<u64>) -> Room {
        Room::new(self.catalogue.clone(), self.downloads(), quota, 0)
    }

    fn downloads(&self) -> PathBuf {
        self.home.path("downloads").into()
    }

    /// A model that lies somewhere else, and what it is.
    fn elsewhere(&self, number: u8) -> Entry {
        let mut bytes = model();
        *bytes.last_mut().unwrap() ^= number;
        self.home.write(&format!("elsewhere/{number}.gguf"), &bytes);
        let catalogue = Catalogue::open(self.home.path("elsewhere/catalogue")).unwrap();
        let source = self.home.locations.find(&self.home.path(&format!("elsewhere/{number}.gguf"))).unwrap();
        catalogue.add(&source, None, &mut |_| {}).unwrap().entry
    }

    /// Fetches a model whole, as from a peer; it was used so many hours ago.
    fn fetch(&self, number: u8, hours_ago: u64) -> Entry {
        let original = self.elsewhere(number);
        let entry = self.catalogue.note(original.manifest.clone(), &format!("m{number}")).unwrap();
        let mut intake = Intake::open(&self.catalogue, &entry).unwrap();
        for (tensor, of) in original.manifest.tensors.iter().enumerate() {
            for (piece, hash) in (0..).zip(read_piece_hashes(&original, of).unwrap()) {
                intake.write(tensor, of, piece, &hash, &read_piece(&original, of, piece).unwrap()).unwrap();
            }
        }
        let all: Vec<_> = (0..original.manifest.tensors.len()).collect();
        let entry = intake.save(&entry, &all).unwrap();
        drop(self.catalogue.hold(entry.id).unwrap());
        self.used(entry.id, hours_ago);
        entry
    }

    fn used(&self, id: ModelId, hours_ago: u64) {
        let mark = fs::File::options().write(true).open(self.file(id, "use")).unwrap();
        mark.set_modified(SystemTime::now() - Duration::from_secs(hours_ago * 3_600)).unwrap();
    }

    fn file(&self, id: ModelId, suffix: &str) -> PathBuf {
        self.catalogue.folder().join(format!("{id}.{suffix}"))
    }

    fn bytes(&self) -> u64 {
        self.room(None).fetched().unwrap().iter().map(|fetched| fetched.bytes).sum()
    }

    /// A model from an address of the web.
    fn download(&self, folder: &str, number: u8) -> Entry {
        let mut bytes = model();
        *bytes.last_mut().unwrap() ^= number;
        let path = self.home.write(&format!("downloads/{folder}/d{number}.gguf"), &bytes);
        let source = self.home.locations.find(path.to_str().unwrap()).unwrap();
        self.catalogue.add(&source, None, &mut |_| {}).unwrap().entry
    }

    fn names(&self) -> Vec<String> {
        self.catalogue.list().unwrap().into_iter().map(|entry| entry.name).collect()
    }
}

fn names(fetched: &[Fetched]) -> Vec<&str> {
    fetched.iter().map(|fetched| fetched.name.as_str()).collect()
}

/// Bytes of the tiny model's tensors.
fn all(entry: &Entry) -> u64 {
    entry.manifest.bytes()
}

#[test]
fn what_was_used_longest_ago_makes_way() {
    let machine = Machine::new();
    let [first, second, third] = [(1, 3), (2, 9), (3, 1)].map(|(number, hours)| machine.fetch(number, hours));
    let (each, here) = (machine.bytes() / 3, machine.bytes());
    let next = machine.catalogue.note(machine.elsewhere(4).manifest, "m4").unwrap();
    let wish = For::Model(next.id, all(&next));
    let make = |quota| machine.room(Some(quota)).make(wish, all(&next), None);

    assert!(make(here + all(&next)).unwrap().removed.is_empty(), "there is room");
    let made = make(here).unwrap();
    assert_eq!(names(&made.removed), ["m2"]);
    assert!(!machine.file(second.id, "tensors").exists() && !machine.file(second.id, "use").exists());
    assert_eq!(machine.names(), ["m1", "m3", "m4"]);
    verify(&first, None, &mut |_| {}).unwrap();
    drop(made);
    // A use that is noted puts a model last.
    machine.catalogue.note_use(first.id).unwrap();
    assert_eq!(names(&make(all(&next) + each).unwrap().removed), ["m3"]);
    assert!(machine.catalogue.get(&third.id.to_string()).is_err());
    assert!(machine.bytes() + all(&next) <= all(&next) + each, "with what is to come it is no more than the quota");
}

#[test]
fn what_another_handle_or_another_process_uses_stays() {
    if let Ok(folder) = env::var(FOLDER) {
        return use_without_end(Path::new(&folder));
    }
    let machine = Machine::new();
    let [mine, theirs] = [(1, 9), (2, 8)].map(|(number, hours)| machine.fetch(number, hours));
    let next = machine.catalogue.note(machine.elsewhere(3).manifest, "m3").unwrap();
    let wish = For::Model(next.id, all(&next));
    let room = machine.room(Some(all(&next)));
    // Held twice here, and once by a process that is killed.
    let held: [InUse; 2] =
        [(); 2].map(|()| Catalogue::open(machine.catalogue.folder()).unwrap().hold(mine.id).unwrap());
    let mut child = use_in_child(&machine, theirs.id);

    let refused = room.make(wish, all(&next), None).unwrap_err();
    let StoreError::NoRoom { wanted, short, quota, in_use, removable } = &refused else { panic!("{refused}") };
    assert_eq!((*wanted, *quota, removable.len()), (all(&next), Some(all(&next)), 0));
    assert_eq!(*short, machine.bytes());
    assert_eq!(in_use.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["m1", "m2"]);
    assert!(matches!(machine.room(None).remove(theirs.id), Err(StoreError::InUse(name)) if name == "m2"));
    assert_eq!(machine.names(), ["m1", "m2", "m3"], "nothing was removed");

    child.kill().unwrap();
    child.wait().unwrap();
    let [first, last] = held;
    drop(first);
    let fetched = room.fetched().unwrap();
    assert_eq!(fetched.iter().map(|fetched| fetched.in_use).collect::<Vec<_>>(), [true, false], "{fetched:?}");
    drop(last);
    assert_eq!(
        names(&room.make(wish, all(&next), None).unwrap().removed),
        ["m2", "m1"],
        "the last use is when it ended"
    );
}

fn use_in_child(machine: &Machine, id: ModelId) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "what_another_handle_or_another_process_uses_stays", "--nocapture"])
        .env(FOLDER, machine.catalogue.folder().join(id.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("in use")), "the child ended");
    child
}

/// Uses the model until it is killed.
fn use_without_end(of: &Path) {
    let catalogue = Catalogue::open(of.parent().unwrap()).unwrap();
    let held = catalogue.hold(of.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
    println!("in use");
    std::io::stdout().flush().unwrap();
    std::io::stdin().lines().for_each(drop);
    drop(held);
}

#[test]
fn what_is_promised_counts_until_the_promise_is_dropped() {
    let machine = Machine::new();
    let [one, two] = [1, 2].map(|n| machine.catalogue.note(machine.elsewhere(n).manifest, &format!("m{n}")).unwrap());
    let room = machine.room(Some(all(&one) + all(&two) / 2));
    let ask = |entry: &Entry| room.make(For::Model(entry.id, all(entry)), all(entry), None);
    let promise = ask(&one).unwrap();
    assert!(matches!(ask(&two), Err(StoreError::NoRoom { short, .. }) if short == all(&two).div_ceil(2)));
    // Another pull of the same model takes nothing more: it has no more than all of it.
    drop(ask(&one).unwrap());
    // Free bytes count for those who wait to be written, too.
    let disk = |free| machine.room(None).make(For::Elsewhere, 1, Some(free));
    assert!(matches!(disk(all(&one)), Err(StoreError::NoRoom { short: 1, quota: None, .. })));
    disk(all(&one) + 1).unwrap();
    drop(promise);
    ask(&two).unwrap();
}

#[test]
fn without_a_quota_nothing_is_removed_and_the_disk_is_respected() {
    let machine = Machine::new();
    machine.fetch(1, 5);
    let next = machine.catalogue.note(machine.elsewhere(2).manifest, "m2").unwrap();
    let reserve = 1_000;
    let make = |quota, free| {
        let room = Room::new(machine.catalogue.clone(), machine.downloads(), quota, reserve);
        room.make(For::Model(next.id, all(&next)), all(&next), Some(free))
    };
    assert!(make(None, all(&next) + reserve).unwrap().removed.is_empty());
    let refused = make(None, all(&next) + reserve - 1);
    let Err(StoreError::NoRoom { short: 1, quota: None, removable, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(removable[0].0, "m1");
    assert_eq!(machine.names(), ["m1", "m2"]);
    assert_eq!(names(&make(Some(u64::MAX), all(&next) + reserve - 1).unwrap().removed), ["m1"], "with one it may be");
}

#[test]
fn what_was_added_where_it_lies_is_not_ours() {
    let machine = Machine::new();
    let path = machine.home.write("own.gguf", &model());
    let source = machine.home.locations.find(path.to_str().unwrap()).unwrap();
    let own = machine.catalogue.add(&source, None, &mut |_| {}).unwrap().entry;
    assert_eq!((machine.bytes(), machine.room(Some(1)).prune(Some(0)).unwrap()), (0, vec![]));
    assert_eq!(machine.room(None).remove(own.id).unwrap(), None);
    assert!(path.exists() && machine.names().is_empty(), "it is only forgotten");
}

#[test]
fn downloads_go_with_their_models_and_those_that_broke_off_by_themselves() {
    let machine = Machine::new();
    let entry = machine.download("aa", 1);
    machine.home.write("downloads/bb/x.gguf.incomplete", b"half");
    let lock = machine.home.write("downloads/cc/y.gguf.incomplete.lock", b"");
    machine.home.write("downloads/cc/y.gguf.incomplete", b"half");
    let lock = fs::File::open(lock).unwrap();
    lock.lock().unwrap();
    let room = machine.room(Some(0));
    let fetched = room.fetched().unwrap();
    assert_eq!(names(&fetched), ["d1", "downloads/bb", "downloads/cc"]);
    assert_eq!(fetched.iter().map(|f| f.bytes).collect::<Vec<_>>(), [model().len() as u64, 4, 4]);
    assert_eq!(names(&room.prune(None).unwrap()), ["downloads/bb"], "what comes now stays");
    let whole = machine.downloads().join("dd");
    let promise = machine.room(None).make(For::Download(&whole), 10, None).unwrap();
    machine.home.write("downloads/dd/whole.gguf", b"0123456789");
    assert_eq!(names(&room.prune(Some(0)).unwrap()), ["d1"], "its entry is still to come");
    drop(promise);
    assert_eq!(names(&room.prune(Some(0)).unwrap()), ["downloads/dd"]);
    assert!(!machine.downloads().join("aa").exists() && machine.catalogue.get(&entry.id.to_string()).is_err());
}

#[test]
fn a_crash_in_the_middle_of_a_removal_leaves_a_store_that_opens() {
    let machine = Machine::new();
    let entry = machine.fetch(1, 1);
    // The entry goes first: as if it were killed after that, while room was promised.
    fs::remove_file(machine.file(entry.id, "json")).unwrap();
    let dead = machine.home.write("models/room-dead", br#"{"key":"x","bytes":1000000}"#);
    let again = machine.catalogue.note(entry.manifest.clone(), "m1").unwrap();
    assert!(!again.is_whole() && !dead.exists());
    assert!(!machine.file(entry.id, "tensors").exists() && !machine.file(entry.id, "use").exists());
    assert_eq!(machine.bytes(), 0);
    let fetched = machine.fetch(1, 1);
    assert!(fetched.is_whole());
    verify(&fetched, None, &mut |_| {}).unwrap();
}
