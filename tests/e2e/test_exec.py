"""``kubectl exec`` on the embedded control plane."""

from __future__ import annotations

import pytest
from tests.e2e.plane import CommandError, Plane

pytestmark = pytest.mark.needs("processes")

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "sleeper"},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "agent",
                "image": "agenthive-runtime:latest",
                "command": ["sleep", "600"],
                "env": [{"name": "OF_THE_CONTAINER", "value": "yes"}],
            }
        ],
    },
}


@pytest.fixture(scope="module")
def sleeper(module_plane: Plane) -> Plane:
    module_plane.apply(POD)
    module_plane.wait("condition=Ready", "pod/sleeper")
    return module_plane


def test_a_command_has_the_containers_environment(sleeper: Plane) -> None:
    assert sleeper.kubectl("exec", "sleeper", "--", "sh", "-c", "echo $OF_THE_CONTAINER") == "yes\n"


def test_standard_input_ends_where_the_callers_does(sleeper: Plane) -> None:
    text = "line\n" * 50_000
    assert sleeper.kubectl("exec", "-i", "sleeper", "--", "cat", stdin=text) == text


def test_the_exit_code_is_the_commands(sleeper: Plane) -> None:
    with pytest.raises(CommandError, match=r"exit 7[\s\S]*to stderr"):
        sleeper.kubectl("exec", "sleeper", "--", "sh", "-c", "echo to stderr >&2; exit 7")


def test_what_cannot_be_run_is_said(sleeper: Plane) -> None:
    with pytest.raises(CommandError, match="executable file not found"):
        sleeper.kubectl("exec", "sleeper", "--", "no-such-program")
