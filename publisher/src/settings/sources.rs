//! Which settings there are, and where each came from.

use crate::flake::CacheUrl;
use hoist_certs::{Credentials, Pem, SigningKeySource};

use super::{
    BROKER, CA, CACHE, CERTIFICATE, FLEET, Given, KEY, Names, Origin, REQUIRED_SIGNATURES, SIGNER,
    SIGNER_KEY, SIGNING_KEY, SUBSTITUTER_KEYS, SUBSTITUTERS, Settings, SettingsError, SigningFlags,
    TRUSTED_KEYS,
};

/// One setting, as it may be shown: never a secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// What it is called in a configuration file.
    pub key: &'static str,
    /// Its value, or what stands for a text that is given as it is.
    pub shown: String,
    /// Where it came from.
    pub origin: Origin,
}

impl Settings<'_> {
    /// The configuration file that is read; none when there is none.
    #[must_use]
    pub fn file(&self) -> Option<&camino::Utf8Path> {
        self.has_file.then_some(self.path.as_path())
    }

    /// Every setting that is given, in the order of the manual.
    #[must_use]
    pub fn sources(&self, flags: &SigningFlags) -> Vec<Source> {
        let file = &self.file;
        let own = &self.flags;
        let mut sources = Vec::new();
        for (names, flag, in_file) in [
            (&BROKER, &own.broker, &file.broker),
            (&FLEET, &own.fleet, &file.fleet),
            (&CA, &own.ca, &file.ca),
            (&CERTIFICATE, &own.certificate, &file.certificate),
            (&KEY, &own.key, &file.key),
            (&SIGNER, &flags.signer, &None),
            (&SIGNER_KEY, &flags.signer_key, &None),
            (
                &REQUIRED_SIGNATURES,
                &flags.required_signatures,
                &file.required_signatures.map(|count| count.to_string()),
            ),
        ] {
            let given = self.one(names, flag.as_ref(), in_file.as_ref());
            sources.extend(given.map(|given| shown(names, &given)));
        }
        let signing = self.signing_keys_given(flags);
        sources.extend(signing.iter().map(|given| shown(&SIGNING_KEY, given)));
        for (names, flags, in_file) in [
            (&TRUSTED_KEYS, &flags.trusted_keys[..], &file.trusted_keys),
            (&SUBSTITUTERS, &[], &file.substituters),
            (&SUBSTITUTER_KEYS, &[], &file.substituter_keys),
        ] {
            let given = self.many(names, flags, in_file);
            sources.extend(given.iter().map(|given| shown(names, given)));
        }
        let cache = self.one(&CACHE, None, file.cache.as_ref());
        sources.extend(cache.map(|cache| shown(&CACHE, &cache)));
        sources
    }

    /// The three files that prove who we are, unread.
    ///
    /// # Errors
    /// [`SettingsError::Missing`] or [`SettingsError::SecretInFlag`]
    pub fn credentials(&self) -> Result<Credentials, SettingsError> {
        let (flags, file) = (&self.flags, &self.file);
        let (certificate, own) = (flags.certificate.as_ref(), file.certificate.as_ref());
        Ok(Credentials {
            ca: self.pem(&CA, flags.ca.as_ref(), file.ca.as_ref())?,
            certificate: self.pem(&CERTIFICATE, certificate, own)?,
            key: self.pem(&KEY, flags.key.as_ref(), file.key.as_ref())?,
        })
    }

    /// Where the signing keys are that are files.
    #[must_use]
    pub fn signing_key_files(&self, flags: &SigningFlags) -> Vec<camino::Utf8PathBuf> {
        let given = self.signing_keys_given(flags);
        let files =
            given
                .iter()
                .filter_map(|given| match SigningKeySource::from(given.text.clone()) {
                    SigningKeySource::File(path) => Some(given.path(&path)),
                    SigningKeySource::Inline(_) => None,
                });
        files.collect()
    }
}

fn shown(names: &Names, given: &Given) -> Source {
    // What is no path is a key or a certificate itself.
    let is_secret = match names.key {
        "key" | "ca" | "certificate" => matches!(Pem::from(given.text.clone()), Pem::Inline(_)),
        "signing_key" => {
            let source = SigningKeySource::from(given.text.clone());
            matches!(source, SigningKeySource::Inline(_))
        }
        _ => false,
    };
    let shown = match names.key {
        _ if is_secret => "the text itself".to_owned(),
        // Its address may hold a password or a token.
        "cache" => match given.text.trim().parse::<CacheUrl>() {
            Ok(cache) => cache.to_string(),
            Err(error) => format!("not usable: {error}"),
        },
        _ => crate::console::one_line(given.text.trim()),
    };
    Source {
        key: names.key,
        shown,
        origin: given.origin.clone(),
    }
}
