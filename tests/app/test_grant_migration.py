"""Roles become grants and roles again, on rows of two tenants: they keep their meaning."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, Connection, create_engine, text

from app.database.migrate import downgrade, upgrade
from tests.servers.postgres import Cluster

BEFORE_GRANTS, GRANTS = "20261130_0820", "20261130_0900"


@pytest.fixture
def old(cluster: Cluster) -> Iterator[tuple[Connection, URL]]:
    """A database from before grants, with a user and two keys in each of two tenants."""
    with cluster.empty_database() as url:
        upgrade(url, BEFORE_GRANTS)
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name in ("own", "other"):
                _fill(connection, name)
            yield connection, url
        engine.dispose()


def _fill(connection: Connection, name: str) -> None:
    tenant = uuid4()
    values = {"tenant": tenant, "name": name}
    connection.execute(
        text(
            "INSERT INTO tenants (id, name, state, plan, created_at, version) "
            "VALUES (:tenant, :name, 'active', '{}', now(), 1)"
        ),
        values,
    )
    connection.execute(
        text(
            "INSERT INTO users (tenant_id, id, created_at, version, name, display_name, role) "
            "VALUES (:tenant, gen_random_uuid(), now(), 1, 'ada', 'Ada', 'operator')"
        ),
        values,
    )
    for role in ("administrator", "viewer"):
        connection.execute(
            text(
                "INSERT INTO api_keys (tenant_id, id, created_at, version, name, role, fingerprint)"
                " VALUES (:tenant, gen_random_uuid(), now(), 1, :role, :role, '')"
            ),
            {**values, "role": role},
        )


def _roles(connection: Connection, table: str) -> list[tuple[str, str, str | None]]:
    found = connection.execute(
        text(
            f"SELECT t.name, o.name, o.role FROM {table} o JOIN tenants t ON t.id = o.tenant_id "
            "ORDER BY 1, 2"
        )
    )
    return [tuple(row) for row in found]


def test_roles_become_grants_over_the_tenant_and_roles_again(
    old: tuple[Connection, URL],
) -> None:
    connection, url = old
    before = {table: _roles(connection, table) for table in ("users", "api_keys")}
    upgrade(url, GRANTS)
    granted = connection.execute(
        text(
            "SELECT t.name, coalesce(u.name, k.name), g.role FROM grants g "
            "JOIN tenants t ON t.id = g.tenant_id "
            "LEFT JOIN users u ON u.tenant_id = g.tenant_id AND u.id = g.user_id "
            "LEFT JOIN api_keys k ON k.tenant_id = g.tenant_id AND k.id = g.api_key_id "
            "WHERE g.site_id IS NULL AND g.vpg_id IS NULL ORDER BY 1, 2"
        )
    )
    assert [tuple(row) for row in granted] == sorted(before["users"] + before["api_keys"])
    downgrade(url, BEFORE_GRANTS)
    assert {table: _roles(connection, table) for table in before} == before


def test_whoever_had_a_part_is_shut_out_where_parts_are_not_known(
    old: tuple[Connection, URL],
) -> None:
    connection, url = old
    upgrade(url, GRANTS)
    own = text("SELECT id FROM tenants WHERE name = 'own'")
    tenant: UUID = connection.execute(own).scalar_one()
    site = uuid4()
    connection.execute(
        text(
            "INSERT INTO sites (tenant_id, id, created_at, version, name, description, territory) "
            "VALUES (:tenant, :site, now(), 1, 'here', '', 'CH')"
        ),
        {"tenant": tenant, "site": site},
    )
    connection.execute(
        text("UPDATE grants SET site_id = :site WHERE tenant_id = :tenant AND role <> 'viewer'"),
        {"tenant": tenant, "site": site},
    )
    downgrade(url, BEFORE_GRANTS)
    assert _roles(connection, "users") == [("other", "ada", "operator"), ("own", "ada", "viewer")]
    states = connection.execute(
        text(
            "SELECT t.name, k.name, k.role, k.revoked_at IS NULL FROM api_keys k "
            "JOIN tenants t ON t.id = k.tenant_id ORDER BY 1, 2"
        )
    )
    assert [tuple(row) for row in states] == [
        ("other", "administrator", "administrator", True),
        ("other", "viewer", "viewer", True),
        ("own", "administrator", "viewer", False),
        ("own", "viewer", "viewer", True),
    ]
    disabled = connection.execute(
        text("SELECT count(*) FROM users WHERE state = 'disabled'")
    ).scalar_one()
    assert disabled == 1
