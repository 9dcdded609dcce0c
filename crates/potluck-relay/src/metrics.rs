//! What a relay counts beyond what the protocol's own library does.

use iroh_metrics::{Counter, Gauge, MetricsGroup};

/// Who was let in, and who was not.
#[derive(Debug, Default, MetricsGroup)]
#[metrics(name = "potluck_relay")]
pub(crate) struct AccessMetrics {
    /// Connections of members that were let in.
    pub(crate) members: Counter,
    /// Connections that were let in by an invitation.
    pub(crate) invited: Counter,
    /// Connections refused: no grant, or none that holds.
    pub(crate) refused: Counter,
    /// Connections refused: as many as there is room for are there.
    pub(crate) full: Counter,
    /// Connections refused: the day's bytes are used up.
    pub(crate) spent: Counter,
    /// Connections ended: the grant is over, or was taken back.
    pub(crate) put_out: Counter,
    /// Connections that are there.
    pub(crate) connections: Gauge,
    /// Bytes passed on in this UTC day.
    pub(crate) bytes_today: Gauge,
}
