//! Real Kubernetes on one machine, for tests and demonstrations.
