"""What ends a connection, or a stream."""

from __future__ import annotations

from host_agent.wire.errors import HoldfastError
from host_agent.wire.message import Close


class TapGone(HoldfastError):
    """The connection to the tap ended: it stopped, or gave the stream to another opener."""

    code = "tap_gone"


class NotAttached(HoldfastError):
    """The tap knows no disk of this group."""

    code = "not_attached"


class StreamTaken(HoldfastError):
    """Another process of this host opened the stream."""

    code = "replaced"


class RingDamaged(HoldfastError):
    """The ring's bytes contradict its description or their checksums."""

    code = "ring_damaged"


class RingChanged(HoldfastError):
    """The tap works with another generation than the one that was opened."""

    code = "ring_changed"


class LinkLost(HoldfastError):
    """The connection to ingest could not be made, broke, or went silent."""

    code = "connection_lost"


class CertificateRefused(HoldfastError):
    """One side did not accept the other's certificate."""

    code = "certificate_refused"


class PeerClosed(HoldfastError):
    """Ingest ended the connection and said why."""

    code = "closed_by_ingest"

    def __init__(self, close: Close) -> None:
        super().__init__(close.message, hint=close.hint, retryable=close.retry_seconds is not None)
        self.close = close
        self.code = close.code


class JournalDiffers(HoldfastError):
    """The journal does not hold what this ring says it recorded."""

    code = "journal_differs"


class StoredDiffers(HoldfastError):
    """A confirmation names another record hash than ours: nothing is freed on its word."""

    code = "stored_differs"


class DataKeyMissing(HoldfastError):
    """The ring's generation was used before, but its data key is not here."""

    code = "data_key_missing"


class StreamPaused(HoldfastError):
    """Somebody paused the stream."""

    code = "paused"


class ReadbackFailed(HoldfastError):
    """Ingest did not give back what a comparison needs. Everything is sent instead."""

    code = "readback_failed"


class NotComparable(HoldfastError):
    """What the journal holds of a disk is not known, so that everything is sent."""

    code = "not_comparable"


class SpoolFailed(HoldfastError):
    """The spool's disk refused something: it takes nothing more in this run."""

    code = "spool_failed"


class SpoolFull(HoldfastError):
    """The spool has no room. The ring fills, and the stream becomes dirty."""

    code = "spool_full"
