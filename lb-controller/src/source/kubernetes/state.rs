//! How each watch is: whether its list is complete, when it last heard something, and what went wrong last.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use kube::core::Status;
use kube::runtime::watcher;

use super::wanted::Wanted;

/// The state of one watch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Its first list is complete.
    pub listed: bool,
    /// When its list was last complete.
    pub last_list: Option<Timestamp>,
    /// When it last heard of an object.
    pub last_event: Option<Timestamp>,
    /// What went wrong, and what to change, since it last heard something.
    pub error: Option<String>,
}

/// The states of all watches of a process. Written by their tasks, read by whoever tells.
#[derive(Debug)]
pub struct Watches(Mutex<BTreeMap<Wanted, State>>);

impl Watches {
    pub(super) fn new(wanted: &[Wanted]) -> Self {
        let states = wanted
            .iter()
            .map(|wanted| (wanted.clone(), State::default()));
        Self(Mutex::new(states.collect()))
    }

    /// All of them.
    pub fn states(&self) -> BTreeMap<Wanted, State> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Every first list is complete.
    pub fn are_listed(&self) -> bool {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().all(|state| state.listed)
    }

    /// No watch has an error that it has not got over.
    pub fn are_alive(&self) -> bool {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().all(|state| state.error.is_none())
    }

    /// What is wrong, by resource.
    pub fn errors(&self) -> Vec<(Wanted, String)> {
        let states = self.states().into_iter();
        states
            .filter_map(|(wanted, state)| Some((wanted, state.error?)))
            .collect()
    }

    pub(super) fn heard(&self, wanted: &Wanted, listed: bool) {
        self.change(wanted, |state| {
            let now = Timestamp::now();
            state.error = None;
            state.last_event = Some(now);
            if listed {
                state.listed = true;
                state.last_list = Some(now);
            }
        });
    }

    pub(super) fn failed(&self, wanted: &Wanted, sentence: String) {
        self.change(wanted, |state| state.error = Some(sentence));
    }

    fn change(&self, wanted: &Wanted, change: impl FnOnce(&mut State)) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = states.get_mut(wanted) {
            change(state);
        }
    }
}

/// What an error means, and what to change.
pub(super) fn sentence(wanted: &Wanted, error: &watcher::Error) -> String {
    let (verb, status) = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => ("list", Some(&**status)),
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => ("watch", Some(&**status)),
        watcher::Error::InitialListFailed(_) => ("list", None),
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => ("watch", None),
    };
    refusal(verb, wanted.resource(), status).unwrap_or_else(|| {
        let causes = causes(error);
        format!(
            "{verb} of {} is interrupted: {causes}; it is tried again",
            wanted.resource()
        )
    })
}

/// The sentence for what an administrator must change: permissions and missing definitions.
pub(crate) fn refusal(verb: &str, resource: &str, status: Option<&Status>) -> Option<String> {
    match status?.code {
        401 => Some(format!(
            "the API server does not know us (verb {verb} on {resource}); renew the token or the kubeconfig"
        )),
        403 => Some(format!(
            "permission is missing: verb {verb} on {resource}; add it to the role of this service account"
        )),
        404 if resource.ends_with("bowline.dev") => Some(format!(
            "the definition of {resource} is missing; apply deploy/crds to the cluster"
        )),
        _ => None,
    }
}

/// An error and its causes in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // kube prints its causes itself, in part.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Whether the server does not know streamed lists.
pub(super) fn is_no_streaming(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == 422 && status.message.contains("sendInitialEvents")
        }
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16) -> watcher::Error {
        let status = Status::failure("no", "Reason").with_code(code);
        watcher::Error::WatchStartFailed(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn a_missing_permission_names_verb_and_resource() {
        assert_eq!(
            sentence(&Wanted::EndpointSlices, &refused(403)),
            "permission is missing: verb watch on endpointslices.discovery.k8s.io; add it to the role of this service account"
        );
    }

    #[test]
    fn a_missing_definition_is_named() {
        assert_eq!(
            sentence(&Wanted::AddressPools, &refused(404)),
            "the definition of addresspools.bowline.dev is missing; apply deploy/crds to the cluster"
        );
    }

    #[test]
    fn an_error_lasts_until_something_is_heard() {
        let watches = Watches::new(&[Wanted::Nodes]);
        assert!(!watches.are_listed() && watches.are_alive());
        watches.failed(&Wanted::Nodes, "gone".into());
        assert_eq!(watches.errors(), [(Wanted::Nodes, "gone".to_owned())]);
        watches.heard(&Wanted::Nodes, true);
        assert!(watches.are_listed() && watches.are_alive());
    }
}
