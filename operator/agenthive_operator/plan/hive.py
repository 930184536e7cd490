"""The children of an AgentHive: its managed servers."""

from __future__ import annotations

from typing import Any

from agenthive_operator.api.hive import AgentHive
from agenthive_operator.plan.inputs import ObservedHive
from agenthive_operator.plan.postgres import plan_postgres
from agenthive_operator.plan.redis import plan_redis
from agenthive_operator.plan.servers import annotated_claim, grown_claim


def plan_hive(hive: AgentHive, observed: ObservedHive) -> list[dict[str, Any]]:
    """The objects that ``hive`` should own, as bodies of server-side apply, in the order to apply them.

    An external server has none. What the hive owns and the list lacks is to be pruned.

    Raises:
        MissingPasswordError: A managed server's password is not in ``observed``.
    """
    objects: list[dict[str, Any]] = []
    if (redis := hive.spec.redis.run) is not None:
        objects += plan_redis(hive, redis, observed.redis)
    if (postgres := hive.spec.postgres.run) is not None:
        objects += plan_postgres(hive, postgres, observed.postgres)
    return objects


def plan_claims(hive: AgentHive, observed: ObservedHive) -> list[dict[str, Any]]:
    """Volume claims of the managed servers that have to grow: apply them where they exist, never create them."""
    claims = []
    if (redis := hive.spec.redis.run) is not None:
        claims.append(grown_claim(hive, "redis", redis, observed.redis))
    if (postgres := hive.spec.postgres.run) is not None:
        claims.append(grown_claim(hive, "postgres", postgres, observed.postgres))
    return [claim for claim in claims if claim is not None]


def plan_annotations(hive: AgentHive, observed: ObservedHive) -> list[dict[str, Any]]:
    """Volume claims of the managed servers with the annotations they are to have: apply them where they exist.

    The former ones are known from the StatefulSet, so that claims come before it.
    """
    claims = []
    if (redis := hive.spec.redis.run) is not None:
        claims.append(annotated_claim(hive, "redis", redis, observed.redis))
    if (postgres := hive.spec.postgres.run) is not None:
        claims.append(annotated_claim(hive, "postgres", postgres, observed.postgres))
    return [claim for claim in claims if claim is not None]
