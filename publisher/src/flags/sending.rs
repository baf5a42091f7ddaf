//! The flags of every command that publishes: what a deployment says of itself, and how machines are followed.

use camino::Utf8PathBuf;
use clap::{Args, ValueEnum};

use crate::duration;

/// What is said in the deployment itself.
#[derive(Debug, Args)]
#[command(next_help_heading = "Deployment")]
pub struct DeploymentArgs {
    /// How long the deployment is valid for machines that are offline
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "90d")]
    pub expires: std::time::Duration,
    /// What the deployment is for
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// The revision of the source [default: $GITHUB_SHA or $CI_COMMIT_SHA]
    #[arg(long, value_name = "TEXT")]
    pub revision: Option<String>,
    /// Where the CI run can be seen [default: from $GITHUB_RUN_ID, or $CI_JOB_URL]
    #[arg(long, value_name = "URL")]
    pub run_url: Option<String>,
    /// Who deploys [default: $GITHUB_ACTOR or $GITLAB_USER_LOGIN]
    #[arg(long, value_name = "NAME")]
    pub actor: Option<String>,
    /// Sign, write the signed deployments into this file, and publish nothing: `hoist sign FILE` adds another's
    /// signature, `hoist deploy --signed FILE` publishes them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["wait", "is_async", "dry_run"])]
    pub prepare: Option<Utf8PathBuf>,
    /// Raise the epoch, to get out of a sequence that lies too far ahead; needs a key that may
    #[arg(long)]
    pub raise_epoch: bool,
}

/// How machines are followed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Following")]
pub struct FollowArgs {
    /// Publish, read back, and do not wait for machines; the same as --wait none
    #[arg(long = "async", conflicts_with = "wait")]
    pub is_async: bool,
    /// Which machines are waited for. One is done when its deployment has ended; where that takes a reboot
    /// (`staged`), it is done without it. One that is held is not waited for by `online`
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    pub wait: WaitFor,
    /// How long to publish and wait at most; machines go on by themselves
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "30m")]
    pub timeout: std::time::Duration,
    /// Write one JSON document at the end, and nothing else to stdout
    #[arg(long)]
    pub json: bool,
    /// Write the JSON document to this file too
    #[arg(long, value_name = "FILE")]
    pub report: Option<Utf8PathBuf>,
    /// Write a summary in Markdown to this file [default: $GITHUB_STEP_SUMMARY, if it is set]
    #[arg(long, value_name = "FILE")]
    pub summary: Option<Utf8PathBuf>,
    /// Do not show progress or the machines' log lines
    #[arg(short, long)]
    pub quiet: bool,
}

/// Which machines are waited for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum WaitFor {
    /// Those that are online and not held; the others get it when they return, or are released
    #[default]
    Online,
    /// All
    All,
    /// None
    None,
}
