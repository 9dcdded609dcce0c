//! Whose machines the user trusts with what passes the sensitive layers. The list stays on this machine.

use std::collections::BTreeSet;

use potluck_core::PeerId;

use super::Home;
use crate::failure::{Failure, OrFail};

const FILE: &str = "trusted.json";

/// The keys on the list.
pub(crate) fn trusted(home: &Home) -> Result<BTreeSet<PeerId>, Failure> {
    let Some(text) = home.read(FILE)? else { return Ok(BTreeSet::new()) };
    let hint = format!("remove {} and name the keys again: potluck swarm trust KEY", home.path(FILE).display());
    let keys: Vec<String> = serde_json::from_str(&text).or_fail("bad_file", &hint)?;
    keys.iter().map(|key| key.parse().or_fail("bad_file", &hint)).collect()
}

/// Puts keys on the list and takes others off; the list as it is then.
pub(crate) fn change_trusted(home: &Home, add: &[PeerId], remove: &[PeerId]) -> Result<BTreeSet<PeerId>, Failure> {
    let mut list = trusted(home)?;
    if let Some(unknown) = remove.iter().find(|key| !list.contains(key)) {
        return Err(Failure::usage(format!("{unknown} is not on the list"), "potluck swarm trust --list shows it"));
    }
    list.extend(add);
    list.retain(|key| !remove.contains(key));
    let keys: Vec<String> = list.iter().map(ToString::to_string).collect();
    home.write(FILE, &serde_json::to_string(&keys).or_fail("internal", "report this")?)?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Reach;

    #[test]
    fn a_list_is_kept_and_what_is_not_on_it_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("home")), Reach::default()).unwrap();
        let key = |n| PeerId::from_bytes([n; 32]);
        assert!(trusted(&home).unwrap().is_empty());
        change_trusted(&home, &[key(1), key(2), key(1)], &[]).unwrap();
        assert_eq!(trusted(&home).unwrap(), BTreeSet::from([key(1), key(2)]));
        assert_eq!(change_trusted(&home, &[], &[key(3)]).unwrap_err().code, "usage");
        assert_eq!(change_trusted(&home, &[], &[key(1)]).unwrap(), BTreeSet::from([key(2)]));
        home.write(FILE, "[\"what\"]").unwrap();
        assert_eq!(trusted(&home).unwrap_err().code, "bad_file", "a list that cannot be read trusts nobody");
    }
}
