//! Hugging Face: a repository's files by its own API, kept in Hugging Face's own cache.
//!
//! `GET api/models/ORG/NAME/revision/REV?blobs=true` lists a revision's files with sizes and SHA-256; `GET
//! ORG/NAME/resolve/COMMIT/FILE` gives one. The cache: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::{collections::BTreeMap, fs, path::Path};

use data_encoding::HEXLOWER;
use potluck_store::{Source, StoreError};
use serde_json::Value;

use super::{Coming, Web, download, is_plain, url};
use crate::{PullError, RoomFor};

/// Of a repository with many, the one that most people want.
const USUAL: &str = "Q4_K_M";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    organisation: &'a str,
    name: &'a str,
    /// A file's name, or a quantisation's.
    which: Option<&'a str>,
    revision: &'a str,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    name: String,
    bytes: Option<u64>,
    /// Hexadecimal; of a file that Git itself holds there is none.
    sha256: Option<String>,
}

pub(super) async fn get(
    web: &Web,
    text: &str,
    room: &mut RoomFor<'_>,
    progress: &mut dyn FnMut(Coming),
) -> Result<Source, PullError> {
    let asked = Asked::of(text)?;
    let Asked { organisation, name, revision, .. } = asked;
    let token = web.token.as_deref();
    let at = |path: String| url(&format!("{}{path}", web.huggingface));
    let list = at(format!("api/models/{organisation}/{name}/revision/{revision}?blobs=true"))?;
    let listed = web.json(&list, "application/json", token).await?;
    let broken = |what: &str| PullError::Answer { address: list.to_string(), what: what.to_owned() };
    let commit = listed["sha"].as_str().filter(|sha| is_plain(sha)).ok_or_else(|| broken("it names no commit"))?;
    let files = choose(&repository(&listed), asked.which)
        .map_err(|names| PullError::Several { address: format!("hf:{organisation}/{name}"), names })?;

    let folder = web.places.huggingface.join(format!("models--{organisation}--{name}"));
    let mut wanted = Vec::new();
    for file in &files {
        let sha256 = match &file.sha256 {
            Some(text) => {
                let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
                Some(bytes.ok_or_else(|| broken("a file's SHA-256 is none"))?)
            }
            None => None,
        };
        // What Git itself holds is named by its commit, too: the next one may hold another file of that name.
        let own = || blake3::hash(format!("{commit} {}", file.name).as_bytes()).to_hex().to_string();
        let blob = file.sha256.clone().unwrap_or_else(own);
        wanted.push(download::Wanted {
            url: at(format!("{organisation}/{name}/resolve/{commit}/{}", file.name))?,
            token: web.token.clone(),
            bytes: file.bytes,
            sha256,
            to: folder.join("blobs").join(blob),
        });
    }
    download::all(&web.client, &wanted, room, progress).await?;
    for (file, wanted) in files.iter().zip(&wanted) {
        link(&folder, commit, &file.name, &wanted.to)?;
    }
    let refs = folder.join("refs").join(revision);
    write(&refs, commit)?;
    let first = folder.join("snapshots").join(commit).join(&files[0].name);
    Ok(web.places.find(&first.to_string_lossy())?)
}

impl<'a> Asked<'a> {
    fn of(text: &'a str) -> Result<Self, PullError> {
        let wrong = || PullError::Address {
            address: format!("hf:{text}"),
            what: "expected ORG/NAME, ORG/NAME:QUANTISATION or ORG/NAME/FILE".into(),
        };
        let (text, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (name, which) = match rest.split_once([':', '/']) {
            Some((name, which)) => (name, Some(which)),
            None => (rest, None),
        };
        let plain = which.into_iter().flat_map(|which| which.split('/')).chain([organisation, name, revision]);
        if plain.into_iter().all(is_plain) { Ok(Self { organisation, name, which, revision }) } else { Err(wrong()) }
    }
}

/// The GGUFs of a repository that are models.
fn repository(listed: &Value) -> Vec<Listed> {
    let siblings = listed["siblings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let file = |file: &Value| {
        let name = file["rfilename"].as_str()?;
        let own = name.rsplit('/').next()?;
        let model = own.to_ascii_lowercase().ends_with(".gguf") && !own.starts_with("mmproj");
        (model && name.split('/').all(is_plain)).then(|| Listed {
            name: name.to_owned(),
            bytes: file["lfs"]["size"].as_u64().or(file["size"].as_u64()),
            sha256: file["lfs"]["sha256"].as_str().map(str::to_owned),
        })
    };
    siblings.iter().filter_map(file).collect()
}

/// The files of the one model that is meant, in order; the names of those that could be.
fn choose(files: &[Listed], which: Option<&str>) -> Result<Vec<Listed>, Vec<String>> {
    // The parts of one model are one.
    let mut models: BTreeMap<&str, Vec<&Listed>> = BTreeMap::new();
    files.iter().for_each(|file| models.entry(whole_name(&file.name)).or_default().push(file));
    let has = |name: &str, text: &str| name.to_ascii_lowercase().contains(&text.to_ascii_lowercase());
    let exact = models.iter().filter(|(_, files)| files.iter().any(|file| Some(file.name.as_str()) == which));
    let exact: Vec<_> = exact.collect();
    let found: Vec<_> = match which {
        Some(_) if !exact.is_empty() => exact,
        Some(text) => models.iter().filter(|(name, _)| has(name, text)).collect(),
        None if models.len() > 1 => models.iter().filter(|(name, _)| has(name, USUAL)).collect(),
        None => models.iter().collect(),
    };
    match found.as_slice() {
        [(_, files)] => {
            let mut files: Vec<_> = files.iter().map(|&file| file.clone()).collect();
            files.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(files)
        }
        _ => Err(models.into_keys().map(str::to_owned).collect()),
    }
}

/// A file's name without what says which part of a model it is.
fn whole_name(name: &str) -> &str {
    let stem = name.strip_suffix(".gguf").unwrap_or(name);
    let digits = |text: &str| text.len() == 5 && text.chars().all(|c| c.is_ascii_digit());
    let part = stem.rsplit_once("-of-").filter(|(_, count)| digits(count));
    let base = part.and_then(|(rest, _)| rest.rsplit_once('-')).filter(|(_, number)| digits(number));
    base.map_or(stem, |(base, _)| base)
}

/// The name of a file in a snapshot, which leads to the blob.
fn link(folder: &Path, commit: &str, name: &str, blob: &Path) -> Result<(), PullError> {
    let path = folder.join("snapshots").join(commit).join(name);
    if path.exists() {
        return Ok(());
    }
    let io = |source| StoreError::Io { path: path.clone(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    // A link that leads nowhere any more.
    if path.is_symlink() {
        fs::remove_file(&path).map_err(io)?;
    }
    let up = "../".repeat(name.split('/').count() + 1);
    let target = format!("{up}blobs/{}", blob.file_name().unwrap_or_default().to_string_lossy());
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, &path).map_err(io)?;
    #[cfg(not(unix))]
    {
        let _ = target;
        fs::hard_link(blob, &path).map_err(io)?;
    }
    Ok(())
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), PullError> {
    let io = |source| StoreError::Io { path: path.into(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    Ok(fs::write(path, text).map_err(io)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Vec<Listed> {
        names.iter().map(|&name| Listed { name: name.into(), bytes: None, sha256: None }).collect()
    }

    fn chosen(names: &[&str], which: Option<&str>) -> Result<Vec<String>, Vec<String>> {
        choose(&listed(names), which).map(|files| files.into_iter().map(|file| file.name).collect())
    }

    #[test]
    fn one_model_of_a_repository_is_meant() {
        let many = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m-F16-00002-of-00002.gguf", "big/m-F16-00001-of-00002.gguf"];
        assert_eq!(chosen(&many, None).unwrap(), ["m-Q4_K_M.gguf"], "the usual one");
        assert_eq!(chosen(&many, Some("q8_0")).unwrap(), ["m-Q8_0.gguf"]);
        let parts = ["big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"];
        assert_eq!(chosen(&many, Some("F16")).unwrap(), parts, "all parts, in order");
        assert_eq!(chosen(&many, Some(parts[1])).unwrap(), parts, "whichever was named");
        assert_eq!(chosen(&["only.gguf"], None).unwrap(), ["only.gguf"]);
        let named = ["X-Mixture-of-Thoughts-Q4_K_M.gguf", "X-Mixture-of-Thoughts-Q8_0.gguf"];
        assert_eq!(chosen(&named, None).unwrap(), named[..1], "a name is not a part's");
        assert_eq!(chosen(&many, Some("Q2")).unwrap_err().len(), 3);
        assert_eq!(chosen(&["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], None).unwrap_err().len(), 2);
        assert!(chosen(&[], None).unwrap_err().is_empty());
    }

    #[test]
    fn names_are_read_as_other_programs_read_them() {
        let asked = |text| Asked::of(text).ok().map(|asked| (asked.name, asked.which, asked.revision));
        assert_eq!(asked("o/n"), Some(("n", None, "main")));
        assert_eq!(asked("o/n:Q8_0@v1"), Some(("n", Some("Q8_0"), "v1")));
        assert_eq!(asked("o/n/sub/f.gguf"), Some(("n", Some("sub/f.gguf"), "main")));
        for text in ["", "n", "o/", "o/../x", "o/n/../../x", "o/n@..", "o/n:a?b"] {
            assert_eq!(asked(text), None, "{text}");
        }
    }

    #[test]
    fn projectors_and_other_files_are_no_models() {
        let listed = serde_json::json!({ "siblings": [
            { "rfilename": "README.md" }, { "rfilename": "mmproj-F16.gguf" }, { "rfilename": "../x.gguf" },
            { "rfilename": "m.gguf", "size": 9, "lfs": { "sha256": "ab", "size": 9 } } ] });
        let expected = Listed { name: "m.gguf".into(), bytes: Some(9), sha256: Some("ab".into()) };
        assert_eq!(repository(&listed), [expected]);
    }
}
