//! Label selectors and conditions as Kubernetes has them: their schemas, and what a selector matches.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use schemars::{Schema, SchemaGenerator, json_schema};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The selector has an operator that is none, or one without the values it needs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("label selector: {0}")]
pub struct SelectorError(String);

/// Whether a selector matches labels; an empty one matches all.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> Result<bool, SelectorError> {
    let selector = Selector::try_from(selector.clone())
        .map_err(|error| SelectorError(error.to_string().to_lowercase()))?;
    Ok(selector.matches(labels))
}

/// Schema of a selector. Lengths are those of labels, so that rules about it stay cheap.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": { "type": "string", "maxLength": 63 },
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 32,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "maxLength": 317 },
                        "operator": {
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "type": "array",
                            "maxItems": 64,
                            "items": { "type": "string", "maxLength": 63 },
                        },
                    },
                },
            },
        },
    })
}

/// Schema of the conditions of a status: one per type.
pub(super) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(yaml: &str) -> LabelSelector {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn an_empty_selector_matches_everything_and_a_label_only_its_own() {
        let labels: Labels = [("team".to_owned(), "shop".to_owned())].into();
        assert_eq!(matches(&LabelSelector::default(), &labels), Ok(true));
        let shop = selector("matchLabels: {team: shop}");
        assert_eq!(matches(&shop, &labels), Ok(true));
        assert_eq!(matches(&shop, &Labels::new()), Ok(false));
        let others = selector("matchExpressions: [{key: team, operator: NotIn, values: [shop]}]");
        assert_eq!(matches(&others, &labels), Ok(false));
    }

    #[test]
    fn an_unknown_operator_is_an_error() {
        let wrong = selector("matchExpressions: [{key: team, operator: Like, values: [shop]}]");
        assert!(matches(&wrong, &Labels::new()).is_err());
    }
}
