//! Where closures are built, as CI would: a Nix store of its own, and a signed binary cache.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::StorePath;

use crate::closure::Closure;
use crate::namespace::Namespace;
use crate::process::{self, Finished};
use crate::programs::Programs;
use crate::server::CacheServer;

/// Sandboxes and build users need privileges that a test has not; no cache is asked while building.
const NIX_CONF: &str = "substituters =
sandbox = false
build-users-group =
experimental-features = nix-command
warn-dirty = false
";

/// Each of several closures, as `closures.nix` makes one.
const ALL: &str = "{ specs }:
map (spec: import ./closures.nix { inherit spec; }) (builtins.fromJSON specs)
";

/// A machine that builds and pushes.
pub struct Builder {
    namespace: Namespace,
    logs: Utf8PathBuf,
}

impl Builder {
    /// Makes one that lives in `dir`.
    ///
    /// # Errors
    /// When its folder cannot be written.
    pub fn create(dir: &Utf8Path, programs: &Programs, logs: &Utf8Path) -> Result<Self> {
        let namespace = Namespace::create(dir, programs, NIX_CONF)?;
        Ok(Self {
            namespace,
            logs: logs.to_owned(),
        })
    }

    /// A command that runs `program` where the closures are built, with nothing of this process's environment.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Finished> {
        let mut command = self.command(program);
        command.args(args).current_dir(self.namespace.dir());
        process::run("builder", command, &self.logs)
    }

    /// Builds `closure`; it lies in no cache yet.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn build(&self, closure: &Closure) -> Result<StorePath> {
        let spec = serde_json::to_string(closure)?;
        self.build_expression(
            "closures.nix",
            include_str!("closures.nix"),
            &[("spec", &spec)],
        )
    }

    /// Builds what the function `expression` makes of `arguments`; `file` is the name it gets.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn build_expression(
        &self,
        file: &str,
        expression: &str,
        arguments: &[(&str, &str)],
    ) -> Result<StorePath> {
        fs::write(self.namespace.dir().join(file), expression)?;
        let mut args = vec!["--no-out-link", file];
        for (name, value) in arguments {
            args.extend(["--argstr", name, value]);
        }
        let path = self
            .run("nix-build", &args)?
            .success()
            .context("nix-build failed")?;
        Ok(StorePath::new(path.trim())?)
    }

    /// Builds all `closures` at once; their paths come in the same order.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn build_all(&self, closures: &[Closure]) -> Result<Vec<StorePath>> {
        fs::write(
            self.namespace.dir().join("closures.nix"),
            include_str!("closures.nix"),
        )?;
        fs::write(self.namespace.dir().join("all.nix"), ALL)?;
        let specs = closures
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<Vec<_>, _>>()?;
        let specs = serde_json::to_string(&specs)?;
        let args = ["--no-out-link", "all.nix", "--argstr", "specs", &specs];
        let paths = self
            .run("nix-build", &args)?
            .success()
            .context("nix-build failed")?;
        Ok(paths
            .lines()
            .map(|path| StorePath::new(path.trim()))
            .collect::<Result<_, _>>()?)
    }

    /// Copies `path` and all it needs into `cache`, signed with its key.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn push(&self, path: &StorePath, cache: &Cache) -> Result<()> {
        self.push_all(std::slice::from_ref(path), cache)
    }

    /// The same for several paths at once.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn push_all(&self, paths: &[StorePath], cache: &Cache) -> Result<()> {
        let to = cache.push_url();
        let paths = paths.iter().map(StorePath::as_str);
        let args: Vec<&str> = ["copy", "--to", &to].into_iter().chain(paths).collect();
        self.run("nix", &args)?
            .success()
            .context("nix copy failed")?;
        Ok(())
    }

    /// How many store paths `path` consists of, itself among them.
    ///
    /// # Errors
    /// When Nix fails.
    pub fn closure_len(&self, path: &StorePath) -> Result<usize> {
        let paths = self
            .run("nix-store", &["--query", "--requisites", path.as_str()])?
            .success()?;
        Ok(paths.lines().count())
    }
}

/// A binary cache with a key of its own, served over HTTP.
pub struct Cache {
    folder: Utf8PathBuf,
    secret: Utf8PathBuf,
    public: String,
    /// What serves it.
    pub server: CacheServer,
}

impl Cache {
    /// Makes an empty one in `dir`, whose key is called `name`.
    ///
    /// # Errors
    /// When Nix cannot make a key, or no port can be had.
    pub fn create(dir: &Utf8Path, name: &str, builder: &Builder) -> Result<Self> {
        let folder = dir.join("files");
        fs::create_dir_all(&folder)?;
        let (secret, public) = (dir.join("key"), dir.join("key.pub"));
        let args = [
            "--generate-binary-cache-key",
            name,
            secret.as_str(),
            public.as_str(),
        ];
        builder
            .run("nix-store", &args)?
            .success()
            .context("nix-store cannot make a cache key")?;
        let public = fs::read_to_string(public)?.trim().to_owned();
        if public.is_empty() {
            bail!("nix-store made an empty cache key");
        }
        let server = CacheServer::start(&folder)?;
        Ok(Self {
            folder,
            secret,
            public,
            server,
        })
    }

    /// The same files at another address, which misbehaves on its own.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn mirror(&self) -> Result<Self> {
        Ok(Self {
            folder: self.folder.clone(),
            secret: self.secret.clone(),
            public: self.public.clone(),
            server: CacheServer::start(&self.folder)?,
        })
    }

    /// The public half of its key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.public
    }

    /// Where closures are copied to, so that it signs them.
    #[must_use]
    pub fn push_url(&self) -> String {
        format!(
            "file://{}?compression=none&secret-key={}",
            self.folder, self.secret
        )
    }

    /// The file with the secret half.
    #[must_use]
    pub fn secret_file(&self) -> &Utf8Path {
        &self.secret
    }

    /// The Nix configuration of a machine that has this cache alone and trusts its key.
    ///
    /// # Errors
    /// When the server has no address.
    pub fn nix_conf(&self) -> Result<String> {
        Ok(format!(
            "substituters = {}
trusted-public-keys = {}
require-sigs = true
sandbox = false
build-users-group =
connect-timeout = 5
download-attempts = 1
",
            self.server.url()?,
            self.public
        ))
    }
}
