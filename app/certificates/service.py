"""Each tenant's intermediate, its key sealed in the database."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from app.certificates.authority import Authority, load_authority, make_intermediate
from app.database.sessions import TenantSession
from app.kit.ids import Kind, show
from app.kit.sealing import Sealer
from app.models import TenantAuthority

_CONTEXT = "tenant_authorities.sealed_key"


def make_authority(
    root: Authority, sealer: Sealer, tenant_id: UUID, now: datetime
) -> TenantAuthority:
    """The row of a new tenant's intermediate."""
    shown = show(Kind.TENANT, tenant_id)
    made = make_intermediate(root, shown, now)
    return TenantAuthority(
        tenant_id=tenant_id,
        certificate=made.certificate_pem,
        sealed_key=sealer.seal(made.key_pem, _CONTEXT, shown),
        created_at=now,
    )


async def load_tenant_authority(session: TenantSession, sealer: Sealer) -> Authority:
    """The tenant's intermediate, opened."""
    found = await session.orm.scalars(
        select(TenantAuthority).where(TenantAuthority.tenant_id == session.tenant_id)
    )
    row = found.one()
    key = sealer.open(row.sealed_key, _CONTEXT, show(Kind.TENANT, session.tenant_id))
    return load_authority(row.certificate.encode(), key)
