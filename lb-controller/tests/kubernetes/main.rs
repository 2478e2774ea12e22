//! The manager against a real API server, as its own service account with the rights that `deploy/kustomize` gives it.
//! One control plane for all, each test in a namespace of its own; each shows a row of the contract with Kubernetes.

mod addresses;
mod advertisements;
mod mistakes;
mod permissions;
mod services;
mod trouble;
mod world;

use self::world::World;

/// All rows, one after the other where they disturb the others, else at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_with_kubernetes_holds() {
    let mut world = World::start().await;
    services::a_service_gets_an_address_a_table_events_and_loses_all_with_its_end(&world).await;
    tokio::join!(
        services::another_class_is_not_touched(&world),
        services::a_type_change_releases_and_allocates_anew(&world),
        addresses::requested_addresses(&world),
        addresses::sharing(&world),
        addresses::families(&world),
        mistakes::what_others_undo_is_done_again(&world),
        services::a_service_of_the_same_name_is_another_one(&world),
        mistakes::bad_input_never_stops_others(&world),
        services::ports_change_and_the_address_stays(&world),
        services::slices_of_any_manager_are_merged(&world),
        services::weights_and_addresses_that_are_not_ready(&world),
        mistakes::five_thousand_endpoints(&world),
    );
    addresses::pools_that_shrink_and_pools_that_are_wrong(&world).await;
    advertisements::wrong_ones_say_why_and_since_when(&world).await;
    permissions::writes(&mut world).await;
    trouble::a_restart_changes_nothing(&mut world).await;
    trouble::the_secret_is_made(&world).await;
    trouble::what_is_done_while_no_manager_runs(&mut world).await;
    trouble::two_managers_and_one_writes(&mut world).await;
    trouble::an_api_server_that_goes_away_and_forgets(&mut world).await;
}
