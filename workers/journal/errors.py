"""What can be wrong with a journal, or with the moment that was asked for.

`damage` errors concern stored objects: what lies before them can still be restored. Selector errors
carry the nearest valid choices in their hint.
"""

from __future__ import annotations

from host_agent.wire.errors import HoldfastError


class JournalError(HoldfastError):
    """Base of everything that the journal's reader may find."""

    code = "journal_error"


class NoSuchStream(JournalError):
    """The store holds no journal under that name."""

    code = "no_such_stream"


class AmbiguousStream(JournalError):
    """Several streams fit, and only one can be restored at a time."""

    code = "ambiguous_stream"


class JournalDamaged(JournalError):
    """An object of the chain is damaged, replaced or contradicts the rest. `place` says where."""

    code = "journal_damaged"

    def __init__(self, place: int, message: str, *, hint: str = "") -> None:
        super().__init__(
            message,
            hint=hint
            or "Moments before it are not affected: name one of them, or bring the object back.",
        )
        self.place = place


class SegmentLost(JournalDamaged):
    """A segment is missing although later ones are there."""

    code = "segment_lost"


class JournalCut(JournalDamaged):
    """The chain ends earlier than what was stated to be stored."""

    code = "journal_cut"


class KeyObjectLost(JournalDamaged):
    """The wrapped data key of a generation is missing or damaged."""

    code = "key_object_lost"


class PayloadDamaged(JournalDamaged):
    """The data of a frame does not match its seal or its checksums."""

    code = "payload_damaged"


class IndexDamaged(JournalError):
    """An index object is damaged. Nothing is lost: segments are read in its place."""

    code = "index_damaged"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"The index object {name} cannot be used: {why}",
            hint="Remove it; `holdfast journal index` makes it again.",
        )


class UnknownBase(JournalError):
    """A generation continues one that the journal does not hold, and did not read everything
    anew."""

    code = "unknown_base"


class HandedOver(JournalError):
    """Part of the disk's history is in another stream."""

    code = "handed_over"


class SpoolFull(JournalError):
    """No room for the reader's temporary files."""

    code = "temporary_space_full"


class SelectorError(JournalError):
    """Base: the moment that was asked for cannot be given."""

    code = "bad_selector"


class BadSelector(SelectorError):
    """The text is no selector."""


class AmbiguousSelector(SelectorError):
    """A bare word or a tag that fits more than one moment."""

    code = "ambiguous_selector"


class NoSuchCheckpoint(SelectorError):
    """No checkpoint of that id or tag can be restored."""

    code = "no_such_checkpoint"


class NothingToRestore(SelectorError):
    """The journal holds no moment that could be chosen."""

    code = "nothing_to_restore"


class NotStored(SelectorError):
    """The position lies beyond what the journal holds."""

    code = "not_stored"


class InsideSync(SelectorError):
    """Nothing between the beginning and the end of a sync is a moment that the disk ever had."""

    code = "inside_sync"


class InsideRequest(SelectorError):
    """The position lies between the pieces of one write."""

    code = "inside_request"


class BeforeHistory(SelectorError):
    """The time lies before the first moment that can be restored."""

    code = "before_history"


class BoundaryDamaged(JournalError):
    """A boundary cannot be used: nothing can be said of where the journal begins."""

    code = "boundary_damaged"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"The boundary {name} cannot be used: {why}",
            hint="Bring that object back from a copy of the store.",
        )


class LayerDamaged(JournalDamaged):
    """An object of the layers that stand for the journal's beginning is missing or damaged."""

    code = "layer_damaged"

    def __init__(self, name: str, why: str, place: int = 0) -> None:
        super().__init__(
            place,
            f"The layers' object {name} cannot be used: {why}",
            hint="Bring that object back from a copy of the store.",
        )


class JournalMoved(JournalError):
    """What is read was given up meanwhile: newer layers stand for it."""

    code = "journal_moved"

    def __init__(self, message: str) -> None:
        super().__init__(
            message, hint="Open the journal again; it plans by its newest layers.", retryable=True
        )


class MomentGone(SelectorError):
    """The moment lies before the history that is kept."""

    code = "moment_gone"
