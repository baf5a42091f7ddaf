//! How large the programs are.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::bench::report::table;
use crate::programs::Programs;
use crate::usage::megabytes;

/// Strips copies of the programs and prints their sizes.
pub(super) fn measure() -> Result<()> {
    let programs = Programs::find()?;
    let folder = tempfile::tempdir()?;
    let mut rows = vec![["", "stripped, MB", "goal"].map(str::to_owned).to_vec()];
    for program in [
        &programs.agent,
        &programs.publisher,
        &programs.broker,
        &programs.certs,
    ] {
        let name = program.file_name().context("a program has a name")?;
        let copy = folder.path().join(name);
        let status = Command::new("strip")
            .arg("-o")
            .arg(&copy)
            .arg(program)
            .status()
            .context("cannot run `strip` (of the package binutils)")?;
        ensure!(status.success(), "{program} cannot be stripped");
        let size = megabytes(fs::metadata(&copy)?.len());
        let goal = if *program == programs.agent {
            "below 8"
        } else {
            ""
        };
        rows.push(vec![name.to_owned(), format!("{size:.1}"), goal.to_owned()]);
    }
    println!("## Programs\n\n{}", table(&rows));
    Ok(())
}
