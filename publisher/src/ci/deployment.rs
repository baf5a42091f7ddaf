//! GitHub's deployments: that an environment is being deployed to, and how that ended, shown with the revision.
//!
//! <https://docs.github.com/rest/deployments>. Nothing of it decides anything: where GitHub does not answer, the
//! deployment goes on and a warning says so. The token goes nowhere but into the header of these requests, and only over
//! TLS or to this computer itself.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use zeroize::Zeroizing;

use crate::settings::Environment;

/// How long GitHub may take for one answer.
const LONGEST: Duration = Duration::from_secs(30);

/// Most of an answer that is read, in bytes.
const ANSWER: u64 = 1024 * 1024;

/// Longest description that GitHub takes, in characters.
const DESCRIPTION: usize = 140;

/// Why GitHub does not show the deployment.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// Something is missing that GitHub's own jobs have.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// The token would go over the network as it is.
    #[error("`{0}` is no https:// address, and the token is sent to no other")]
    Address(String),
    /// This computer trusts nobody.
    #[error("this computer has no certificate authorities")]
    NoAuthorities,
    /// GitHub cannot be asked.
    #[error("`{url}` cannot be asked")]
    Ask {
        /// What was asked.
        url: String,
        /// Why not.
        #[source]
        source: Box<ureq::Error>,
    },
    /// It says no.
    #[error("`{url}` answers {status}{}", advice(*.status))]
    Status {
        /// What was asked.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// It answers something else.
    #[error("the answer of `{0}` cannot be read")]
    Answer(String),
    /// Our own side broke.
    #[error("the request was not made")]
    Broken(#[source] tokio::task::JoinError),
}

const fn advice(status: u16) -> &'static str {
    match status {
        401 => "; is the token right?",
        403 | 404 => "; has the token the permission `deployments: write`?",
        _ => "",
    }
}

/// Where the deployment stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// It has begun.
    InProgress,
    /// Every machine that was waited for runs it.
    Success,
    /// It did not end well on a machine.
    Failure,
    /// It did not come to its end.
    Error,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
        }
    }
}

/// What a request needs.
struct Api {
    agent: ureq::Agent,
    /// That of the repository's deployments.
    url: String,
    authorization: Zeroizing<String>,
    log_url: Option<String>,
}

/// A deployment that GitHub shows, or is being told of.
pub struct Deployment {
    begun: JoinHandle<Result<(Api, u64), DeploymentError>>,
}

impl Deployment {
    /// Tells GitHub that `environment` is being deployed to; whoever deploys does not wait for the answer.
    ///
    /// # Errors
    /// [`DeploymentError`] when it cannot be told.
    pub fn begin(name: &str, environment: Environment<'_>) -> Result<Self, DeploymentError> {
        let needed = |name: &'static str| environment(name).ok_or(DeploymentError::Missing(name));
        let base =
            environment("GITHUB_API_URL").unwrap_or_else(|| "https://api.github.com".to_owned());
        let base = checked(base.trim_end_matches('/'))?;
        let repository = needed("GITHUB_REPOSITORY")?;
        let revision = needed("GITHUB_SHA")?;
        let token = Zeroizing::new(needed("GITHUB_TOKEN")?);
        let api = Api {
            agent: agent(&base)?,
            url: format!("{base}/repos/{repository}/deployments"),
            authorization: Zeroizing::new(format!("Bearer {}", token.trim())),
            log_url: crate::commands::github_run(environment),
        };
        let request = json!({
            "ref": revision,
            "environment": name,
            "description": "hoist deploy",
            // The checks of the revision are the workflow's affair, and nothing is merged.
            "required_contexts": [],
            "auto_merge": false,
        });
        let begun = tokio::task::spawn_blocking(move || {
            let answer = api.post(&api.url, &request)?;
            let id = answer["id"]
                .as_u64()
                .ok_or_else(|| DeploymentError::Answer(api.url.clone()))?;
            api.status(id, State::InProgress, "")?;
            Ok((api, id))
        });
        Ok(Self { begun })
    }

    /// Tells GitHub how it ended.
    ///
    /// # Errors
    /// [`DeploymentError`] when it was not told, now or before.
    pub async fn end(self, state: State, description: &str) -> Result<(), DeploymentError> {
        let (api, id) = self.begun.await.map_err(DeploymentError::Broken)??;
        let description: String = description.chars().take(DESCRIPTION).collect();
        let told = tokio::task::spawn_blocking(move || api.status(id, state, &description));
        told.await.map_err(DeploymentError::Broken)?
    }
}

impl Api {
    fn status(&self, id: u64, state: State, description: &str) -> Result<(), DeploymentError> {
        let mut request = json!({ "state": state.as_str(), "description": description });
        if let Some(url) = &self.log_url {
            request["log_url"] = json!(url);
        }
        self.post(&format!("{}/{id}/statuses", self.url), &request)
            .map(|_| ())
    }

    fn post(&self, url: &str, request: &Value) -> Result<Value, DeploymentError> {
        let ask = |source| DeploymentError::Ask {
            url: url.to_owned(),
            source: Box::new(source),
        };
        let mut answer = self
            .agent
            .post(url)
            .header("Accept", "application/vnd.github+json")
            .header("X-GitHub-Api-Version", "2022-11-28")
            .header("Authorization", self.authorization.as_str())
            .content_type("application/json")
            .send(request.to_string())
            .map_err(ask)?;
        if !answer.status().is_success() {
            return Err(DeploymentError::Status {
                url: url.to_owned(),
                status: answer.status().as_u16(),
            });
        }
        let body = answer.body_mut().with_config().limit(ANSWER);
        let text = body.read_to_string().map_err(ask)?;
        serde_json::from_str(&text).map_err(|_| DeploymentError::Answer(url.to_owned()))
    }
}

/// An address that a token may be sent to.
fn checked(base: &str) -> Result<String, DeploymentError> {
    let refused = || DeploymentError::Address(base.to_owned());
    let uri: Uri = base.parse().map_err(|_| refused())?;
    let is_here = matches!(uri.host(), Some("127.0.0.1" | "localhost" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => Ok(base.to_owned()),
        Some("http") if is_here => Ok(base.to_owned()),
        _ => Err(refused()),
    }
}

fn agent(base: &str) -> Result<ureq::Agent, DeploymentError> {
    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(LONGEST))
        // The token is for this address and no other.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("hoist/", env!("CARGO_PKG_VERSION")));
    if base.starts_with("https:") {
        let found = rustls_native_certs::load_native_certs().certs;
        if found.is_empty() {
            return Err(DeploymentError::NoAuthorities);
        }
        let authorities = (found.iter())
            .map(|der| Certificate::from_der(der).to_owned())
            .collect();
        config = config.tls_config(
            TlsConfig::builder()
                .provider(TlsProvider::Rustls)
                .root_certs(RootCerts::Specific(Arc::new(authorities)))
                .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
                .build(),
        );
    }
    Ok(ureq::Agent::new_with_config(config.build()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_sent_over_tls_or_to_this_computer_alone() {
        for good in [
            "https://api.github.com",
            "https://github.example.org/api/v3",
            "http://127.0.0.1:8080",
        ] {
            assert!(checked(good).is_ok(), "{good}");
        }
        for bad in [
            "http://api.github.com",
            "http://127.0.0.1.example.org",
            "ftp://localhost",
            "api.github.com",
            "",
        ] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let given = |name: &str| (name != "GITHUB_TOKEN").then(|| "x/y".to_owned());
        let error = Deployment::begin("prod", &|name| match name {
            "GITHUB_API_URL" => None,
            name => given(name),
        })
        .err()
        .unwrap();
        assert_eq!(error.to_string(), "GITHUB_TOKEN is not set");
    }
}
