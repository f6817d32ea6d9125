"""What can go wrong between the agent and a hypervisor."""

from __future__ import annotations

from host_agent.wire.errors import HoldfastError


class QmpGone(HoldfastError):
    """Nobody answers at a QMP socket, or the connection ended."""

    code = "qmp_gone"


class QmpRefused(HoldfastError):
    """QEMU answered a command with an error; `reason` is QEMU's own sentence."""

    code = "qmp_refused"

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"QEMU refused {command}: {reason}", hint="See QEMU's log.")
        self.reason = reason


class NoSuchNode(HoldfastError):
    """The machine has no disk of that name."""

    code = "no_such_node"


class OtherMachine(HoldfastError):
    """Another machine answers at the socket than the one that was attached."""

    code = "other_machine"


class LibvirtFailed(HoldfastError):
    """libvirt could not be asked."""

    code = "libvirt_failed"
