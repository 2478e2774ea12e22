//! Text of one file → objects and problems. Pure: knows no files, only their text.
//!
//! A file whose YAML is broken gives nothing but the place of the fault; one that is sound but holds an object that the
//! types refuse gives the other objects, and says which one is refused.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::address_pool::AddressPool;
use crate::api::bgp_advertisement::BGPAdvertisement;
use crate::api::bgp_peer::BGPPeer;
use crate::api::file::API_VERSION;
use crate::api::l2_advertisement::L2Advertisement;
use crate::api::load_balancer_node::LoadBalancerNode;
use crate::api::node_drain::NodeDrain;
use crate::api::service_table::ServiceTable;
use crate::source::serving::Serving;

/// Namespace of an object that names none, as `kubectl` has it.
const NAMESPACE_DEFAULT: &str = "default";
/// Longest name of an object (RFC 1123 subdomain, as Kubernetes limits it).
const NAME_LENGTH_MAX: usize = 253;
/// Unknown fields named in one sentence; the rest is counted.
const UNKNOWN_NAMED_MAX: usize = 5;
/// Nodes (scalars, lists, mappings) in one file: 5,000 pods as Kubernetes writes them are about half of it.
const YAML_NODES_MAX: usize = 4_000_000;
/// Documents in one file, for the same 5,000 pods and more.
const YAML_DOCUMENTS_MAX: usize = 100_000;

/// What kind an object is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice,
    /// `v1` Namespace.
    Namespace,
    /// `bowline.dev/v1alpha1` `AddressPool`.
    AddressPool,
    /// `bowline.dev/v1alpha1` `L2Advertisement`.
    L2Advertisement,
    /// `bowline.dev/v1alpha1` `BGPPeer`.
    BGPPeer,
    /// `bowline.dev/v1alpha1` `BGPAdvertisement`.
    BGPAdvertisement,
    /// `bowline.dev/v1alpha1` `NodeDrain`.
    NodeDrain,
    /// `bowline.dev/v1alpha1` `LoadBalancerNode`; from an API server only.
    LoadBalancerNode,
    /// `bowline.dev/v1alpha1` `ServiceTable`; from an API server only.
    ServiceTable,
    /// `v1` Secret; from an API server only.
    Secret,
}

impl Kind {
    /// Whether its objects have a namespace.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Pod | Self::Service | Self::EndpointSlice | Self::ServiceTable | Self::Secret => {
                true
            }
            Self::Node
            | Self::Namespace
            | Self::AddressPool
            | Self::L2Advertisement
            | Self::BGPPeer
            | Self::BGPAdvertisement
            | Self::NodeDrain
            | Self::LoadBalancerNode => false,
        }
    }
}

/// Which object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a kind without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// The drain of a node.
    pub fn of_drain(node: &str) -> Self {
        Self {
            kind: Kind::NodeDrain,
            namespace: String::new(),
            name: node.to_owned(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        if kind.is_namespaced() {
            write!(f, "{kind:?} {namespace}/{name}")
        } else {
            write!(f, "{kind:?} {name}")
        }
    }
}

/// An object that we use. Its namespace is set, or empty for a kind without.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    /// A Node.
    Node(Box<Node>),
    /// A Pod.
    Pod(Box<Pod>),
    /// A Service.
    Service(Box<Service>),
    /// An `EndpointSlice`.
    EndpointSlice(Box<EndpointSlice>),
    /// What an agent keeps of one.
    Serving(Box<Serving>),
    /// A Namespace.
    Namespace(Box<Namespace>),
    /// An `AddressPool`.
    AddressPool(Box<AddressPool>),
    /// An `L2Advertisement`.
    L2Advertisement(Box<L2Advertisement>),
    /// A `BGPPeer`.
    BGPPeer(Box<BGPPeer>),
    /// A `BGPAdvertisement`.
    BGPAdvertisement(Box<BGPAdvertisement>),
    /// A `NodeDrain`.
    NodeDrain(Box<NodeDrain>),
    /// A `LoadBalancerNode`.
    LoadBalancerNode(Box<LoadBalancerNode>),
    /// A `ServiceTable`.
    ServiceTable(Box<ServiceTable>),
    /// A Secret.
    Secret(Box<Secret>),
}

/// What is wrong in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The object is refused: its last good form stays.
    Refused {
        /// Which, if it could be told.
        key: Option<ObjectKey>,
        /// What is wrong and what to change.
        sentence: String,
    },
    /// Worth saying, but what there is, is used.
    Notice {
        /// Which object, as people name it.
        object: String,
        /// What is wrong and what to change.
        sentence: String,
    },
}

/// What a sound file holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Parsed {
    /// Its objects, in order; a key may come twice.
    pub objects: Vec<(ObjectKey, Object)>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// The file is not YAML.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Broken {
    /// Line of the fault, from 1.
    pub line: u64,
    /// What the parser expected.
    pub what: String,
}

/// Reads all documents of a file.
pub fn parse(text: &str) -> Result<Parsed, Broken> {
    let documents: Vec<Value> = documents(text)?;
    let mut parsed = Parsed::default();
    for (index, document) in documents.into_iter().enumerate() {
        parsed.document(document, &format!("document {}", index + 1));
    }
    Ok(parsed)
}

/// The documents of a YAML text, as values.
pub(super) fn documents(text: &str) -> Result<Vec<Value>, Broken> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: YAML_NODES_MAX,
            max_events: 3 * YAML_NODES_MAX,
            max_documents: YAML_DOCUMENTS_MAX,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        // The first line of the message is the sentence; the rest draws the place.
        let message = error.without_snippet().to_string();
        let what = message
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned();
        Broken { line, what }
    })
}

impl Parsed {
    fn document(&mut self, document: Value, place: &str) {
        let Value::Object(fields) = &document else {
            if !document.is_null() {
                self.refuse(
                    None,
                    format!("{place} is not a mapping; write apiVersion, kind and metadata"),
                );
            }
            return;
        };
        let text = |name: &str| {
            fields
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (version, kind) = (text("apiVersion"), text("kind"));
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => self.object::<Service>(document, Kind::Service, place),
            ("v1", "Pod") => self.object::<Pod>(document, Kind::Pod, place),
            ("v1", "Node") => self.object::<Node>(document, Kind::Node, place),
            ("v1", "Namespace") => self.object::<Namespace>(document, Kind::Namespace, place),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object::<EndpointSlice>(document, Kind::EndpointSlice, place);
            }
            (API_VERSION, "AddressPool") => {
                self.object::<AddressPool>(document, Kind::AddressPool, place);
            }
            (API_VERSION, "L2Advertisement") => {
                self.object::<L2Advertisement>(document, Kind::L2Advertisement, place);
            }
            (API_VERSION, "BGPPeer") => self.object::<BGPPeer>(document, Kind::BGPPeer, place),
            (API_VERSION, "BGPAdvertisement") => {
                self.object::<BGPAdvertisement>(document, Kind::BGPAdvertisement, place);
            }
            (API_VERSION, "NodeDrain") => {
                self.object::<NodeDrain>(document, Kind::NodeDrain, place);
            }
            (_, "") => self.refuse(None, format!("{place} has no kind; write one")),
            (_, list) if list.ends_with("List") => self.list(document, list.trim_end_matches("List"), &version, place),
            (version, kind) => self.faults.push(Fault::Notice {
                object: format!("{kind} in {place}"),
                sentence: format!(
                    "kind {kind} of {version:?} is not used here and ignored; used are v1 Service, Pod, Node and \
                     Namespace, discovery.k8s.io/v1 EndpointSlice, and {API_VERSION} AddressPool, L2Advertisement, \
                     BGPPeer, BGPAdvertisement and NodeDrain"
                ),
            }),
        }
    }

    /// Items of a list; those of `ServiceList` and its relatives may leave out what the list says.
    fn list(&mut self, mut document: Value, item_kind: &str, version: &str, place: &str) {
        let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) else {
            self.refuse(
                None,
                format!("{place} is a list without items; write items"),
            );
            return;
        };
        for (index, mut item) in items.into_iter().enumerate() {
            if let (Value::Object(fields), false) = (&mut item, item_kind.is_empty()) {
                fields.entry("kind").or_insert_with(|| item_kind.into());
                fields.entry("apiVersion").or_insert_with(|| version.into());
            }
            self.document(item, &format!("item {} of {place}", index + 1));
        }
    }

    fn object<T: DeserializeOwned + Into<Object> + HasMeta>(
        &mut self,
        document: Value,
        kind: Kind,
        place: &str,
    ) {
        // The name is wanted even when the rest is refused, so that the last good form of the object stays.
        let name_of = |field: &str| {
            document
                .pointer(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let namespace = match name_of("/metadata/namespace") {
            _ if !kind.is_namespaced() => String::new(),
            named if named.is_empty() => NAMESPACE_DEFAULT.to_owned(),
            named => named,
        };
        let key = ObjectKey {
            kind,
            namespace,
            name: name_of("/metadata/name"),
        };
        if key.name.is_empty() {
            self.refuse(
                None,
                format!("{kind:?} in {place} has no metadata.name; write one"),
            );
            return;
        }
        for (field, name) in [
            ("metadata.name", &key.name),
            ("metadata.namespace", &key.namespace),
        ] {
            if !(name.is_empty() || is_name(name)) {
                self.refuse(
                    Some(key.clone()),
                    format!("{field} {name:?} is not a name: use lower-case letters, digits, '-' and '.'"),
                );
                return;
            }
        }
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(document, &mut track);
        let value: Result<T, _> =
            serde_ignored::deserialize(tracked, |path| unknown.push(path.to_string()));
        match value {
            Err(error) => {
                self.refuse(
                    Some(key),
                    format!("field {}: {error}; correct the field", track.path()),
                );
            }
            Ok(mut value) => {
                // They have told which object it is; our own types leave them out.
                unknown.retain(|field| !["apiVersion", "kind"].contains(&field.as_str()));
                if !unknown.is_empty() {
                    self.faults.push(Fault::Notice {
                        object: key.to_string(),
                        sentence: unknown_sentence(&unknown),
                    });
                }
                value.meta().namespace = Some(key.namespace.clone());
                let object = value.into();
                match object.fault() {
                    Some(sentence) => self.refuse(Some(key), sentence),
                    None => self.objects.push((key, object)),
                }
            }
        }
    }

    fn refuse(&mut self, key: Option<ObjectKey>, sentence: String) {
        self.faults.push(Fault::Refused { key, sentence });
    }
}

/// One sentence for all unknown fields of an object.
fn unknown_sentence(unknown: &[String]) -> String {
    let named: Vec<_> = unknown
        .iter()
        .take(UNKNOWN_NAMED_MAX)
        .map(|path| path.replace(".?", ""))
        .collect();
    let more = match unknown.len().saturating_sub(UNKNOWN_NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (noun, verb) = if unknown.len() == 1 {
        ("field", "is")
    } else {
        ("fields", "are")
    };
    format!(
        "{noun} {}{more} {verb} unknown and ignored; correct the spelling or remove it",
        named.join(", ")
    )
}

/// What the names of objects may consist of; it also keeps them safe as parts of file names.
fn is_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    let outer = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= NAME_LENGTH_MAX
        && name.bytes().all(inner)
        && outer(name.as_bytes().first())
        && outer(name.as_bytes().last())
}

/// Objects of Kubernetes carry metadata.
trait HasMeta {
    fn meta(&mut self) -> &mut ObjectMeta;
}

macro_rules! object {
    ($($t:ident $get:ident),*) => { $(
        impl HasMeta for $t {
            fn meta(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
        impl From<$t> for Object {
            fn from(value: $t) -> Self {
                Self::$t(Box::new(value))
            }
        }
        impl Object {
            #[doc = concat!("As a ", stringify!($t), ", if it is one.")]
            pub fn $get(&self) -> Option<&$t> {
                let Self::$t(object) = self else { return None };
                Some(object)
            }
        }
    )* };
}
object!(
    Node node,
    Pod pod,
    Service service,
    EndpointSlice endpoint_slice,
    Namespace namespace,
    AddressPool address_pool,
    L2Advertisement l2_advertisement,
    BGPPeer bgp_peer,
    BGPAdvertisement bgp_advertisement,
    NodeDrain node_drain,
    LoadBalancerNode load_balancer_node,
    ServiceTable service_table,
    Secret secret
);

impl Object {
    /// Why it can not be used, of what an API server would have refused.
    fn fault(&self) -> Option<String> {
        match self {
            Self::NodeDrain(drain) => drain.fault(),
            Self::BGPPeer(peer) => peer.spec.fault(),
            Self::BGPAdvertisement(advertisement) => advertisement.spec.fault(),
            Self::Node(_)
            | Self::Pod(_)
            | Self::Service(_)
            | Self::EndpointSlice(_)
            | Self::Serving(_)
            | Self::Namespace(_)
            | Self::AddressPool(_)
            | Self::L2Advertisement(_)
            | Self::LoadBalancerNode(_)
            | Self::ServiceTable(_)
            | Self::Secret(_) => None,
        }
    }

    /// As what an agent keeps of an endpoint slice, if it is that.
    pub fn serving(&self) -> Option<&Serving> {
        let Self::Serving(serving) = self else {
            return None;
        };
        Some(serving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer}\n";

    fn keys(parsed: &Parsed) -> Vec<String> {
        parsed
            .objects
            .iter()
            .map(|(key, _)| key.to_string())
            .collect()
    }

    fn sentences(parsed: &Parsed) -> Vec<String> {
        parsed
            .faults
            .iter()
            .map(|fault| match fault {
                Fault::Refused { key, sentence } => {
                    format!(
                        "{}: {sentence}",
                        key.as_ref().map(ToString::to_string).unwrap_or_default()
                    )
                }
                Fault::Notice { object, sentence } => format!("{object}: {sentence}"),
            })
            .collect()
    }

    #[test]
    fn documents_lists_and_the_default_namespace_are_read() {
        let text = format!(
            "{WEB}---\n---\napiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Node, metadata: {{name: n1}}}}\n\
             - {{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: x}}}}\n---\napiVersion: v1\nkind: \
             ServiceList\nitems: [{{metadata: {{name: api}}}}]\n"
        );
        let parsed = parse(&text).unwrap();
        assert_eq!(
            keys(&parsed),
            [
                "Service default/web",
                "Node n1",
                "Pod x/p",
                "Service default/api"
            ]
        );
        assert_eq!(parsed.faults, []);
    }

    #[test]
    fn broken_yaml_names_the_line() {
        let broken = parse(&format!("{WEB}---\nkind: [\n")).unwrap_err();
        assert!(broken.line >= 6, "{broken}");
        assert!(
            !broken.what.contains('\n') && !broken.what.is_empty(),
            "{broken}"
        );
    }

    #[test]
    fn unknown_fields_are_named_and_the_object_is_used() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {typ: LoadBalancer, ports: [{port: 80, \
                    tagetPort: 8080}]}\n";
        let parsed = parse(text).unwrap();
        assert_eq!(keys(&parsed), ["Service default/web"]);
        assert_eq!(
            sentences(&parsed),
            [
                "Service default/web: fields spec.ports.0.tagetPort, spec.typ are unknown and ignored; correct the \
              spelling or remove it"
            ]
        );
    }

    #[test]
    fn an_object_of_the_wrong_types_is_refused_alone() {
        let text = format!(
            "{WEB}---\napiVersion: v1\nkind: Service\nmetadata: {{name: bad}}\nspec: {{ports: [{{port: x}}]}}\n"
        );
        let parsed = parse(&text).unwrap();
        assert_eq!(keys(&parsed), ["Service default/web"]);
        let sentence = &sentences(&parsed)[0];
        assert!(
            sentence.starts_with("Service default/bad: field spec.ports[0].port: invalid type"),
            "{sentence}"
        );
    }

    #[test]
    fn a_drain_without_a_uid_or_with_a_time_out_of_range_is_refused_with_what_to_change() {
        let drain = |metadata: &str, spec: &str| {
            parse(&format!(
                "apiVersion: bowline.dev/v1alpha1\nkind: NodeDrain\nmetadata: {{name: n1{metadata}}}\nspec: {spec}\n"
            ))
            .unwrap()
        };
        let sound = drain(", uid: u1", "{timeoutSeconds: 60, convergenceSeconds: 0}");
        assert_eq!(keys(&sound), ["NodeDrain n1"]);
        assert_eq!(sentences(&sound), Vec::<String>::new());
        for (metadata, spec, sentence) in [
            ("", "{}", "has no metadata.uid; write one"),
            (", uid: ''", "{}", "has no metadata.uid; write one"),
            (
                ", uid: u1",
                "{timeoutSeconds: 0}",
                "spec.timeoutSeconds must be from 1 to 604800",
            ),
            (
                ", uid: u1",
                "{convergenceSeconds: 3601}",
                "spec.convergenceSeconds must be from 0 to 3600",
            ),
        ] {
            let refused = drain(metadata, spec);
            assert_eq!(refused.objects, []);
            let said = sentences(&refused);
            assert!(
                said[0].starts_with(&format!("NodeDrain n1: {sentence}")),
                "{said:?}"
            );
        }
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: ../../etc/x}\n";
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.objects, []);
        assert!(
            sentences(&parsed)[0].contains("is not a name"),
            "{:?}",
            parsed.faults
        );
    }

    #[test]
    fn what_we_do_not_use_is_said_and_ignored() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\njust text\n---\nmetadata: {}\n";
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.objects, []);
        assert_eq!(parsed.faults.len(), 3, "{:?}", sentences(&parsed));
    }

    #[test]
    fn five_thousand_endpoints_fit() {
        use std::fmt::Write;
        let mut text = String::from(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web}\naddressType: IPv4\nendpoints:\n",
        );
        for n in 0..5_000 {
            writeln!(
                text,
                "- {{addresses: [10.1.{}.{}], conditions: {{ready: true, serving: true}}, nodeName: n1, targetRef: \
                 {{kind: Pod, name: p{n}, uid: u{n}}}}}",
                n / 250,
                n % 250
            )
            .unwrap();
        }
        assert_eq!(parse(&text).unwrap().objects.len(), 1);
    }

    #[test]
    fn nothing_that_is_not_yaml_panics() {
        for text in [
            "\u{0}",
            "%",
            "\t- a",
            "&a [*a]",
            "- - - {",
            "a: !!binary x",
            "{{}}",
            "? [",
            "'",
            "\u{feff}",
        ] {
            let _ = parse(text);
        }
    }
}
