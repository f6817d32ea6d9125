"""Names of objects in a store, of streams, of identities in certificates. Made here alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from blake3 import blake3

from host_agent.wire.errors import BadName

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PLACE = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"[0-9a-f]{8}")
_LAYER_OBJECT = re.compile(r"[0-9a-f]{16}/[0-9a-f]{32}")
_CHECKPOINT = re.compile(r"[0-9a-f]{32}")
#: The tenant's statements lie beside its groups.
_RESERVED_GROUP = "asof"
_SAN = re.compile(r"spiffe://holdfast/tenant/([^/]+)/agent/([^/]+)")
_NODE_SAN = re.compile(r"spiffe://holdfast/datanode/([^/]+)")
#: What a data node does for a tenant: each is a process of its own.
INGEST, RESTORE = "ingest", "restore"
#: A tenant's identifier, and how it stands in a server name: there an underscore is no letter.
_TENANT_ID = re.compile(r"([a-z]{2,8})_([0-9a-z]{26})")
_SERVER_NAME = re.compile(r"([a-z]{2,8})-([0-9a-z]{26})\.(ingest|restore)")


def check_name(kind: str, name: str) -> str:
    """Return `name` if it may name a tenant, group, host or disk; raise BadName otherwise."""
    if not _NAME.fullmatch(name) or (kind == "group" and name == _RESERVED_GROUP):
        raise BadName(
            f"{name!r:.80} cannot be the name of a {kind}.",
            hint="Use 1 to 63 of a-z, 0-9, dot, underscore, hyphen; begin with letter or digit.",
        )
    return name


@dataclass(frozen=True)
class Identity:
    """Which stream: one protection group of one tenant on one host."""

    tenant: str
    group: str
    host: str

    def __post_init__(self) -> None:
        check_name("tenant", self.tenant)
        check_name("group", self.group)
        check_name("host", self.host)

    @property
    def prefix(self) -> str:
        """What all object names of the stream begin with."""
        return f"{self.tenant}/{self.group}/{self.host}/"

    @cached_property
    def seal_bytes(self) -> bytes:
        """The identity as it stands in authenticated data."""
        return f"{self.tenant}\0{self.group}\0{self.host}\0".encode()

    @cached_property
    def hash(self) -> bytes:
        """BLAKE3 of the identity, as it stands in trailers."""
        return blake3(self.seal_bytes).digest()

    def __str__(self) -> str:
        return f"{self.tenant}/{self.group}/{self.host}"


def _numbered(what: str, number: int) -> str:
    if not 1 <= number < 1 << 63:
        raise BadName(f"{number} cannot be the number of a {what}.")
    return f"{number:016x}"


def chain_prefix(identity: Identity) -> str:
    """What the names of all segments of a stream begin with."""
    return f"{identity.prefix}chain/"


def chain_name(identity: Identity, place: int) -> str:
    """The name of the segment at `place` (from 1)."""
    return f"{chain_prefix(identity)}{_numbered('place', place)}"


def place_of(name: str) -> int | None:
    """The place that a segment's name states, or None if it is no segment's name."""
    head, _, last = name.rpartition("/")
    if not head.endswith("/chain") or not _PLACE.fullmatch(last):
        return None
    return int(last, 16) or None


def key_name(identity: Identity, generation: bytes) -> str:
    """The name of the wrapped data key of a generation."""
    if len(generation) != 16:
        raise BadName(f"A generation has 16 bytes, not {len(generation)}.")
    return f"{identity.prefix}keys/{generation.hex()}"


def index_prefix(identity: Identity, level: int) -> str:
    """What the names of a stream's index objects of a level (from 1) begin with."""
    if not 1 <= level <= 7:
        raise BadName(f"{level} cannot be the level of an index object.")
    return f"{identity.prefix}index/{level}/"


def index_name(identity: Identity, level: int, number: int) -> str:
    """The name of index object `number` (from 1) of a level."""
    return f"{index_prefix(identity, level)}{_numbered('index object', number)}"


def index_number(name: str) -> int | None:
    """The number that an index object's name states, or None if it is no such name."""
    last = name.rpartition("/")[2]
    return (int(last, 16) or None) if _PLACE.fullmatch(last) else None


def hashes_prefix(identity: Identity) -> str:
    """What the names of a stream's hash lists begin with."""
    return f"{identity.prefix}hashes/"


def hashes_name(identity: Identity, place: int, part: int) -> str:
    """The name of object `part` (from 0) of the hash list of a place."""
    if not 0 <= part < 1 << 32:
        raise BadName(f"{part} cannot be the number of a hash list's part.")
    return f"{hashes_prefix(identity)}{_numbered('place', place)}/{part:08x}"


def hashes_place(name: str) -> tuple[int, int] | None:
    """(place, part) that the name of a hash list's object states; None if it is no such name."""
    head, _, part = name.rpartition("/")
    head, _, place = head.rpartition("/")
    if not head.endswith("/hashes") or not _PLACE.fullmatch(place) or not _PART.fullmatch(part):
        return None
    return int(place, 16), int(part, 16)


def layers_prefix(identity: Identity) -> str:
    """What the names of a stream's layer lists begin with."""
    return f"{identity.prefix}layers/"


def layers_name(identity: Identity, number: int) -> str:
    """The name of the stream's layer list `number` (from 1)."""
    return f"{layers_prefix(identity)}{_numbered('layer list', number)}"


def parts_prefix(identity: Identity) -> str:
    """What the names of all objects of a stream's layers begin with."""
    return f"{identity.prefix}parts/"


def part_folder(identity: Identity, number: int) -> str:
    """What the names of the objects that were made for layer list `number` begin with."""
    return f"{parts_prefix(identity)}{_numbered('layer list', number)}/"


def part_name(identity: Identity, short: str) -> str:
    """The name of a layer's object from how a layer list writes it: %016x/HEX32; BadName."""
    if not _LAYER_OBJECT.fullmatch(short):
        raise BadName(f"{short!r:.80} cannot be the name of a layer's object.")
    return f"{parts_prefix(identity)}{short}"


def boundary_prefix(identity: Identity) -> str:
    """What the names of a stream's boundaries begin with."""
    return f"{identity.prefix}boundary/"


def boundary_name(identity: Identity, number: int) -> str:
    """The name of the stream's boundary `number` (from 1)."""
    return f"{boundary_prefix(identity)}{_numbered('boundary', number)}"


def number_of(name: str) -> int | None:
    """The number that a layer list's, a boundary's or a folder's name states; None if none."""
    last = name.rstrip("/").rpartition("/")[2]
    return (int(last, 16) or None) if _PLACE.fullmatch(last) else None


def pins_prefix(identity: Identity) -> str:
    """What the names of a stream's pins begin with."""
    return f"{identity.prefix}pins/"


def pin_name(identity: Identity, checkpoint: str, *, released: bool = False) -> str:
    """The name of the pin of a checkpoint (32 hexadecimal digits), or of its release; BadName."""
    if not _CHECKPOINT.fullmatch(checkpoint):
        raise BadName(f"{checkpoint!r:.80} is not the id of a checkpoint.")
    return f"{pins_prefix(identity)}{checkpoint}{'.released' if released else ''}"


def asof_prefix(tenant: str) -> str:
    """What the names of a tenant's statements begin with."""
    return f"{check_name('tenant', tenant)}/asof/"


def asof_name(tenant: str, number: int) -> str:
    """The name of a tenant's statement `number` (from 1)."""
    return f"{asof_prefix(tenant)}{_numbered('statement', number)}"


def agent_san(tenant: str, host: str) -> str:
    """The URI in the certificate of a host's agent."""
    return (
        f"spiffe://holdfast/tenant/{check_name('tenant', tenant)}/agent/{check_name('host', host)}"
    )


def parse_san(uri: str) -> tuple[str, str]:
    """(tenant, host) of an agent's URI; BadName for any other."""
    match = _SAN.fullmatch(uri)
    if not match:
        raise BadName(
            f"The certificate's URI {uri!r:.120} does not name an agent of a tenant.",
            hint="It must read spiffe://holdfast/tenant/TENANT/agent/HOST.",
        )
    return check_name("tenant", match[1]), check_name("host", match[2])


def datanode_san(node: str) -> str:
    """The URI in the certificate that a data node shows at the control door."""
    return f"spiffe://holdfast/datanode/{check_name('data node', node)}"


def parse_datanode_san(uri: str) -> str:
    """The data node of its URI; BadName for any other."""
    match = _NODE_SAN.fullmatch(uri)
    if not match:
        raise BadName(
            f"The certificate's URI {uri!r:.120} does not name a data node.",
            hint="It must read spiffe://holdfast/datanode/NODE.",
        )
    return check_name("data node", match[1])


def server_name(tenant: str, service: str) -> str:
    """The name inside TLS by which a client asks a data node for a tenant's service; BadName.

    `ten_0123…` and `ingest` give `ten-0123….ingest`. Only identifiers of tenants have such names.
    """
    match = _TENANT_ID.fullmatch(tenant)
    if not match or service not in (INGEST, RESTORE):
        raise BadName(
            f"{tenant!r:.80} has no {service!r:.20} at a data node.",
            hint="Name a tenant by its identifier, such as ten_ and 26 letters and digits.",
        )
    return f"{match[1]}-{match[2]}.{service}"


def parse_server_name(name: str) -> tuple[str, str]:
    """(tenant, service) of a server name; BadName for any other."""
    match = _SERVER_NAME.fullmatch(name)
    if not match:
        raise BadName(f"{name!r:.80} is not the name of a tenant's service at a data node.")
    return f"{match[1]}_{match[2]}", match[3]
