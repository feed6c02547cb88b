//! Gathers the evidence: the only part of the doctor with sockets and files. Everything at once,
//! everything with a limit; what does not answer is a reason, never an error.

use std::time::Duration;

use super::evidence::{Evidence, Vantage};
use super::rule::Need;
use crate::admin::status::{Document, around};

pub mod kube;
pub mod ports;

/// What to look at.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The shim's admin URL; `None` for this pod's.
    pub admin: Option<String>,
    /// The model that is asked about.
    pub model: Option<String>,
    /// Limit for everything together.
    pub timeout: Duration,
}

/// Looks at everything.
pub async fn evidence(settings: &Settings) -> Evidence {
    let admin = settings
        .admin
        .clone()
        .unwrap_or_else(crate::cli::status::own_admin);
    let mut evidence = Evidence {
        admin: admin.clone(),
        asked_model: settings.model.clone(),
        ..Evidence::default()
    };
    match status(&admin, settings.timeout).await {
        Ok(document) => {
            let same = document.around.place.is_some() && document.around.place == around::place();
            if same {
                evidence.vantage = Vantage::Pod;
            }
            evidence.status = Some(document);
        }
        Err(why) => evidence.lacks(Need::Status, why),
    }
    evidence
}

async fn status(admin: &str, limit: Duration) -> Result<Document, String> {
    let text = crate::cli::status::fetch(admin, limit).await?;
    serde_json::from_str(&text)
        .map_err(|error| format!("{admin}/status is not that of an agent-shim: {error}"))
}
