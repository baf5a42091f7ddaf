//! The authority's folder: its two files, what it issued, and the indexes of what was issued and revoked.

mod index;
mod revocation;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use hoist_protocol::{AgentName, FleetName, KeyName, PublicKey, SigningKey, Timestamp};
use rand::TryRng as _;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use crate::authority::{Authority, AuthorityError, CERTIFICATE_VALIDITY, Host, Validity};
use crate::files::{FileError, Overwrite, Staged};
use crate::program::now;
use crate::role::Role;

use index::Index;
pub use index::Issued;
pub use revocation::{
    CRL, CRL_VALIDITY, Listed, REVOKED, Revoked, WrittenList, issued, revoke, write_list,
};

/// The authority's certificate.
pub const CA_CERTIFICATE: &str = "ca.pem";

/// The authority's private key.
pub const CA_KEY: &str = "ca.key";

/// One line of JSON for every certificate ever issued.
pub const INDEX: &str = "issued.jsonl";

/// Why the folder cannot be used so.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The authority failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder cannot be made.
    #[error("cannot make the folder `{path}`")]
    Folder {
        /// The folder.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The index cannot be used.
    #[error("cannot use the index `{path}`")]
    Index {
        /// The index.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line of the index is not ours.
    #[error(
        "line {line} of `{path}` is no entry of an index; restore the file, since names stay unique by it"
    )]
    IndexLine {
        /// The index.
        path: Utf8PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// Nothing of that name or serial number was issued.
    #[error("nothing that holds today was issued to `{0}`; `hoist-certs list` shows what was")]
    NotIssued(String),
    /// The file of the revocation list is something else.
    #[error("`{path}` is no CRL of this CA; move it away, or use --force to replace it")]
    ForeignList {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        source: crate::trust::CrlError,
    },
    /// The name belongs to another role or fleet.
    #[error(
        "`{name}` was issued to {role} {name} of fleet {fleet} before; a name means one holder for ever, \
         so choose another name"
    )]
    NameTaken {
        /// The name.
        name: AgentName,
        /// The role that it has.
        role: Role,
        /// The fleet that it is of.
        fleet: FleetName,
    },
    /// It was issued before.
    #[error(
        "{role} {name} has a certificate already, valid until {not_after}; use --force to issue another"
    )]
    Issued {
        /// The name.
        name: AgentName,
        /// Its role.
        role: Role,
        /// When its last certificate ends.
        not_after: Timestamp,
    },
}

/// What shall be issued.
#[derive(Clone, Debug)]
pub struct Request {
    /// What its holder may do.
    pub role: Role,
    /// Its name.
    pub name: AgentName,
    /// Its fleet, when it is not the authority's own.
    pub fleet: Option<FleetName>,
    /// The hosts of a broker.
    pub hosts: Vec<Host>,
    /// Whether it is for a broker that is one of a cluster: see [`Authority::issue_node`].
    pub node: bool,
    /// How long it is valid; a year, or as long as the authority when that ends before.
    pub validity: Option<Validity>,
}

/// Where an issued pair lies.
#[derive(Clone, Debug)]
pub struct Written {
    /// The certificate.
    pub certificate: Utf8PathBuf,
    /// The private key.
    pub key: Utf8PathBuf,
    /// When the certificate ends.
    pub not_after: Timestamp,
}

/// Makes an authority in `dir`, which is made too if it is not there.
///
/// # Errors
/// [`DirectoryError`]; then neither file has been made.
pub fn init(
    dir: &Utf8Path,
    fleet: &FleetName,
    validity: Validity,
    overwrite: Overwrite,
) -> Result<Written, DirectoryError> {
    let authority = Authority::create(fleet, validity)?;
    make(dir)?;
    let (certificate, key) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
    write_pair(
        (&certificate, authority.certificate_pem()),
        (&key, &authority.key_pem()),
        overwrite,
    )?;
    Ok(Written {
        certificate,
        key,
        not_after: authority.not_after(),
    })
}

/// Where a signing key lies.
#[derive(Clone, Debug)]
pub struct WrittenKey {
    /// The file of the secret.
    pub secret: Utf8PathBuf,
    /// The file of the public half.
    pub public: Utf8PathBuf,
    /// The public half.
    pub key: PublicKey,
}

/// Makes a key that signs deployments, in `dir`, which is made too if it is not there.
///
/// # Errors
/// [`DirectoryError`]; then neither file has been made.
pub fn signing_key(
    dir: &Utf8Path,
    name: &KeyName,
    overwrite: Overwrite,
) -> Result<WrittenKey, DirectoryError> {
    let mut seed = Zeroizing::new([0; 32]);
    SysRng
        .try_fill_bytes(seed.as_mut_slice())
        .map_err(AuthorityError::Random)?;
    let key = SigningKey::from_seed(name.clone(), &seed);
    make(dir)?;
    let secret = dir.join(format!("{name}.signing-key"));
    let public = dir.join(format!("{name}.signing-key.pub"));
    let secret_text = Zeroizing::new(format!("{}\n", *key.to_text()));
    write_pair(
        (&public, &format!("{}\n", key.public())),
        (&secret, &secret_text),
        overwrite,
    )?;
    Ok(WrittenKey {
        secret,
        public,
        key: key.public(),
    })
}

fn make(dir: &Utf8Path) -> Result<(), DirectoryError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| DirectoryError::Folder {
            path: dir.to_owned(),
            source,
        })
}

/// Issues a certificate from the authority in `dir` and writes it there.
///
/// # Errors
/// [`DirectoryError`]
pub fn issue(
    dir: &Utf8Path,
    request: &Request,
    overwrite: Overwrite,
) -> Result<Written, DirectoryError> {
    let authority = Authority::load(dir)?;
    let fleet = request.fleet.as_ref().unwrap_or(authority.fleet());
    let stem = format!("{}-{}", request.role, request.name);
    let certificate = dir.join(format!("{stem}.pem"));
    let key = dir.join(format!("{stem}.key"));

    let mut index = Index::open(&dir.join(INDEX))?;
    check_unique(&index.entries()?, &authority, request, fleet, overwrite)?;
    if overwrite == Overwrite::No {
        refuse_existing(&[&certificate, &key])?;
    }
    let validity = request.validity.unwrap_or_else(|| {
        let usual = Validity::from(CERTIFICATE_VALIDITY);
        usual.ending_at_most(authority.not_after())
    });
    let (name, hosts) = (&request.name, &request.hosts);
    let issued = match request.role {
        Role::Broker if request.node => authority.issue_node(fleet, name, hosts, validity),
        role => authority.issue_in(fleet, role, name, hosts, validity),
    }?;
    // The index first: a certificate that exists and is not in it could be issued again to another role.
    index.append(&Issued {
        authority: authority.serial().clone(),
        serial: issued.serial.clone(),
        name: request.name.clone(),
        role: request.role,
        fleet: fleet.clone(),
        issued: now(),
        not_after: issued.not_after,
    })?;
    write_pair(
        (&certificate, &issued.certificate_pem),
        (&key, &issued.key_pem),
        overwrite,
    )?;
    Ok(Written {
        certificate,
        key,
        not_after: issued.not_after,
    })
}

fn check_unique(
    entries: &[Issued],
    authority: &Authority,
    request: &Request,
    fleet: &FleetName,
    overwrite: Overwrite,
) -> Result<(), DirectoryError> {
    let ours =
        |entry: &&Issued| entry.authority == *authority.serial() && entry.name == request.name;
    for entry in entries.iter().filter(ours) {
        if entry.role != request.role || entry.fleet != *fleet {
            return Err(DirectoryError::NameTaken {
                name: entry.name.clone(),
                role: entry.role,
                fleet: entry.fleet.clone(),
            });
        }
    }
    match entries.iter().rfind(ours) {
        Some(last) if overwrite == Overwrite::No => Err(DirectoryError::Issued {
            name: last.name.clone(),
            role: last.role,
            not_after: last.not_after,
        }),
        _ => Ok(()),
    }
}

fn refuse_existing(paths: &[&Utf8Path]) -> Result<(), FileError> {
    // A link that leads nowhere is there too, and a rename would replace it.
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(FileError::Exists((*path).to_owned())),
        None => Ok(()),
    }
}

/// Both files are complete on disk before the first of them gets its name, the secret before what it is for.
fn write_pair(
    (public, public_text): (&Utf8Path, &str),
    (secret, secret_text): (&Utf8Path, &str),
    overwrite: Overwrite,
) -> Result<(), FileError> {
    if overwrite == Overwrite::No {
        refuse_existing(&[public, secret])?;
    }
    let staged_secret = Staged::private(secret, secret_text.as_bytes())?;
    let staged_public = Staged::public(public, public_text.as_bytes())?;
    staged_secret.commit(overwrite)?;
    staged_public.commit(overwrite)
}
