"""`/v1/provider/data-nodes`, `/v1/provider/journal-stores`, and what a joining node calls."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Response, status

from app.datanodes import service, stores
from app.datanodes.routes import NodeJoinRoute
from app.datanodes.schemas import (
    JOIN_SECONDS_MAX,
    DataNodeInput,
    DataNodeJoin,
    DataNodeOutput,
    DataNodePage,
    JournalStoreInput,
    JournalStoreOutput,
    JournalStorePage,
    NodeCertificateOutput,
    NodeEnrolmentInput,
    StoreCredentialInput,
    StoreCredentialOutput,
)
from app.datanodes.tokens import join_text
from app.http.routing import provider_router, requires
from app.http.unit import ProviderUnit, provider_unit
from app.identity.privileges import Privilege
from app.identity.tokens import Token
from app.kit.ids import Kind, show
from app.models import DataNode, JournalStore

router = provider_router("provider")
joining = APIRouter(prefix="/v1", tags=["provider"], route_class=NodeJoinRoute)
Unit = Annotated[ProviderUnit, Depends(provider_unit)]
_PROVIDER = [requires(Privilege.PROVIDER_DATA_NODES)]


def _show(node: DataNode) -> DataNodeOutput:
    return DataNodeOutput(
        id=show(Kind.DATA_NODE, node.id),
        name=node.name,
        territory=node.territory,
        doors=node.doors,
        state=node.state,
        agent_version=node.agent_version,
        created_at=node.created_at,
        certificate_expires_at=node.certificate_expires_at,
        seen_at=node.seen_at,
    )


def _show_store(store: JournalStore) -> JournalStoreOutput:
    return JournalStoreOutput(
        id=show(Kind.JOURNAL_STORE, store.id),
        name=store.name,
        territory=store.territory,
        url=store.url,
        wall=store.wall,
        created_at=store.created_at,
    )


def _show_join(unit: ProviderUnit, node: DataNode, token: Token) -> DataNodeJoin:
    unit.shows_secret = show(Kind.DATA_NODE, node.id)
    return DataNodeJoin(
        **_show(node).model_dump(),
        token=join_text(token, unit.tools.root.fingerprint),
        token_expires_at=unit.now + timedelta(seconds=JOIN_SECONDS_MAX),
    )


@router.get("/data-nodes", dependencies=_PROVIDER, summary="List data nodes")
async def list_data_nodes(unit: Unit) -> DataNodePage:
    """All data nodes, revoked ones too."""
    return DataNodePage(items=[_show(node) for node in await service.list_nodes(unit.session)])


@router.post(
    "/data-nodes",
    dependencies=_PROVIDER,
    status_code=status.HTTP_201_CREATED,
    summary="Add a data node",
)
async def create_data_node(unit: Unit, wanted: DataNodeInput, response: Response) -> DataNodeJoin:
    """A data node, and the token by which it joins once within minutes: in this answer alone."""
    node, token = await service.create_node(unit, wanted)
    response.headers["location"] = f"/v1/provider/data-nodes/{show(Kind.DATA_NODE, node.id)}"
    return _show_join(unit, node, token)


@router.get("/data-nodes/{data_node_id}", dependencies=_PROVIDER, summary="Get a data node")
async def get_data_node(unit: Unit, data_node_id: str) -> DataNodeOutput:
    """One data node."""
    return _show(await service.get_node(unit.session, data_node_id))


@router.post(
    "/data-nodes/{data_node_id}:invite",
    dependencies=_PROVIDER,
    summary="Let a data node join again",
)
async def invite_data_node(unit: Unit, data_node_id: str) -> DataNodeJoin:
    """A new join token, for a node that lost its key or was away for longer than a month."""
    node = await service.get_node(unit.session, data_node_id, lock=True)
    return _show_join(unit, node, service.invite_node(unit, node))


@router.post(
    "/data-nodes/{data_node_id}:drain", dependencies=_PROVIDER, summary="Drain a data node"
)
async def drain_data_node(unit: Unit, data_node_id: str) -> DataNodeOutput:
    """Its streams move to other nodes; it takes no more until it is undrained."""
    node = await service.get_node(unit.session, data_node_id, lock=True)
    await service.drain_node(unit, node)
    return await _announced(unit, node)


@router.post(
    "/data-nodes/{data_node_id}:undrain", dependencies=_PROVIDER, summary="Undrain a data node"
)
async def undrain_data_node(unit: Unit, data_node_id: str) -> DataNodeOutput:
    """It takes streams again."""
    node = await service.get_node(unit.session, data_node_id, lock=True)
    service.undrain_node(node)
    return await _announced(unit, node)


@router.post(
    "/data-nodes/{data_node_id}:revoke", dependencies=_PROVIDER, summary="Revoke a data node"
)
async def revoke_data_node(unit: Unit, data_node_id: str) -> DataNodeOutput:
    """Shut a data node out at once and for good; never delayed."""
    node = await service.get_node(unit.session, data_node_id, lock=True)
    service.revoke_node(node)
    return await _announced(unit, node)


async def _announced(unit: ProviderUnit, node: DataNode) -> DataNodeOutput:
    """Committed first: what hosts are told then is what they find."""
    tenants = await service.tenants_of(unit.session)
    await unit.session.commit()
    await service.announce_doors(unit.tools, tenants, unit.now)
    return _show(node)


@joining.post(
    "/data-node-enrolments",
    dependencies=[requires(Privilege.DATA_NODE_JOIN)],
    status_code=status.HTTP_201_CREATED,
    summary="Join as a data node",
)
async def enrol_data_node(unit: Unit, wanted: NodeEnrolmentInput) -> NodeCertificateOutput:
    """For a machine with a data node's join token as its bearer token: its certificate."""
    certificate = await service.enrol_node(unit, wanted)
    tenants = await service.tenants_of(unit.session)
    await unit.session.commit()
    await service.announce_doors(unit.tools, tenants, unit.now)
    return certificate


@router.get("/journal-stores", dependencies=_PROVIDER, summary="List stores of journals")
async def list_journal_stores(unit: Unit) -> JournalStorePage:
    """All stores, without credentials."""
    rows = await stores.list_stores(unit.session)
    return JournalStorePage(items=[_show_store(row) for row in rows])


@router.post(
    "/journal-stores",
    dependencies=_PROVIDER,
    status_code=status.HTTP_201_CREATED,
    summary="Add a store of journals",
)
async def create_journal_store(unit: Unit, wanted: JournalStoreInput) -> JournalStoreOutput:
    """A store; data nodes write into the one that is named `default`."""
    return _show_store(await stores.create_store(unit, wanted))


@router.put(
    "/journal-stores/{journal_store_id}/credentials/{tenant_id}",
    dependencies=_PROVIDER,
    summary="Give a tenant its credential of a store",
)
async def put_store_credential(
    unit: Unit, journal_store_id: str, tenant_id: str, wanted: StoreCredentialInput
) -> StoreCredentialOutput:
    """The credential is kept sealed and is never shown again."""
    store = await stores.get_store(unit.session, journal_store_id)
    shown = await stores.put_credential(unit, store, tenant_id, wanted)
    return StoreCredentialOutput(
        tenant_id=shown, store_id=show(Kind.JOURNAL_STORE, store.id), changed_at=unit.now
    )
