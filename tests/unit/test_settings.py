"""The environment of an agent process."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from agenthive.settings import Messaging, Settings


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HIVE": "demo",
        "CAPABILITIES": "gpu, fast,",
        "TOPICS": "news, releases",
        "MESSAGING": '{"maxRetries": 7}',
        "REDIS_URL": "redis://:secret@host/0",
        "CONCURRENCY": "3",
    }.items():
        monkeypatch.setenv(f"AGENTHIVE_{name}", value)
    settings = Settings()
    assert settings.capabilities == ("gpu", "fast")
    assert (settings.topics, settings.topic_start) == (("news", "releases"), "now")
    assert settings.messaging == Messaging(max_retries=7)
    assert settings.concurrency == 3
    assert settings.scope.hive == "demo"
    assert "secret" not in repr(settings)


def test_replace_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHIVE_REDIS_URL", "redis://:secret@host/0")
    settings = Settings().replace(concurrency=5, hive="other")
    assert (settings.concurrency, settings.hive) == (5, "other")
    assert settings.redis_url.get_secret_value() == "redis://:secret@host/0"
    with pytest.raises(ValidationError, match="concurrency"):
        settings.replace(concurrency=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("LOG_LEVEL", "LOUD"), ("LOG_FORMAT", "xml"), ("HTTP_PORT", "70000"), ("TOPIC_START", "end")],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"AGENTHIVE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_a_changed_copy_keeps_the_policies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHIVE_MESSAGING", '{"maxRetries": 7, "priorityWeights": {"critical": 16}}')
    monkeypatch.setenv("AGENTHIVE_CONCURRENCY", "3")
    changed = Settings().replace(agent="other", concurrency=5)
    assert (changed.agent, changed.concurrency) == ("other", 5)
    assert (changed.messaging.max_retries, changed.messaging.priority_weights.critical) == (7, 16)


def test_a_changed_copy_is_validated() -> None:
    with pytest.raises(ValueError, match="concurrency"):
        Settings().replace(concurrency=0)
