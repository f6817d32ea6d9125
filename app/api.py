"""The API's application, made from its tools."""

from __future__ import annotations

from enum import StrEnum

from fastapi import FastAPI

from app.alerts.endpoints import router as alerts
from app.alerts.schemas import Level
from app.checkpoints.endpoints import router as checkpoints
from app.checkpoints.state import CheckpointKind, CheckpointState
from app.datanodes.endpoints import joining as joining_nodes
from app.datanodes.endpoints import router as data_nodes
from app.entries.endpoints import provider as provider_entering
from app.entries.endpoints import router as provider_entries
from app.events.endpoints import router as events
from app.events.hub import EventHub
from app.hosts.endpoints import joining, renewing
from app.hosts.endpoints import router as hosts
from app.hosts.schemas import RootOutput
from app.http.contract import CONTACT, LICENSE, SERVERS, TAGS, describe
from app.http.errors import handle_errors
from app.http.limits import BodyLimit
from app.http.observing import Figures, Observe
from app.http.readiness import Readiness
from app.http.routing import check_routers
from app.http.schemas import HealthOutput, ProblemKindOutput, ReadyOutput
from app.http.unit import Tools
from app.identity.endpoints import router as api_keys
from app.identity.privileges import Role
from app.keys.endpoints import router as keys
from app.kit.problems import CATALOGUE
from app.machines.endpoints import router as machines
from app.models.hosts import HostState
from app.models.tenants import TenantState
from app.oidc.endpoints import beginning, redeeming, returning
from app.oidc.endpoints import router as issuer
from app.operations.endpoints import router as operations
from app.operations.state import OperationState, StepState
from app.pools.endpoints import provider as provider_pools
from app.pools.endpoints import router as pools
from app.profiles.endpoints import router as service_profiles
from app.restores.endpoints import router as restores
from app.rights.endpoints import router as rights
from app.rights.state import PlacementState
from app.sites.endpoints import router as sites
from app.tenants.endpoints import provider as provider_tenants
from app.tenants.endpoints import router as tenant
from app.usage.endpoints import provider as provider_usage
from app.usage.endpoints import router as usage
from app.users.endpoints import inviting, logging_in
from app.users.endpoints import router as users
from app.vpgs.endpoints import router as vpgs
from app.vpgs.settings import Priority
from app.vpgs.state import Lifecycle, Link, Recovery, Sla, Sync

#: Open to anybody: nothing of a tenant is in them.
PUBLIC = frozenset(
    {"/v1/enums", "/openapi.json", "/health", "/ready", "/v1/problems", "/v1/root-certificate"}
)
#: All of them.
ROUTERS = (
    tenant,
    sites,
    pools,
    machines,
    service_profiles,
    vpgs,
    restores,
    checkpoints,
    operations,
    alerts,
    hosts,
    joining,
    renewing,
    users,
    inviting,
    logging_in,
    issuer,
    beginning,
    returning,
    redeeming,
    api_keys,
    events,
    keys,
    provider_entries,
    provider_tenants,
    usage,
    provider_usage,
    provider_entering,
    data_nodes,
    joining_nodes,
    provider_pools,
    rights,
)
#: What the API speaks in; GLOSSARY.md says what each word means.
ENUMS: tuple[type[StrEnum], ...] = (
    Lifecycle,
    Sync,
    Sla,
    Recovery,
    Link,
    Priority,
    OperationState,
    StepState,
    CheckpointKind,
    CheckpointState,
    Level,
    HostState,
    TenantState,
    PlacementState,
    Role,
)
_DESCRIPTION = "Disaster recovery as a service: protect, checkpoint, recover."


def make_app(tools: Tools) -> FastAPI:
    """The application. Its tools are closed by whoever made them."""
    app = FastAPI(
        title="Holdfast",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        license_info=LICENSE,
        contact=CONTACT,
        openapi_tags=TAGS,
        servers=SERVERS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.tools = tools
    app.state.hub = EventHub(tools.database)
    app.state.readiness = Readiness(tools.database)
    app.state.figures = Figures()
    app.add_middleware(BodyLimit)
    handle_errors(app)
    app.add_middleware(Observe, figures=app.state.figures)
    check_routers(ROUTERS)
    for router in ROUTERS:
        app.include_router(router)

    _add_public(app, tools)
    describe(app, ROUTERS)
    return app


def _add_public(app: FastAPI, tools: Tools) -> None:
    @app.get("/health", tags=["service"], summary="Tell whether the service answers")
    async def health() -> HealthOutput:
        """For supervisors: the process lives. Says nothing of any tenant."""
        found: HealthOutput = await app.state.readiness.health()
        return found

    @app.get("/ready", tags=["service"], summary="Tell whether requests can be answered")
    async def ready() -> ReadyOutput:
        """For load balancers: 503 while the database does not answer or is being upgraded."""
        found: ReadyOutput = await app.state.readiness.check()
        return found

    @app.get("/v1/problems", tags=["service"], summary="List what can go wrong")
    async def problems() -> list[ProblemKindOutput]:
        """Every code that a problem document may carry."""
        return [ProblemKindOutput(**vars(kind)) for kind in CATALOGUE.values()]

    @app.get("/v1/enums", tags=["service"], summary="List the values of every enum")
    async def enums() -> dict[str, list[str]]:
        """Every word that a state, kind or level may be."""
        return {kind.__name__: [value.value for value in kind] for kind in ENUMS}

    @app.get("/v1/root-certificate", tags=["hosts"], summary="Get the deployment's root")
    async def root_certificate() -> RootOutput:
        """Public: a host compares it with what its join token pins before it sends anything."""
        root = tools.root
        return RootOutput(
            certificate=root.certificate_pem, sha256=root.fingerprint, time=tools.clock.now()
        )
