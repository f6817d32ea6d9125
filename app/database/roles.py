"""The database's roles and what each may do: the second wall between tenants.

`holdfast_app` serves one tenant at a time: row-level security is forced on every table of tenants,
and the tenant is set for one transaction alone. `holdfast_provider` makes tenants and sees their
names and states. `holdfast_system` sees ids, states and times of work, no tenant's content.
`holdfast_migrate` owns the tables and bypasses row-level security; no service uses it.
"""

from __future__ import annotations

APP, SYSTEM, PROVIDER, MIGRATE = (
    "holdfast_app",
    "holdfast_system",
    "holdfast_provider",
    "holdfast_migrate",
)
ROLES = (APP, SYSTEM, PROVIDER, MIGRATE)

#: The setting that names the tenant of a transaction. Without it every policy raises an error.
TENANT_SETTING = "holdfast.tenant"
TENANT_OF_TRANSACTION = f"current_setting('{TENANT_SETTING}')::uuid"


def create_roles(database: str) -> list[str]:
    """Statements of a superuser that make the roles of a new installation. May be repeated."""
    statements = []
    for role in ROLES:
        bypass = "BYPASSRLS" if role == MIGRATE else "NOBYPASSRLS"
        flags = f"LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT {bypass}"
        statements += [
            "DO $$ BEGIN "
            f"IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN "
            f"CREATE ROLE {role}; END IF; END $$",
            f"ALTER ROLE {role} {flags}",
            f"GRANT CONNECT ON DATABASE {database} TO {role}",
        ]
    return [
        *statements,
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f"GRANT USAGE, CREATE ON SCHEMA public TO {MIGRATE}",
        f"GRANT USAGE ON SCHEMA public TO {APP}, {SYSTEM}, {PROVIDER}",
    ]


def protect_tenant_table(table: str, *, column: str = "tenant_id", verbs: str) -> list[str]:
    """Statements that give a tenants' table its wall, and `holdfast_app` these verbs on it."""
    return [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {table}_of_tenant ON {table} TO {APP} "
        f"USING ({column} = {TENANT_OF_TRANSACTION}) "
        f"WITH CHECK ({column} = {TENANT_OF_TRANSACTION})",
        f"GRANT {verbs} ON {table} TO {APP}",
    ]
