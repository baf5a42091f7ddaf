//! Manual pages, from what `--help` says.

use std::fs;
use std::io;

use camino::Utf8PathBuf;

/// What the command `man` of every program takes.
#[derive(Clone, Debug, Eq, PartialEq, clap::Args)]
pub struct ManArgs {
    /// The folder that gets a page for the program and one for each of its commands, such as /usr/local/share/man/man1; it
    /// is made if need be
    #[arg(value_name = "FOLDER")]
    pub folder: Utf8PathBuf,
}

impl ManArgs {
    /// Writes the pages of the program whose command line is `command`; of hidden commands there are none.
    ///
    /// # Errors
    /// When the folder cannot be made, or a page cannot be written.
    pub fn write(&self, command: clap::Command) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        clap_mangen::generate_to(command, &self.folder)
    }
}
