//! What each file held when it was last sound, and so what the directory as a whole says. No I/O: contents are given.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::index::Index;
use super::parse::{Fault, Kind, Object, ObjectKey, parse};
use crate::admin::Problem;

/// What reading a file gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Its text.
    Text(String),
    /// It is not there (any more).
    Gone,
    /// It is there, but can not be read: why, and what to change.
    Unreadable(String),
}

/// A file of the directory.
#[derive(Default, Debug)]
struct File {
    /// Its objects when it was last sound.
    objects: BTreeMap<ObjectKey, Object>,
    /// What is wrong with it now.
    problems: Vec<Problem>,
    /// It was never sound: what it defines is unknown.
    never_sound: bool,
    /// Objects that were refused and have no last good form.
    unknown: BTreeSet<ObjectKey>,
}

/// What may exist though it is not in the index. Nothing, for a source that understands all it reads.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Unknown {
    /// Any object may.
    pub everything: bool,
    /// These may.
    pub objects: BTreeSet<ObjectKey>,
}

impl Unknown {
    /// No Pod and no Node is unknown: one that is not in the index does not exist. Until then nobody may be declared dead.
    pub fn complete(&self) -> bool {
        let lives = |key: &ObjectKey| matches!(key.kind, Kind::Pod | Kind::Node);
        !(self.everything || self.objects.iter().any(lives))
    }

    /// Whether an object that is not in the index may exist all the same.
    pub fn may_exist(&self, key: &ObjectKey) -> bool {
        self.everything || self.objects.contains(key)
    }
}

/// All files of the directory.
#[derive(Default, Debug)]
pub struct Files {
    by_name: BTreeMap<String, File>,
    /// Objects of this kind are not taken from here.
    left_out: Option<Kind>,
    /// Files by object; the first defines it.
    definitions: BTreeMap<ObjectKey, BTreeSet<String>>,
}

impl Files {
    /// No files yet; objects of one kind will come from elsewhere.
    pub fn without(kind: Kind) -> Self {
        Self {
            left_out: Some(kind),
            ..Self::default()
        }
    }

    /// Takes in the new content of a file and brings the index in line. Says whether the index changed.
    pub fn update(&mut self, name: &str, content: &Content, index: &mut Index) -> bool {
        let before = self.by_name.remove(name);
        let after = match content {
            Content::Gone => None,
            Content::Unreadable(sentence) => Some(kept(name, before.as_ref(), sentence)),
            Content::Text(text) => Some(match parse(text) {
                Ok(mut parsed) => {
                    let is_left_out = |key: &ObjectKey| self.left_out == Some(key.kind);
                    parsed.objects.retain(|(key, _)| !is_left_out(key));
                    sound(name, before.as_ref(), parsed.objects, parsed.faults)
                }
                Err(broken) => kept(
                    name,
                    before.as_ref(),
                    &format!("{broken}; correct the YAML"),
                ),
            }),
        };
        let mut touched: BTreeSet<ObjectKey> = BTreeSet::new();
        for key in before.iter().flat_map(|file| file.objects.keys()) {
            if let Some(names) = self.definitions.get_mut(key) {
                names.remove(name);
            }
            touched.insert(key.clone());
        }
        for key in after.iter().flat_map(|file| file.objects.keys()) {
            self.definitions
                .entry(key.clone())
                .or_default()
                .insert(name.to_owned());
            touched.insert(key.clone());
        }
        if let Some(file) = after {
            self.by_name.insert(name.to_owned(), file);
        }
        let mut changed = false;
        for key in touched {
            changed |= self.settle(key, index);
        }
        changed
    }

    /// Brings one object of the index in line with the files that define it.
    fn settle(&mut self, key: ObjectKey, index: &mut Index) -> bool {
        let definition = self.definitions.get(&key).and_then(BTreeSet::first);
        let object = definition.and_then(|name| self.by_name.get(name)?.objects.get(&key));
        if let Some(object) = object {
            return index.apply(key, object.clone());
        }
        self.definitions.remove(&key);
        index.delete(&key)
    }

    /// Names of the files that are there.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    /// What may exist though it is in no file that can be understood.
    pub fn unknown(&self) -> Unknown {
        let files = self.by_name.values();
        Unknown {
            everything: files.clone().any(|file| file.never_sound),
            objects: files
                .flat_map(|file| file.unknown.iter().cloned())
                .collect(),
        }
    }

    /// See [`Unknown::complete`].
    pub fn complete(&self) -> bool {
        self.unknown().complete()
    }

    /// What is wrong, by file, then objects that several files define.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> = self
            .by_name
            .values()
            .flat_map(|file| file.problems.iter().cloned())
            .collect();
        for (key, names) in self.definitions.iter().filter(|(_, names)| names.len() > 1) {
            let mut names = names.iter();
            let first = names.next().cloned().unwrap_or_default();
            let others: Vec<_> = names.map(String::as_str).collect();
            problems.push(Problem {
                object: key.to_string(),
                sentence: format!(
                    "is in {first}, which is used, and also in {}; remove all but one",
                    others.join(", ")
                ),
            });
        }
        problems
    }
}

/// A file whose text says nothing: what it held stays.
fn kept(name: &str, before: Option<&File>, sentence: &str) -> File {
    let (objects, never_sound, unknown) = before
        .map_or((BTreeMap::new(), true, BTreeSet::new()), |file| {
            (file.objects.clone(), file.never_sound, file.unknown.clone())
        });
    let effect = if objects.is_empty() {
        "nothing of it is used"
    } else {
        "its last good objects stay in use"
    };
    File {
        objects,
        problems: vec![Problem {
            object: format!("file {name}"),
            sentence: format!("{sentence}; until then {effect}"),
        }],
        never_sound,
        unknown,
    }
}

/// A file whose text is YAML.
fn sound(
    name: &str,
    before: Option<&File>,
    objects: Vec<(ObjectKey, Object)>,
    faults: Vec<Fault>,
) -> File {
    let mut file = File::default();
    for (key, object) in objects {
        match file.objects.entry(key) {
            Entry::Vacant(entry) => _ = entry.insert(object),
            Entry::Occupied(entry) => file.problems.push(Problem {
                object: entry.key().to_string(),
                sentence: format!("is twice in {name}; the first is used, remove the other"),
            }),
        }
    }
    for fault in faults {
        let problem = match fault {
            Fault::Notice { object, sentence } => Problem {
                object,
                sentence: format!("{sentence} ({name})"),
            },
            Fault::Refused {
                key: None,
                sentence,
            } => Problem {
                object: format!("file {name}"),
                sentence,
            },
            Fault::Refused {
                key: Some(key),
                sentence,
            } => {
                let problem = Problem {
                    object: key.to_string(),
                    sentence: format!("{sentence} ({name})"),
                };
                match before.and_then(|file| file.objects.get(&key)) {
                    Some(last) => _ = file.objects.entry(key).or_insert_with(|| last.clone()),
                    None => _ = file.unknown.insert(key),
                }
                problem
            }
        };
        file.problems.push(problem);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::node_drain::Phase;
    use proptest::prelude::*;

    fn service(name: &str, ip: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{loadBalancerIP: {ip}}}\n---\n"
        )
    }

    fn text(text: impl Into<String>) -> Content {
        Content::Text(text.into())
    }

    fn addresses(index: &Index) -> Vec<(String, String)> {
        index
            .services()
            .map(|s| {
                let ip = s
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.load_balancer_ip.clone());
                (
                    s.metadata.name.clone().unwrap_or_default(),
                    ip.unwrap_or_default(),
                )
            })
            .collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn broken_yaml_keeps_the_last_good_objects_of_its_file_only() {
        let (mut files, mut index) = (Files::default(), Index::default());
        files.update("a.yaml", &text(service("a", "192.0.2.1")), &mut index);
        files.update("b.yaml", &text(service("b", "192.0.2.2")), &mut index);
        index.take_changed();
        assert!(!files.update("a.yaml", &text("kind: [\n"), &mut index));
        assert!(files.update("b.yaml", &text(service("b", "192.0.2.3")), &mut index));
        assert_eq!(
            addresses(&index),
            pairs(&[("a", "192.0.2.1"), ("b", "192.0.2.3")])
        );
        let problems = files.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].object, "file a.yaml");
        assert!(
            problems[0].sentence.starts_with("line "),
            "{}",
            problems[0].sentence
        );
        assert!(
            problems[0]
                .sentence
                .ends_with("its last good objects stay in use"),
            "{}",
            problems[0].sentence
        );
        assert!(files.complete());
        files.update("a.yaml", &text(service("a", "192.0.2.1")), &mut index);
        assert_eq!(files.problems(), []);
    }

    #[test]
    fn a_file_that_was_never_sound_leaves_deaths_uncertain() {
        let (mut files, mut index) = (Files::default(), Index::default());
        files.update("a.yaml", &text("kind: ["), &mut index);
        assert!(!files.complete());
        files.update("a.yaml", &Content::Gone, &mut index);
        assert!(files.complete());
    }

    #[test]
    fn an_unreadable_file_keeps_its_objects_and_a_deleted_one_does_not() {
        let (mut files, mut index) = (Files::default(), Index::default());
        files.update("a.yaml", &text(service("a", "192.0.2.1")), &mut index);
        assert!(!files.update(
            "a.yaml",
            &Content::Unreadable("may not be read; make it readable".into()),
            &mut index
        ));
        assert_eq!(addresses(&index), pairs(&[("a", "192.0.2.1")]));
        assert!(files.update("a.yaml", &Content::Gone, &mut index));
        assert_eq!(index, Index::default());
        assert_eq!(files.problems(), []);
    }

    #[test]
    fn a_refused_object_keeps_its_last_good_form() {
        let (mut files, mut index) = (Files::default(), Index::default());
        files.update(
            "a.yaml",
            &text(service("a", "192.0.2.1") + &service("b", "192.0.2.2")),
            &mut index,
        );
        files.update(
            "a.yaml",
            &text(service("a", "[]") + &service("b", "192.0.2.4")),
            &mut index,
        );
        assert_eq!(
            addresses(&index),
            pairs(&[("a", "192.0.2.1"), ("b", "192.0.2.4")])
        );
        assert_eq!(files.problems().len(), 1);
    }

    #[test]
    fn the_first_of_two_definitions_is_used_until_it_goes() {
        let (mut files, mut index) = (Files::default(), Index::default());
        files.update("b.yaml", &text(service("a", "192.0.2.2")), &mut index);
        files.update("a.yaml", &text(service("a", "192.0.2.1")), &mut index);
        assert_eq!(addresses(&index), pairs(&[("a", "192.0.2.1")]));
        assert_eq!(
            files.problems()[0].sentence,
            "is in a.yaml, which is used, and also in b.yaml; remove all but one"
        );
        files.update("a.yaml", &Content::Gone, &mut index);
        assert_eq!(addresses(&index), pairs(&[("a", "192.0.2.2")]));
        files.update(
            "b.yaml",
            &text(service("a", "192.0.2.2") + &service("a", "192.0.2.9")),
            &mut index,
        );
        assert_eq!(addresses(&index), pairs(&[("a", "192.0.2.2")]));
        assert!(
            files.problems()[0]
                .sentence
                .starts_with("is twice in b.yaml")
        );
    }

    /// As an agent has it: wishes are in files of users, what they have come to in those that the manager writes.
    #[test]
    fn a_wish_that_is_left_out_never_hides_what_a_drain_has_come_to() {
        let mut users = Files::without(Kind::NodeDrain);
        let (mut told, mut index) = (Files::default(), Index::default());
        let drain = |rest: &str| {
            text(format!(
                "apiVersion: bowline.dev/v1alpha1\nkind: NodeDrain\nmetadata: {{name: n1, uid: u1}}\nspec: {{}}\n{rest}"
            ))
        };
        let phase = |index: &Index| Some(index.drain("n1")?.status.as_ref()?.phase);
        assert!(!users.update("a.yaml", &drain(""), &mut index));
        assert_eq!(index.drains().count(), 0);
        assert!(told.update("n1.yaml", &drain("status: {phase: HandOff}\n"), &mut index));
        assert_eq!(phase(&index), Some(Phase::HandOff));
        assert!(index.take_changed().kinds.contains(&Kind::NodeDrain));
        for wish in [drain("status: {phase: Failed}\n"), Content::Gone] {
            assert!(!users.update("a.yaml", &wish, &mut index));
            assert_eq!(phase(&index), Some(Phase::HandOff));
        }
        assert_eq!(users.problems(), []);
        assert!(told.update("n1.yaml", &Content::Gone, &mut index));
        assert_eq!(index.drain("n1"), None);
    }

    #[test]
    fn a_change_of_a_pod_or_slice_concerns_the_services_that_use_it() {
        let (mut files, mut index) = (Files::default(), Index::default());
        let pod = |uid: &str| {
            text(format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, uid: {uid}}}\n"
            ))
        };
        let slice = |service: &str| {
            text(format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: s, labels: \
                 {{kubernetes.io/service-name: {service}}}}}\nendpoints: [{{addresses: [10.0.0.1], targetRef: {{kind: \
                 Pod, name: p}}}}]\n"
            ))
        };
        let names = |index: &mut Index| -> Vec<_> {
            index
                .take_changed()
                .services
                .into_iter()
                .map(|named| named.name)
                .collect()
        };
        files.update("p.yaml", &pod("u1"), &mut index);
        assert_eq!(names(&mut index), Vec::<String>::new());
        files.update("s.yaml", &slice("web"), &mut index);
        assert_eq!(names(&mut index), ["web"]);
        files.update("p.yaml", &pod("u2"), &mut index);
        assert_eq!(names(&mut index), ["web"]);
        files.update("s.yaml", &slice("api"), &mut index);
        assert_eq!(names(&mut index), ["api", "web"]);
        files.update("s.yaml", &Content::Gone, &mut index);
        assert_eq!(names(&mut index), ["api"]);
        files.update("p.yaml", &Content::Gone, &mut index);
        assert_eq!(index, Index::default());
    }

    /// One step: a file gets one of several contents.
    fn step() -> impl Strategy<Value = (String, Content)> {
        let object = prop_oneof![
            (0..3, 1..4).prop_map(|(name, ip)| service(&format!("s{name}"), &format!("192.0.2.{ip}"))),
            (0..3).prop_map(|name| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p{name}, uid: u{name}}}\n---\n")),
            (0..3, 0..3, 0..3).prop_map(|(name, service, pod)| format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: e{name}, \
                 labels: {{kubernetes.io/service-name: s{service}}}}}\nendpoints: [{{addresses: [10.0.0.1], targetRef: \
                 {{kind: Pod, name: p{pod}}}}}]\n---\n"
            )),
        ];
        let content = prop_oneof![
            4 => proptest::collection::vec(object, 0..4).prop_map(|objects| text(objects.concat())),
            1 => Just(Content::Gone),
        ];
        ((0..4).prop_map(|n| format!("f{n}.yaml")), content)
    }

    proptest! {
        /// However the directory came to be what it is, and in whatever order its files are read: the same index.
        #[test]
        fn the_index_depends_on_the_last_contents_only(
            steps in proptest::collection::vec(step(), 0..24), reverse in any::<bool>(),
        ) {
            let (mut files, mut index) = (Files::default(), Index::default());
            let mut last = BTreeMap::new();
            for (name, content) in &steps {
                files.update(name, content, &mut index);
                last.insert(name.clone(), content.clone());
            }
            let mut order: Vec<_> = last.iter().collect();
            if reverse {
                order.reverse();
            }
            let (mut fresh_files, mut fresh) = (Files::default(), Index::default());
            for (name, content) in order {
                fresh_files.update(name, content, &mut fresh);
            }
            prop_assert_eq!(&index, &fresh);
            prop_assert_eq!(files.problems(), fresh_files.problems());

            let objects = index.objects();
            let mut again = Index::default();
            prop_assert_eq!(again.reset(objects.clone()), !objects.is_empty());
            prop_assert_eq!(&again, &index);
            prop_assert!(!again.reset(objects));
        }
    }
}
