"""Data nodes: added and drained by the provider, joined by a token, told to tenants' hosts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from app.certificates.authority import (
    NODE_LIFETIME,
    Authority,
    key_of_request,
    load_authority,
    make_node_authority,
    pem_of,
    sign_node,
)
from app.database.sessions import ProviderSession, SystemSession, TenantSession
from app.datanodes.plan import NodePlace, choose_doors
from app.datanodes.schemas import (
    JOIN_SECONDS_MAX,
    DataNodeInput,
    NodeCertificateOutput,
    NodeEnrolmentInput,
)
from app.hosts.enrolment import key_fingerprint
from app.http.unit import ProviderUnit, Tools
from app.identity.principals import Principal, refused
from app.identity.privileges import Privilege
from app.identity.tokens import Token, make_token
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.kit.sealing import Sealer
from app.models import DataNode, DataNodeAuthority, Tenant
from app.models.datanodes import NodeState
from app.models.tenants import PROVIDER_ID, TenantState
from app.rights.places import choose_store, stores_of
from app.rights.telling import tell_hosts
from app.rights.territory import may_hold
from app.tenants.schemas import Plan
from host_agent.wire.names import datanode_san

_AUTHORITY_CONTEXT = "data_node_authorities.sealed_key"
_AUTHORITY_ROW = 1
_SERVING = (NodeState.ACTIVE,)


async def list_nodes(session: ProviderSession) -> list[DataNode]:
    """All of them, by their age."""
    return list(await session.orm.scalars(select(DataNode).order_by(DataNode.id)))


async def get_node(session: ProviderSession, text: str, *, lock: bool = False) -> DataNode:
    """One data node; Problem `not_found`."""
    try:
        found = await session.orm.get(
            DataNode, parse(Kind.DATA_NODE, text), with_for_update=lock or None
        )
    except BadId:
        raise not_found() from None
    if found is None:
        raise not_found()
    return found


async def create_node(unit: ProviderUnit, wanted: DataNodeInput) -> tuple[DataNode, Token]:
    """A data node that has still to join, and the token by which it does; Problem `name_taken`."""
    node = DataNode(
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        name=wanted.name,
        territory=wanted.territory,
        doors=wanted.doors,
        state=NodeState.JOINING,
        agent_version="",
        **dict.fromkeys(
            (
                *("join_fingerprint", "join_expires_at", "key_fingerprint"),
                *("previous_key_fingerprint", "certificate_expires_at", "seen_at"),
            )
        ),
    )
    unit.session.orm.add(node)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is a data node named {wanted.name}.") from None
    return node, invite_node(unit, node)


def invite_node(unit: ProviderUnit, node: DataNode) -> Token:
    """A new token, in place of the one before; Problem `illegal_transition` for a revoked node."""
    if node.state == NodeState.REVOKED:
        raise _illegal(node, "join")
    token = make_token(None, node.id)
    node.join_fingerprint = token.fingerprint(unit.tools.sealer)
    node.join_expires_at = unit.now + timedelta(seconds=JOIN_SECONDS_MAX)
    node.version += 1
    return token


async def use_join_token(session: ProviderSession, token: Token, tools: Tools) -> Principal:
    """Use up a join token; Problem `not_authenticated`. Undone with the transaction."""
    used = await session.orm.execute(
        update(DataNode)
        .where(
            DataNode.id == token.id,
            DataNode.state != NodeState.REVOKED,
            DataNode.join_fingerprint == token.fingerprint(tools.sealer),
            DataNode.join_expires_at > tools.clock.now(),
        )
        .values(join_fingerprint=None, join_expires_at=None)
        .returning(DataNode.id)
    )
    if used.first() is None:
        raise refused()
    privileges = frozenset({Privilege.DATA_NODE_JOIN})
    return Principal(None, token.id, show(Kind.DATA_NODE, token.id), privileges)


async def enrol_node(unit: ProviderUnit, wanted: NodeEnrolmentInput) -> NodeCertificateOutput:
    """The identity of the node whose token was used; Problem `request_refused`."""
    key = key_of_request(wanted.certificate_request)
    node = await unit.session.orm.get_one(DataNode, unit.principal.id, populate_existing=True)
    authority = await _ensure_authority(unit)
    shown = show(Kind.DATA_NODE, node.id)
    uri = datanode_san(shown)
    certificate = sign_node(authority, key, uri, unit.now)
    node.key_fingerprint, node.previous_key_fingerprint = key_fingerprint(key), None
    node.certificate_expires_at = unit.now + NODE_LIFETIME
    node.agent_version = wanted.agent_version
    if node.state == NodeState.JOINING:
        node.state = NodeState.ACTIVE
    node.version += 1
    return NodeCertificateOutput(
        node_id=shown,
        uri=uri,
        certificate=pem_of(certificate) + authority.certificate_pem,
        root_certificate=unit.tools.root.certificate_pem,
        expires_at=certificate.not_valid_after_utc,
    )


async def drain_node(unit: ProviderUnit, node: DataNode) -> None:
    """Have hosts use other nodes, and this one serve nobody. Problem `last_data_node` if some
    tenant would be left without any. Repeats change nothing.
    """
    if node.state == NodeState.DRAINING:
        return
    if node.state != NodeState.ACTIVE:
        raise _illegal(node, "drain")
    others = [one for one in await _serving(unit.session) if one.id != node.id]
    tenants = await unit.session.orm.scalars(
        select(Tenant).where(Tenant.state == TenantState.ACTIVE, Tenant.id != PROVIDER_ID)
    )
    for tenant in tenants:
        permitted = Plan(**tenant.plan).territories
        served = may_hold(permitted, node.territory)
        if served and not choose_doors(tenant.id, permitted, others):
            raise Problem(
                "last_data_node",
                f"{tenant.name} would have no data node.",
                hint="Add another one in a territory that it permits, then drain this one.",
            )
    node.state = NodeState.DRAINING
    node.version += 1


def undrain_node(node: DataNode) -> None:
    """Have it serve again. Repeats change nothing."""
    if node.state == NodeState.ACTIVE:
        return
    if node.state != NodeState.DRAINING:
        raise _illegal(node, "undrain")
    node.state = NodeState.ACTIVE
    node.version += 1


def revoke_node(node: DataNode) -> None:
    """Shut a node out at once and for good; never delayed. Repeats change nothing."""
    if node.state != NodeState.REVOKED:
        node.state = NodeState.REVOKED
        node.join_fingerprint = node.join_expires_at = None
        node.version += 1


async def announce_doors(tools: Tools, tenants: Sequence[UUID], now: datetime) -> None:
    """Have every host told that its doors have changed. A transaction a tenant; may be repeated
    after a failure.
    """
    for tenant_id in tenants:
        async with tools.database.tenant(tenant_id) as session:
            await tell_hosts(session, now)
            await session.commit()


async def tenants_of(session: ProviderSession) -> list[UUID]:
    """Every active tenant."""
    found = await session.orm.scalars(
        select(Tenant.id)
        .where(Tenant.state == TenantState.ACTIVE, Tenant.id != PROVIDER_ID)
        .order_by(Tenant.id)
    )
    return list(found)


async def doors_of_tenant(session: TenantSession, unlisted: Sequence[str] = ()) -> list[str]:
    """Where this tenant's hosts send their streams, in the order in which they try; three queries.
    None where its data may not be. `unlisted`: of nodes that the deployment does not list.
    """
    tenant = await session.orm.get_one(Tenant, session.tenant_id)
    found = await session.orm.execute(
        select(DataNode.id, DataNode.territory, DataNode.doors).where(
            DataNode.state == NodeState.ACTIVE
        )
    )
    nodes = [NodePlace(row.id, row.territory, row.doors) for row in found]
    permitted, stores = Plan(**tenant.plan).territories, await stores_of(session)
    if stores and choose_store(permitted, stores) is None:
        return []
    chosen = choose_doors(session.tenant_id, permitted, nodes)
    return chosen if nodes else list(unlisted)


async def load_node_authority(session: SystemSession, sealer: Sealer) -> Authority | None:
    """The authority of data nodes, opened; None before the first node has joined."""
    row = await session.orm.get(DataNodeAuthority, _AUTHORITY_ROW)
    return None if row is None else _open(row, sealer)


async def _ensure_authority(unit: ProviderUnit) -> Authority:
    row = await unit.session.orm.get(DataNodeAuthority, _AUTHORITY_ROW)
    if row is not None:
        return _open(row, unit.tools.sealer)
    made = make_node_authority(unit.tools.root, unit.now)
    row = DataNodeAuthority(
        id=_AUTHORITY_ROW,
        certificate=made.certificate_pem,
        sealed_key=unit.tools.sealer.seal(made.key_pem, _AUTHORITY_CONTEXT),
        created_at=unit.now,
    )
    unit.session.orm.add(row)
    try:
        await unit.session.orm.flush()
    except IntegrityError:  # two nodes that are the first at the same moment
        raise Problem("request_in_progress", hint="Ask again with a new join token.") from None
    return made


def _open(row: DataNodeAuthority, sealer: Sealer) -> Authority:
    key = sealer.open(row.sealed_key, _AUTHORITY_CONTEXT)
    return load_authority(row.certificate.encode(), key)


async def _serving(session: ProviderSession) -> list[NodePlace]:
    found = await session.orm.scalars(select(DataNode).where(DataNode.state.in_(_SERVING)))
    return [NodePlace(node.id, node.territory, node.doors) for node in found]


def _illegal(node: DataNode, what: str) -> Problem:
    return Problem("illegal_transition", f"{node.name} is {node.state}: it cannot {what}.")
