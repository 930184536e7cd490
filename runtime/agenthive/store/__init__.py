"""The PostgreSQL store of a hive: agent state, metrics, message log, and the migrations of its schema."""

from agenthive.store.core import Store
from agenthive.store.errors import (
    InvalidValue,
    MigrationError,
    SchemaError,
    SchemaMissing,
    SchemaTooNew,
    StoreAuthError,
    StoreClosed,
    StoreError,
    StorePermissionError,
    StoreUnavailable,
    ValueTooLarge,
    VersionConflict,
)
from agenthive.store.messages import LoggedMessage, MessageLog
from agenthive.store.metrics import AgentMetrics, Metric, MetricsStore
from agenthive.store.migrate import Migration, SchemaStatus, schema_status, upgrade
from agenthive.store.naming import application_name, schema_name
from agenthive.store.state import StateEntry, StateStore, Versioned

__all__ = [
    "AgentMetrics",
    "InvalidValue",
    "LoggedMessage",
    "MessageLog",
    "Metric",
    "MetricsStore",
    "Migration",
    "MigrationError",
    "SchemaError",
    "SchemaMissing",
    "SchemaStatus",
    "SchemaTooNew",
    "StateEntry",
    "StateStore",
    "Store",
    "StoreAuthError",
    "StoreClosed",
    "StoreError",
    "StorePermissionError",
    "StoreUnavailable",
    "ValueTooLarge",
    "VersionConflict",
    "Versioned",
    "application_name",
    "schema_name",
    "schema_status",
    "upgrade",
]
