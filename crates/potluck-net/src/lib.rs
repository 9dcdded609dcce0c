//! Peers on a network: endpoints, connections, hop drivers.
