//! The list of all causes. A new one is a file (or a constant in a family's file) and one name here.

use crate::engine::diagnose::Cause;

mod facts;

macro_rules! causes {
    ($($family:ident: $($cause:ident),+ $(,)?;)+) => {
        $(mod $family;)+
        /// Every cause, in the order of the documentation.
        pub static ALL: &[&Cause] = &[$($(&$family::$cause),+),+];
    };
}

causes! {
    refused: NO_LISTENER, LISTENER_RESTARTING, LISTENER_DIED, LISTENER_ELSEWHERE, DESTINATION_TRANSLATED,
        REFUSED_REMOTELY;
    outdated: ADDRESS_OUTDATED;
    firewall: FIREWALL_RESET, FIREWALL_RESET_MIDSTREAM, FIREWALL_PORT_UNREACHABLE;
    unreachable: NEIGHBOUR_SILENT, ROUTE_MISSING, ROUTE_FORBIDS, DESTINATION_INVALID,
        ICMP_UNREACHABLE, ICMP_PROHIBITED, TTL_EXCEEDED;
    unanswered: SYN_UNANSWERED, PACKET_DROPPED_LOCALLY, ACCEPT_QUEUE_FULL;
    handshake: SLOW_HANDSHAKE, HANDSHAKE_HALF_OPEN, ACCEPT_QUEUE_RESET;
    slow: NEVER_ACCEPTED, BACKEND_SLOW, PATH_LOST, RESPONSE_STALLED;
    keepalive: KEEPALIVE_RACE;
    stopped: BACKEND_STOPPED, BACKEND_NOT_READING;
    starved: WORKER_STARVED;
    backend: BACKEND_DIED, BACKEND_RESTARTING;
    closed: CLOSED_UNREAD, CLOSED_ABORTIVELY, CLOSED_ON_ACCEPT, CLOSED_WITHOUT_RESPONSE, CLOSED_MID_RESPONSE,
        RESPONSE_UNREAD, RESET_REMOTELY, CLOSED_REMOTELY;
    destroyed: SOCKET_DESTROYED;
    answer: HEADER_TOO_BIG, HEADER_INVALID;
    tls: TLS_FAILED, TLS_SILENT, PROTOCOL_MISMATCH;
    names: NAME_NOT_FOUND, RESOLVER_FAILED, RESOLVER_REFUSED, RESOLVER_SILENT, RESOLVER_UNREACHABLE,
        RESOLVER_UNDEFINED;
    limits: PORTS_EXHAUSTED, SOURCE_ADDRESS_MISSING, SOURCE_ADDRESS_IN_USE, FAMILY_DISABLED, FD_LIMIT,
        WORKER_CONNECTIONS;
    selinux: SELINUX_DENIED;
    denied: CGROUP_DENIED, SECURITY_MODULE_DENIED;
    unix: UNIX_MISSING, UNIX_PERMISSION, UNIX_STALE_SOCKET, UNIX_REPLACED, UNIX_NOT_LISTENING, UNIX_BACKLOG_FULL,
        UNIX_WRONG_TYPE;
    balancer: NO_LIVE_UPSTREAMS, CLIENT_CLOSED, WORKER_DIED, WORKER_SHUTDOWN;
    unknown: UNKNOWN;
}

pub use unknown::nothing_stands;

/// The cause with this id.
#[must_use]
pub fn find(id: &str) -> Option<&'static Cause> {
    ALL.iter().copied().find(|cause| cause.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::diagnose::explains;

    #[test]
    fn ids_are_unique_and_every_reference_exists() {
        for (index, cause) in ALL.iter().enumerate() {
            assert!(
                ALL[index + 1..].iter().all(|other| other.id != cause.id),
                "{} is there twice",
                cause.id
            );
            for id in cause.explains.iter().chain(cause.look_alikes) {
                assert!(
                    find(id).is_some(),
                    "{} refers to {id}, which is no cause",
                    cause.id
                );
            }
        }
    }

    #[test]
    fn no_cause_explains_itself() {
        for cause in ALL {
            assert!(
                !explains(cause, cause.id),
                "{} explains itself through others",
                cause.id
            );
        }
    }
}
