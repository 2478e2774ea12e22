//! What an agent keeps of an endpoint slice: on which nodes somebody serves. Of a hundred thousand endpoints the objects
//! would be most of its memory.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::index::{Named, SERVICE_LABEL};

/// Between names of nodes, which can not contain it.
const SEPARATOR: char = '\n';

/// The nodes of one slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Serving {
    /// Its Service.
    pub service: Named,
    /// Nodes with an endpoint that is ready and does not terminate, in one text.
    ready: Box<str>,
    /// Nodes with an endpoint that still serves while it terminates, in one text.
    leaving: Box<str>,
}

impl Serving {
    /// Of a slice; none if it names no Service.
    pub fn of(slice: &EndpointSlice) -> Option<Self> {
        let name = slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?.clone();
        let mut ready = BTreeSet::new();
        let mut leaving = BTreeSet::new();
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(node) = endpoint.node_name.as_deref() else {
                continue;
            };
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let terminates = conditions.terminating.unwrap_or(false);
            if conditions.ready.unwrap_or(true) && !terminates {
                ready.insert(node);
            } else if conditions.serving.unwrap_or(true) && terminates {
                leaving.insert(node);
            }
        }
        Some(Self {
            service: Named {
                namespace: slice.metadata.namespace.clone().unwrap_or_default(),
                name,
            },
            ready: joined(&ready),
            leaving: joined(&leaving),
        })
    }

    /// Nodes with an endpoint that is ready and does not terminate.
    pub fn ready(&self) -> impl Iterator<Item = &str> {
        self.ready.split_terminator(SEPARATOR)
    }

    /// Nodes with an endpoint that still serves while it terminates.
    pub fn leaving(&self) -> impl Iterator<Item = &str> {
        self.leaving.split_terminator(SEPARATOR)
    }
}

fn joined(nodes: &BTreeSet<&str>) -> Box<str> {
    let mut text = String::new();
    for node in nodes {
        text.push_str(node);
        text.push(SEPARATOR);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_kept_by_how_their_endpoints_are() {
        let slice: EndpointSlice = serde_saphyr::from_str(
            "metadata: {name: s, namespace: x, labels: {kubernetes.io/service-name: web}}\n\
             addressType: IPv4\n\
             endpoints:\n\
             - {addresses: [10.0.0.1], nodeName: b}\n\
             - {addresses: [10.0.0.2], nodeName: a, conditions: {ready: true}}\n\
             - {addresses: [10.0.0.3], nodeName: c, conditions: {ready: false, serving: true, terminating: true}}\n\
             - {addresses: [10.0.0.4], nodeName: d, conditions: {ready: false}}\n\
             - {addresses: [10.0.0.5]}\n",
        )
        .unwrap();
        let serving = Serving::of(&slice).unwrap();
        assert_eq!(serving.service.to_string(), "x/web");
        assert_eq!(serving.ready().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(serving.leaving().collect::<Vec<_>>(), ["c"]);
    }
}
