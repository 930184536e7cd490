"""PostgreSQL as the operator sees it: is it there, may we in, is the hive's schema up to date."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import asyncpg

from agenthive.settings import HiveScope, PostgresPool, Retention
from agenthive.store import Store, schema_name, schema_status, upgrade
from agenthive.store.database import Address, Connect, close_once, connect_once, connected
from agenthive.store.errors import (
    InvalidValue,
    SchemaTooNew,
    StoreAuthError,
    StoreError,
    StorePermissionError,
    StoreUnavailable,
    sqlstate,
)
from agenthive.store.locks import change_tables
from agenthive.store.naming import quote
from agenthive.store.partitions import DAYS_AHEAD
from agenthive.store.roles import drop_logins, drop_roles
from agenthive_operator.backends.reports import PostgresReport, SchemaReport, StoreReport, endpoint_of
from agenthive_operator.backends.shared import Sessions, SharedLooks
from agenthive_operator.backends.tls_advice import tls_advice, tls_error
from agenthive_operator.backends.upkeep import Upkeep

logger = logging.getLogger(__name__)

CLIENT_NAME: Final = "agenthive-operator"
PROBE_SECONDS: Final = 6.0
OLDEST: Final = 14
DEFAULT_PORT: Final = 5432
UPKEEP_SECONDS: Final = 60.0
"""Housekeeping that takes longer goes on another time."""


#: The field that names the Secret with each URL of an external server.
FIELDS: Final = {
    "url": "spec.postgres.external.urlSecretRef",
    "direct": "spec.postgres.external.directUrlSecretRef",
    "admin": "spec.postgres.external.adminUrlSecretRef",
}


@dataclass(frozen=True, slots=True)
class Access:
    """The ways into one database.

    Attributes:
        url: What the hive's processes use; it may lead through PgBouncer.
        direct: Past PgBouncer, where ``url`` leads through one.
        admin: With a role that may create roles and schemas, where the operator has such.
    """

    url: str = field(repr=False)
    direct: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)

    @property
    def upkeep(self) -> str:
        """The URL for migrations, housekeeping and privileges."""
        return self.admin or self.direct or self.url

    @property
    def upkeep_field(self) -> str:
        """The field of the hive's spec that ``upkeep`` comes from."""
        return FIELDS["admin" if self.admin else "direct" if self.direct else "url"]


class HiveSchema:
    """The hive's schema in one database: probed often, upgraded when something is missing, kept up daily.

    ``clock`` is monotonic, in seconds; ``retention`` is looked at whenever housekeeping is due. ``days_at_once``: for
    how many days to come a schema that is new gets its partitions, the rest comes with the housekeeping. ``sessions``
    and ``looks`` are shared with other hives.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        upkeep: Upkeep | None = None,
        days_at_once: int = DAYS_AHEAD,
        sessions: Sessions | None = None,
        looks: SharedLooks[StoreReport] | None = None,
    ) -> None:
        self._clock = clock
        self._upkeep = upkeep or Upkeep()
        self._days_at_once = days_at_once
        self._connect: Connect = sessions.lend if sessions else connected
        self._looks = looks or SharedLooks[StoreReport](lambda report: report.ok)
        self.retention = Retention()

    async def check(self, access: Access, scope: HiveScope, *, shown: str | None = None) -> PostgresReport:
        """Probe the server, bring the hive's schema up to date. Never raises for what the server or the URLs do.

        ``access`` is dialled; ``shown`` is its ``url`` as the user knows it, where Service names were resolved first.
        """
        schema = schema_name(scope)
        store = await self._probe(access.url, shown, schema=schema if access.upkeep == access.url else None)
        if not store.ok:
            return PostgresReport(
                store, SchemaReport(False, "WaitingForPostgres", "the schema is migrated once PostgreSQL is ready")
            )
        if access.upkeep != access.url:
            other = await self._probe(access.upkeep, schema=schema)
            if not other.ok:
                text = f"the URL of {access.upkeep_field}: {other.message}"
                return PostgresReport(store, SchemaReport(False, other.reason, text))
        report = await self._migrate(access.upkeep, schema)
        if report.ok:
            await self._keep_up(access.upkeep, scope)
        return PostgresReport(store, report)

    async def _probe(self, url: str, shown: str | None = None, *, schema: str | None = None) -> StoreReport:
        report = await self._looks.look((url, shown), lambda: probe(url, shown=shown))
        if schema is None or not report.ok:
            return report
        # We were let in a moment ago: what differs from hive to hive is asked by a connection that is lent.
        return await probe(url, shown=shown, schema=schema, connect=self._connect)

    async def _migrate(self, url: str, schema: str) -> SchemaReport:
        applied: tuple[str, ...] = ()
        try:
            status = await schema_status(url, schema, connect=self._connect)
            if not status.too_new and status.pending:
                done = await upgrade(url, schema, days_ahead=self._days_at_once, connect=self._connect)
                applied = tuple(f"{entry.version:04}_{entry.name}" for entry in done)
                status = replace(status, current=status.latest)
        except SchemaTooNew as error:
            return SchemaReport(False, "SchemaTooNew", str(error))
        except StoreUnavailable as error:
            return SchemaReport(False, "WaitingForPostgres", str(error))
        except StoreError as error:
            return SchemaReport(False, "MigrationFailed", str(error))
        if status.too_new:
            text = f"schema {schema} is at version {status.current}, this operator knows {status.latest}: upgrade it"
            return SchemaReport(False, "SchemaTooNew", text)
        return SchemaReport(True, "Migrated", f"schema {schema} is at version {status.current}", applied)

    async def _keep_up(self, url: str, scope: HiveScope) -> None:
        """What is due daily: partitions of the days to come, expired documents. A failure is logged and tried again.

        Another ``retention`` than last time is heeded within minutes.
        """
        target = (url, scope, self.retention)
        if not self._upkeep.is_due(target, self._clock()):
            return
        try:
            async with asyncio.timeout(UPKEEP_SECONDS):
                await upgrade(url, schema_name(scope), connect=self._connect)
                async with await Store.connect(
                    url, scope, agent=CLIENT_NAME, pool=PostgresPool(max_size=1), application_name=CLIENT_NAME
                ) as store:
                    made = await store.maintain(retention=self.retention)
        except (StoreError, TimeoutError) as error:
            logger.warning("housekeeping of %s: %s; again soon", schema_name(scope), _text(error, UPKEEP_SECONDS))
            self._upkeep.failed(target, self._clock())
        else:
            logger.info("housekeeping of %s: done; partitions made: %d", schema_name(scope), len(made))
            self._upkeep.done(target, self._clock())


#: Version, and the connections that ordinary roles may have; reserved_connections came with PostgreSQL 16.
_LOOK: Final = """
    SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version,
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true), '0')::int AS room,
           pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
           current_user AS login, current_database() AS database,
           has_database_privilege(current_database(), 'CREATE') AS creates,
           (SELECT pg_has_role(current_user, nspowner, 'MEMBER') FROM pg_namespace WHERE nspname = $1::text) AS owns
"""


async def probe(
    url: str, *, shown: str | None = None, schema: str | None = None, connect: Connect = connected
) -> StoreReport:
    """Connect, log in and ask what the server is; never raises.

    ``url`` is dialled; ``shown`` is the URL as the user knows it. With ``schema`` who logs in has to be able to make
    that one, or to change it.
    """
    try:
        endpoint = endpoint_of(shown or url, DEFAULT_PORT)
        address = Address.parse(url)
    except (ValueError, InvalidValue) as error:
        return StoreReport(False, "InvalidURL", str(error))
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            async with connect(address, CLIENT_NAME) as connection:
                found = await connection.fetchrow(_LOOK, schema or "")
    except (StoreError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        if (failed := tls_error(error)) is not None:
            text = f"PostgreSQL at {endpoint}: {tls_advice(failed, 'postgres')}"
            return StoreReport(False, "TLSFailed", text, endpoint)
        return StoreReport(False, reason_of(error), _text(error), endpoint)
    assert found is not None, "the question has one row for an answer"
    return judge(dict(found), endpoint, schema)


def judge(found: Mapping[str, Any], endpoint: str, schema: str | None) -> StoreReport:
    """What a server said of itself. Pure."""
    version = str(found["version"]).split(" ", maxsplit=1)[0]
    what = f"PostgreSQL {version} at {endpoint}"
    if found["number"] // 10_000 < OLDEST:
        text = f"PostgreSQL at {endpoint} is {version}: version {OLDEST} or newer is needed"
        return StoreReport(False, "VersionTooOld", text, endpoint, version)
    if found["standby"] or found["read_only"]:
        text = (
            "is a standby, which only reads: name the primary in the URL (CloudNativePG's Service <cluster>-rw), or "
            "several hosts and target_session_attrs=read-write"
            if found["standby"]
            else f"only reads for {found['login']}: set default_transaction_read_only to off"
        )
        return StoreReport(False, "ReadOnly", f"{what} {text}", endpoint, version)
    if schema is not None and not (found["creates"] if found["owns"] is None else found["owns"]):
        login, database = quote(found["login"]), quote(found["database"])
        text = (
            f"{login} may not create schemas: GRANT CREATE ON DATABASE {database} TO {login}"
            if found["owns"] is None
            else f"the schema {schema} is not {login}'s: ALTER SCHEMA {quote(schema)} OWNER TO {login}, or GRANT its "
            "owner's role to it"
        )
        return StoreReport(False, "PrivilegesMissing", f"{what}: {text}", endpoint, version)
    return StoreReport(True, "Reachable", what, endpoint, version, found["room"])


def reason_of(error: BaseException) -> str:
    """The reason of PostgresReady for what connecting raised. Pure."""
    if isinstance(error, StoreAuthError | StorePermissionError):
        return "AuthenticationFailed"
    if isinstance(error, InvalidValue):
        return "InvalidURL"
    state = sqlstate(error.__cause__ or error)
    return {"3D000": "DatabaseMissing", "57P03": "Starting"}.get(state, "Unreachable")


def _text(error: BaseException, seconds: float = PROBE_SECONDS) -> str:
    # The store's hint is meant for an agent's own process.
    text = str(error).replace("AGENTHIVE_POSTGRES_URL", "the URL in the Secret")
    return text or f"no answer within {seconds:g} s"


async def remove_schema(url: str, schema: str, *, roles: bool = False) -> None:
    """Drop the hive's schema and all in it, and with ``roles`` the hive's roles; nothing happens where there is none.

    Raises a ``StoreError``, ``asyncpg.PostgresError`` or ``OSError`` when that cannot be done.
    """
    connection = await connect_once(Address.parse(url), CLIENT_NAME)
    try:
        if roles:  # first, for it ends the sessions of agents, whose locks would be waited for
            await drop_logins(connection, schema)

        async def drop() -> None:
            await connection.execute(f"DROP SCHEMA IF EXISTS {quote(schema)} CASCADE")

        await change_tables(connection, drop, what=f"dropping schema {schema}")
        if roles:  # last, for the owner role owns nothing any more that an heir would have to be found for
            await drop_roles(connection, schema)
    finally:
        await close_once(connection)
