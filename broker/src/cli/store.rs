//! `check`, `backup` and `restore`.

use anyhow::Context as _;
use camino::Utf8PathBuf;
use hoist_broker::maintenance::{self, MaintenanceError, Summary, store_file};
use hoist_broker::{Options, StoreError};
use hoist_certs::program::{read_toml, show_size};

/// Where a broker's state is.
#[derive(clap::Args)]
struct Place {
    /// The broker's state folder
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    state: Option<Utf8PathBuf>,
    /// The broker's configuration file, which names it
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    config: Option<Utf8PathBuf>,
}

impl Place {
    fn state(self) -> anyhow::Result<Utf8PathBuf> {
        match (self.state, self.config) {
            (Some(state), _) => Ok(state),
            (None, Some(path)) => {
                let options: Options = read_toml(&path)?;
                options
                    .state
                    .with_context(|| format!("`{path}` does not set `state`"))
            }
            // clap asks for one of them.
            (None, None) => anyhow::bail!("give --state or --config"),
        }
    }
}

/// Read the store, or a backup, from its first byte to its last, and say what it holds and what is wrong; changes
/// nothing
#[derive(clap::Args)]
pub(super) struct Check {
    /// A backup, instead of a broker's store
    #[arg(value_name = "BACKUP", conflicts_with_all = ["state", "config"])]
    backup: Option<Utf8PathBuf>,
    /// The broker's state folder
    #[arg(long, value_name = "DIR", required_unless_present_any = ["config", "backup"])]
    state: Option<Utf8PathBuf>,
    /// The broker's configuration file, which names it
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    config: Option<Utf8PathBuf>,
}

/// Write a backup of the store, also while the broker runs: complete, or not at all
#[derive(clap::Args)]
pub(super) struct Backup {
    #[command(flatten)]
    place: Place,
    /// The backup's file
    #[arg(value_name = "FILE")]
    to: Utf8PathBuf,
    /// Replace the file when it is there already
    #[arg(long)]
    force: bool,
}

/// Put a backup in the place of the store; the broker must not be running
#[derive(clap::Args)]
pub(super) struct Restore {
    #[command(flatten)]
    place: Place,
    /// The backup's file
    #[arg(value_name = "FILE")]
    from: Utf8PathBuf,
    /// Replace a store that holds messages, or is damaged; it is kept as `retained.before-restore`
    #[arg(long)]
    force: bool,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let is_backup = self.backup.is_some();
        let file = match self.backup {
            Some(file) => file,
            None => store_file(
                &Place {
                    state: self.state,
                    config: self.config,
                }
                .state()?,
            ),
        };
        let summary = match maintenance::check(&file) {
            Err(error @ MaintenanceError::Store(StoreError::Damaged { .. })) => {
                let changes = maintenance::count_before_damage(&file)?;
                println!("{file}: {changes} changes can be read before what is damaged");
                return Err(error.into());
            }
            result => result?,
        };
        if is_backup && !summary.closed {
            return Err(MaintenanceError::Incomplete(file).into());
        }
        println!("{file}: sound, {}", describe(&summary));
        if summary.torn_bytes > 0 {
            println!(
                "{} at the end are of a batch that was being written; it was never acknowledged",
                show_size(summary.torn_bytes)
            );
        }
        if !summary.closed {
            println!("not closed in order: a broker is running, or was killed or lost its power");
        }
        Ok(())
    }
}

impl Backup {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let state = self.place.state()?;
        let summary = maintenance::backup(&state, &self.to, self.force)?;
        println!("{}: {}", self.to, describe(&summary));
        Ok(())
    }
}

impl Restore {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let state = self.place.state()?;
        let summary = maintenance::restore(&state, &self.from, self.force)?;
        println!("{}: restored {}", store_file(&state), describe(&summary));
        Ok(())
    }
}

fn describe(summary: &Summary) -> String {
    let channels = summary.channels.iter();
    let channels: Vec<String> = channels
        .map(|(channel, count)| format!("{count} {channel}"))
        .collect();
    let of = if channels.is_empty() {
        String::new()
    } else {
        format!(" ({})", channels.join(", "))
    };
    format!(
        "{} messages{of} of {} machines in {} fleets; {}, {} of it out of date",
        summary.messages(),
        summary.machines,
        summary.fleets,
        show_size(summary.bytes),
        show_size(summary.stale_bytes)
    )
}
