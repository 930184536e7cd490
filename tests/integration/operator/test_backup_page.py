"""The manifests of docs/backup.md: taken by the API server, and the command for PostgreSQL run against a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from tests.integration.operator.conftest import Cluster

from agenthive_operator.local.servers import postgres_program
from agenthive_operator.plan.servers import SECRET_PATH

PAGE = Path(__file__).parents[3] / "docs" / "backup.md"
COMMAND = "pre.hook.backup.velero.io/command"


def hive_of_the_page() -> dict[str, Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = [obj for block in blocks for obj in yaml.safe_load_all(block) if obj["kind"] == "AgentHive"]
    return dict(found["spec"])


async def test_the_hive_is_taken(cluster: Cluster) -> None:
    made = await cluster.create("AgentHive", "demo", spec=hive_of_the_page())
    assert json.loads(made["spec"]["redis"]["managed"]["annotations"][COMMAND])[:2] == ["/bin/sh", "-c"]


def test_the_command_for_postgres_works(postgres_url: str, tmp_path: Path) -> None:
    command = json.loads(hive_of_the_page()["postgres"]["managed"]["annotations"][COMMAND])
    at = urlsplit(postgres_url)
    (tmp_path / "password").write_text(unquote(at.password or ""))
    program = command[-1].replace(SECRET_PATH, str(tmp_path))
    # The user and the database of a managed server, which the test's server has otherwise.
    program = program.replace("-U agenthive -d agenthive", f"-U {at.username} -d {at.path[1:]}")
    env = {
        "PATH": f"{postgres_program('psql').parent}:{os.environ['PATH']}",
        "PGHOST": at.hostname or "",
        "PGPORT": str(at.port),
    }
    done = subprocess.run([*command[:-1], program], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "CHECKPOINT"), done.stderr
