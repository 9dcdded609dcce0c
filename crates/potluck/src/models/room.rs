//! Room on the disk for what is to be fetched, told in words.

use std::path::Path;

use potluck_store::{Fetched, For, Promise, Room, StoreError};

use super::Models;
use crate::{
    failure::Failure,
    home::Home,
    placement::free_disk,
    screen::{Screen, size},
};

/// Bytes of the disk that a pull leaves to others.
const DISK_RESERVE: u64 = 256 << 20;

/// What this home may fill.
pub(crate) fn room(home: &Home) -> Result<Room, Failure> {
    Ok(Room::new(Models::open(home)?.catalogue, home.downloads(), home.disk(), DISK_RESERVE))
}

/// Makes room for so many bytes in that folder, and says what was removed for them. The promise holds until it is dropped.
pub(crate) fn make_room(
    room: &Room,
    screen: Screen,
    folder: &Path,
    what: For<'_>,
    bytes: u64,
) -> Result<Promise, StoreError> {
    let promise = room.make(what, bytes, free_disk(folder))?;
    for fetched in &promise.removed {
        tracing::info!(model = fetched.name, bytes = fetched.bytes, "removed to make room");
        screen.note(format!("removed {} to make room: {}", fetched.name, size(fetched.bytes)));
    }
    Ok(promise)
}

/// What it is that finds no room, what is in the way, and what to type.
pub(super) fn no_room(error: &StoreError) -> Option<Failure> {
    let StoreError::NoRoom { wanted, short, quota, in_use, removable } = error else { return None };
    let limit = match quota {
        Some(quota) => format!("in the {} of --disk", size(*quota)),
        None => format!("on the disk, of which {} are left to others", size(DISK_RESERVE)),
    };
    let list = |what: &[(String, u64)]| {
        what.iter().map(|(name, bytes)| format!("{name} ({})", size(*bytes))).collect::<Vec<_>>().join(", ")
    };
    let busy = if in_use.is_empty() { String::new() } else { format!("; in use: {}", list(in_use)) };
    let message = format!("{} are to come, and {} of them find no room {limit}{busy}", size(*wanted), size(*short));
    let hint = match (quota, in_use.is_empty()) {
        _ if !removable.is_empty() => {
            format!(
                "potluck model remove what you do not use: {}; with --disk BYTES that goes by itself",
                list(removable)
            )
        }
        (Some(quota), true) => format!("say --disk {} or more, or ask for fewer layers", quota.saturating_add(*short)),
        (Some(quota), false) => {
            format!("end what uses the others, or say --disk {} or more", quota.saturating_add(*short))
        }
        (None, true) => "free some of the disk, or ask for fewer layers".into(),
        (None, false) => "end what uses the others, free some of the disk, or ask for fewer layers".into(),
    };
    Some(Failure::new("disk_full", message, hint))
}

/// How long ago something was used, as people say it.
pub(crate) fn age(fetched: Option<std::time::SystemTime>) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3_600, "h"), (60, "min")];
    let Some(used) = fetched else { return "never".into() };
    let seconds = used.elapsed().unwrap_or_default().as_secs();
    let unit = UNITS.iter().find(|(unit, _)| seconds >= *unit);
    unit.map_or_else(|| "now".into(), |(unit, name)| format!("{} {name} ago", seconds / unit))
}

/// What was removed, in a line each.
pub(crate) fn tell_removed(screen: Screen, removed: &[Fetched]) {
    for fetched in removed {
        screen.note(format!("removed {}: {}, used {}", fetched.name, size(fetched.bytes), age(fetched.used)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn ages_are_told_in_one_unit() {
        let ago = |seconds| age(Some(SystemTime::now() - Duration::from_secs(seconds)));
        assert_eq!([ago(59), ago(61), ago(7_300), ago(200_000)], ["now", "1 min ago", "2 h ago", "2 d ago"]);
        assert_eq!(age(None), "never");
        assert_eq!(age(Some(SystemTime::now() + Duration::from_secs(9))), "now", "a clock that was put back");
    }

    #[test]
    fn who_finds_no_room_is_told_what_to_type() {
        let told = |quota, in_use: &[(&str, u64)], removable: &[(&str, u64)]| {
            let owned = |list: &[(&str, u64)]| list.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect();
            let (in_use, removable) = (owned(in_use), owned(removable));
            no_room(&StoreError::NoRoom { wanted: 9_000_000, short: 2_000_000, quota, in_use, removable }).unwrap()
        };
        let full = told(Some(10_000_000), &[("big", 8_000_000)], &[]);
        assert_eq!(full.code, "disk_full");
        assert_eq!(
            full.message,
            "9.0 MB are to come, and 2.0 MB of them find no room in the 10.0 MB of --disk; in use: big (8.0 MB)"
        );
        assert_eq!(full.hint, "end what uses the others, or say --disk 12000000 or more");
        let disk = told(None, &[], &[("old", 1_000)]);
        assert!(disk.message.ends_with("on the disk, of which 268.4 MB are left to others"), "{disk:?}");
        assert!(disk.hint.contains("potluck model remove") && disk.hint.contains("old (1.0 kB)"), "{disk:?}");
    }
}
