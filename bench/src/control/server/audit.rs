//! Who wrote what, as the API server's audit log has it.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

/// What is logged of requests: writes of what a manager and an agent write.
pub(super) const POLICY: &str = r#"{ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
  { "level": "Metadata", "verbs": ["create", "update", "patch", "delete"], "resources": [
    { "group": "", "resources": ["services", "services/status"] },
    { "group": "bowline.dev" }, { "group": "events.k8s.io" } ] },
  { "level": "None" } ] }"#;

/// A line of the audit log.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Write {
    /// The rig's users are impersonated by its administrator.
    impersonated_user: Option<AuditUser>,
    object_ref: Option<AuditObject>,
}

#[derive(Debug, Deserialize)]
struct AuditUser {
    username: String,
}

#[derive(Debug, Deserialize)]
struct AuditObject {
    resource: Option<String>,
}

impl Write {
    pub(super) fn is_by_manager(&self) -> bool {
        let user = self.impersonated_user.as_ref();
        user.is_some_and(|user| user.username.ends_with(":bowline-manager"))
    }

    fn resource(&self) -> &str {
        let object = self.object_ref.as_ref();
        object
            .and_then(|object| object.resource.as_deref())
            .unwrap_or_default()
    }

    pub(super) fn is_table(&self) -> bool {
        self.resource() == "servicetables"
    }

    /// A lease is renewed whatever happens, and pools are told about once a second.
    pub(super) fn is_about_services(&self) -> bool {
        !matches!(self.resource(), "leases" | "addresspools")
    }
}

/// All writes until now.
pub(super) fn writes(audit: &Path) -> anyhow::Result<Vec<Write>> {
    let text = std::fs::read_to_string(audit).context("the audit log")?;
    let lines = text.lines().map(serde_json::from_str::<Write>);
    Ok(lines.collect::<Result<_, _>>()?)
}
