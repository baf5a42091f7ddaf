//! Where a machine stands, in words.

use crate::console::one_line;
use crate::follow::{Outlook, Phase};

/// One line, without the machine's name.
#[must_use]
pub fn describe(outlook: &Outlook<'_>) -> String {
    let said = match &outlook.phase {
        Phase::Publishing => "publishing".to_owned(),
        Phase::Published => "published, waiting for the machine".to_owned(),
        Phase::Away => "offline; it gets the deployment when it returns".to_owned(),
        Phase::Reported(state, progress) => {
            let state = state.as_str().replace('_', " ");
            progress.map_or_else(|| state.clone(), |percent| format!("{state} {percent} %"))
        }
        Phase::Ended(outcome) => outcome.to_string(),
    };
    if outlook.message.is_empty() {
        return said;
    }
    format!("{said}: {}", one_line(&outlook.message))
}
