"""What can go wrong between a person, the agent and the tap."""

from __future__ import annotations

from host_agent.stream.errors import LinkLost
from host_agent.wire.errors import HoldfastError


class BadConfig(HoldfastError):
    """A configuration file with a key, a value or a file that cannot be used."""

    code = "bad_config"


class AgentNotRunning(HoldfastError):
    """No agent answers at its socket."""

    code = "agent_not_running"


class AgentRunning(HoldfastError):
    """Another agent already works with this state directory."""

    code = "agent_running"


class UnknownGroup(HoldfastError):
    """A group that the configuration does not name."""

    code = "unknown_group"


class NotProtected(HoldfastError):
    """A group whose durable copies are all off."""

    code = "not_protected"


class NoDoor(LinkLost):
    """No address is known where this host's data could go."""

    code = "no_door"


class BadAssignment(HoldfastError):
    """What a manager assigned makes no sense, or is another host's."""

    code = "bad_assignment"


class NotInInventory(HoldfastError):
    """A manager names a disk that this host's administrator did not put into its reach."""

    code = "not_in_inventory"


class DataKeyAwaited(HoldfastError):
    """A stream cannot begin: its manager has not answered with the key yet."""

    code = "data_key_awaited"


class EpochStale(HoldfastError):
    """A command that is not newer than one that this host has taken."""

    code = "epoch_stale"


class Interrupted(HoldfastError):
    """The agent ended while it carried out a command."""

    code = "interrupted"


class UnknownCommand(HoldfastError):
    """A kind of command that this agent does not have."""

    code = "unknown_command"


class UnknownTenant(HoldfastError):
    """A tenant that is not placed on this host."""

    code = "unknown_tenant"


class Busy(HoldfastError):
    """More is asked for at once than this host does."""

    code = "busy"


class Managed(HoldfastError):
    """What a manager decides cannot be changed on the host."""

    code = "managed"


class ManagerLost(HoldfastError):
    """The connection to the data services manager could not be made, broke, or went silent."""

    code = "manager_lost"


class DiskNameTaken(HoldfastError):
    """Another disk of the group has this name."""

    code = "disk_name_taken"


class BadRequest(HoldfastError):
    """A command that the agent does not understand."""

    code = "bad_request"


class StateUnusable(HoldfastError):
    """The state directory, or a file in it, cannot be read or written."""

    code = "state_unusable"


class TapNotRunning(HoldfastError):
    """No tap answers at its socket."""

    code = "tap_not_running"


class TapBinaryMissing(HoldfastError):
    """The program holdfast-tap was not found or did not start."""

    code = "tap_binary_missing"


class CheckpointNotStored(HoldfastError):
    """The marker is in the stream, but the journal did not confirm it in time."""

    code = "checkpoint_not_stored"


class CommandRefused(HoldfastError):
    """The agent answered a command with an error; `code` is the agent's own."""

    def __init__(self, fields: dict[str, object]) -> None:
        super().__init__(
            str(fields.get("message", "The agent refused.")),
            hint=str(fields.get("hint", "")),
            retryable=bool(fields.get("retryable", False)),
        )
        self.code = str(fields.get("error", "refused"))
