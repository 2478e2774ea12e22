//! What a kubelet says about itself in its Node.

use k8s_openapi::api::core::v1::NodeCondition;

/// What one with graceful shutdown gives as the reason why its Node is not ready.
const SHUTTING_DOWN: &str = "node is shutting down";

/// Whether a condition says that a Node's kubelet is about to end.
pub fn tells_shutdown(condition: &NodeCondition) -> bool {
    let message = condition.message.as_deref().unwrap_or_default();
    condition.type_ == "Ready" && condition.status != "True" && message.contains(SHUTTING_DOWN)
}
