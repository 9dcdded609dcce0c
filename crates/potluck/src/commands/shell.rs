//! `potluck completions` and `potluck man`: what a shell and a reader of manuals expect.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::{failure::Failure, screen::Screen};

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Where the pages go: potluck.1, and one for each command
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

impl Completions {
    /// Prints what the shell is to read.
    pub(crate) fn run(self, mut cli: Command, screen: Screen) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut cli, "potluck", &mut script);
        screen.text(&String::from_utf8_lossy(&script))
    }
}

impl Man {
    /// Writes the pages, those of hidden commands left out.
    pub(crate) fn run(self, cli: Command, screen: Screen) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::io(self.dir.display(), &error);
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(cli, &self.dir).map_err(failed)?;
        screen.note(format!("man -l {}", self.dir.join("potluck.1").display()));
        Ok(())
    }
}
