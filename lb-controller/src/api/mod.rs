//! Objects of our own, group `bowline.dev/v1alpha1`: as Kubernetes stores them, and as files of a manifest directory.
//! Types only; rules about them are in [`crate::model`].

pub mod file;
pub mod service_table;
