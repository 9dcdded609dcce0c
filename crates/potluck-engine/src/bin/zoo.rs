//! Writes the zoo: `potluck-engine-zoo FOLDER` makes a tiny GGUF of each architecture that the tests prove.

use std::{fs::File, io::BufWriter, path::PathBuf};

use potluck_engine::zoo;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: potluck-engine-zoo FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    for (at, animal) in zoo::animals().into_iter().enumerate() {
        let path = folder.join(format!("{at:02}-{}.gguf", animal.architecture));
        zoo::write(&animal.metadata, &mut BufWriter::new(File::create(&path)?))?;
        println!("{}: {}", path.display(), animal.shows);
    }
    Ok(())
}
