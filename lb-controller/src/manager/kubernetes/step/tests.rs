//! A tiny API server in plain values: whatever happens on the way, the steps lead to what is wanted.

use super::*;
use crate::api::file::{API_VERSION, Metadata};

fn service(spec: &str) -> k8s::Service {
    serde_saphyr::from_str(&format!(
        "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7'}}\nspec: {spec}"
    ))
    .unwrap()
}

const OURS: &str = "{type: LoadBalancer, loadBalancerClass: bowline.dev/xdp}";

fn wanted() -> Wanted<'static> {
    Wanted::This {
        table: Some(Box::leak(Box::new(ServiceTableSpec {
            service_uid: "u1".into(),
            version: 1,
            ..ServiceTableSpec::default()
        }))),
        status: Box::leak(Box::new(ServiceStatus {
            api_version: API_VERSION.into(),
            kind: "ServiceStatus".into(),
            metadata: Metadata {
                namespace: Some("shop".into()),
                name: "web".into(),
            },
            vips: vec!["198.51.100.1".parse().unwrap()],
            conditions: vec![crate::api::file::Condition {
                kind: condition::PROGRAMMED.into(),
                status: ConditionStatus::True,
                reason: "TableWritten".into(),
                message: "done".into(),
                last_transition_time: jiff::Timestamp::UNIX_EPOCH,
            }],
            problems: vec![],
        })),
    }
}

/// What an API server would do with a step. Gives its name.
fn apply(
    step: Step,
    service: &mut Option<k8s::Service>,
    table: &mut Option<ServiceTable>,
) -> String {
    let merge = |patch: &Value, service: &mut k8s::Service| {
        if let Some(finalizers) = patch["metadata"].get("finalizers") {
            service.metadata.finalizers = serde_json::from_value(finalizers.clone()).unwrap();
        }
        if let Some(status) = patch.get("status") {
            service.status = Some(serde_json::from_value(status.clone()).unwrap());
        }
    };
    match step {
        Step::AddFinalizer(patch) => {
            merge(&patch, service.as_mut().unwrap());
            "finalizer".into()
        }
        Step::RemoveFinalizer(patch) => {
            merge(&patch, service.as_mut().unwrap());
            if service
                .as_ref()
                .unwrap()
                .metadata
                .deletion_timestamp
                .is_some()
            {
                *service = None;
            }
            "no finalizer".into()
        }
        Step::Status { patch, told } => {
            merge(&patch, service.as_mut().unwrap());
            format!("{told:?}")
        }
        Step::CreateTable(new) => {
            *table = Some(*new);
            "create".into()
        }
        Step::ReplaceTable(new) => {
            *table = Some(*new);
            "replace".into()
        }
        Step::DeleteTable => {
            let meta = &mut table.as_mut().unwrap().metadata;
            meta.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
            "delete".into()
        }
        Step::ReleaseTable(_) => {
            *table = None;
            "release".into()
        }
    }
}

fn run(
    wanted: Wanted<'_>,
    service: &mut Option<k8s::Service>,
    table: &mut Option<ServiceTable>,
) -> Vec<String> {
    let mut steps = Vec::new();
    while let Some(step) = next(wanted, service.as_ref(), table.as_ref()) {
        steps.push(apply(step, service, table));
        assert!(steps.len() < 20, "it never ends: {steps:?}");
    }
    steps
}

#[test]
fn the_finalizer_is_first_and_the_status_last_and_all_is_taken_away_again() {
    let (mut service, mut table) = (Some(service(OURS)), None);
    let steps = run(wanted(), &mut service, &mut table);
    assert_eq!(steps, ["finalizer", "create", "Ensured(\"198.51.100.1\")"]);
    let ingress = &addresses(service.as_ref().unwrap())[0];
    assert_eq!(
        (ingress.ip.as_deref(), ingress.ip_mode.as_deref()),
        (Some("198.51.100.1"), Some("VIP"))
    );
    service.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(
        run(Wanted::Nothing, &mut service, &mut table),
        ["delete", "release", "Deleting", "no finalizer"]
    );
    assert_eq!((service, table), (None, None));
}

#[test]
fn another_type_loses_address_finalizer_and_conditions() {
    let (mut service, mut table) = (Some(service(OURS)), None);
    run(wanted(), &mut service, &mut table);
    let spec = service.as_mut().unwrap().spec.as_mut().unwrap();
    spec.type_ = Some("ClusterIP".into());
    spec.load_balancer_class = None;
    let steps = run(Wanted::Nothing, &mut service, &mut table);
    assert_eq!(
        steps,
        ["delete", "release", "Deleting", "no finalizer", "Nothing"]
    );
    let left = service.unwrap();
    assert_eq!(addresses(&left), []);
    assert_eq!(left.metadata.finalizers, Some(vec![]));
    assert_eq!(left.status.unwrap().conditions, Some(vec![]));
}

#[test]
fn what_somebody_else_undoes_is_done_again() {
    let (mut service, mut table) = (Some(service(OURS)), None);
    run(wanted(), &mut service, &mut table);
    let object = service.as_mut().unwrap();
    object.metadata.finalizers = None;
    object.status = None;
    table.as_mut().unwrap().spec.version = 99;
    table.as_mut().unwrap().metadata.finalizers = None;
    let steps = run(wanted(), &mut service, &mut table);
    assert_eq!(steps, ["finalizer", "replace", "Ensured(\"198.51.100.1\")"]);
    assert_eq!(
        run(wanted(), &mut service, &mut table),
        Vec::<String>::new()
    );
}

#[test]
fn a_foreign_class_is_not_touched_whatever_it_carries() {
    let (mut ours, mut table) = (Some(service(OURS)), None);
    run(wanted(), &mut ours, &mut table);
    for class in [
        "{type: LoadBalancer, loadBalancerClass: example.com/other}",
        "{type: LoadBalancer}",
    ] {
        let mut foreign = service(class);
        foreign.metadata.finalizers = Some(vec![SERVICE_FINALIZER.into()]);
        foreign.status.clone_from(&ours.as_ref().unwrap().status);
        assert_eq!(next(Wanted::Nothing, Some(&foreign), None), None);
    }
    let plain = service("{type: ClusterIP}");
    assert_eq!(next(Wanted::Nothing, Some(&plain), None), None);
}
