"""AgentHive runtime: a message bus over Redis Streams and a PostgreSQL store for agents.

Everything public is importable from here and loaded on first use, so that ``import agenthive`` stays cheap::

    from agenthive import Agent, Context, Reject, Retry
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agenthive.agent import Agent, Handler, Reject, Retry
    from agenthive.bus import Bus
    from agenthive.calls import cached
    from agenthive.context import AgentContext, Context, StoreNotConfigured
    from agenthive.protocol import AgentMessage, DeliveryOptions, MessageDeliveryStatus, MessagePriority
    from agenthive.settings import Settings
    from agenthive.store import Store

__all__ = [
    "Agent",
    "AgentContext",
    "AgentMessage",
    "Bus",
    "Context",
    "DeliveryOptions",
    "Handler",
    "MessageDeliveryStatus",
    "MessagePriority",
    "Reject",
    "Retry",
    "Settings",
    "Store",
    "StoreNotConfigured",
    "__version__",
    "cached",
]

_HOMES = {
    "Agent": "agenthive.agent",
    "AgentContext": "agenthive.context",
    "AgentMessage": "agenthive.protocol",
    "Bus": "agenthive.bus",
    "Context": "agenthive.context",
    "DeliveryOptions": "agenthive.protocol",
    "Handler": "agenthive.agent",
    "MessageDeliveryStatus": "agenthive.protocol",
    "MessagePriority": "agenthive.protocol",
    "Reject": "agenthive.agent",
    "Retry": "agenthive.agent",
    "Settings": "agenthive.settings",
    "Store": "agenthive.store",
    "StoreNotConfigured": "agenthive.context",
    "cached": "agenthive.calls",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - costs 30 ms that few callers need

        value: Any = version("agenthive-k8s")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
