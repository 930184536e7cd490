"""The PostgreSQL store of a hive: agent state, metrics, message log, audit trail, and the migrations of its schema."""

from agenthive.store.audit import AuditTrail
from agenthive.store.chain import AuditRow
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
from agenthive.store.metrics import AgentMetrics, Bucket, Metric, MetricsStore, MetricType
from agenthive.store.migrate import Migration, SchemaStatus, schema_status, upgrade
from agenthive.store.naming import application_name, schema_name
from agenthive.store.state import StateEntry, StateStore, Versioned

__all__ = [
    "AgentMetrics",
    "AuditRow",
    "AuditTrail",
    "Bucket",
    "InvalidValue",
    "LoggedMessage",
    "MessageLog",
    "Metric",
    "MetricType",
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
