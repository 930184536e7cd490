"""The folder of a local control plane: what lies where, and the lock that keeps a second one out of it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

DEFAULT_FOLDER = ".agenthive"
#: How long pods get to end when the control plane goes down, seconds, whatever they ask for.
POD_GRACE_SECONDS = 30.0
#: How long `down` waits for an orderly end, seconds: two groups of pods, then the operator and the API server.
DOWN_SECONDS = 2 * POD_GRACE_SECONDS + 30


class AlreadyUpError(RuntimeError):
    """Another control plane runs on this folder."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        super().__init__(
            f"a control plane runs on {folder} already (pid {pid or 'unknown'}): "
            f"end it with 'agenthive local down --dir {folder}', or choose another --dir"
        )
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Folder:
    """The paths of one control plane."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> Folder:
        """The folder at ``path``, which need not exist."""
        return cls(path.absolute())

    def create(self) -> None:
        """Make it. Searchable for root's servers under another account, closed to everybody else."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self.logs.mkdir(exist_ok=True, mode=0o700)

    @property
    def kubeconfig(self) -> Path:
        """How to reach the API server."""
        return self.root / "kubeconfig"

    @property
    def logs(self) -> Path:
        """Logs of the control plane; those of the pods lie below ``pods``."""
        return self.root / "logs"

    @property
    def log(self) -> Path:
        """The control plane's own log."""
        return self.logs / "supervisor.log"

    @property
    def operator_log(self) -> Path:
        """The operator's log."""
        return self.logs / "operator.log"

    @property
    def api_log(self) -> Path:
        """The log of the API server, and of etcd where there is one."""
        return self.logs / "apiserver.log"

    @property
    def processes(self) -> Path:
        """Records of running processes."""
        return self.root / "processes"

    @property
    def addresses(self) -> Path:
        """The loopback block and the lasting addresses."""
        return self.root / "addresses.json"

    def lock(self) -> FolderLock:
        """Take the lock.

        Raises:
            AlreadyUpError: it is held.
        """
        self.create()
        return FolderLock(self)

    @property
    def _lock_file(self) -> Path:
        return self.root / "lock"

    def holder(self) -> dict[str, Any] | None:
        """What the running control plane says of itself (pid, started, server …); None when none runs."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = self._lock_file.read_text()
            return dict(json.loads(text)) if text else {}
        finally:
            os.close(descriptor)
        return None


def kept_token(file: Path) -> str:
    """The token in ``file``, made on first use; mode 0600. Never an empty one, whenever its maker was killed."""
    try:
        if token := file.read_text().strip():
            return token
    except FileNotFoundError:
        pass  # the first use
    token = secrets.token_urlsafe(32)
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(token)
    fresh.replace(file)
    return token


class FolderLock:
    """The lock of a folder, held until closed or until this process ends, however it does."""

    def __init__(self, folder: Folder) -> None:
        self._file = folder._lock_file
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            text = self._file.read_text()
            raise AlreadyUpError(folder.root, json.loads(text).get("pid") if text else None) from error
        self.describe(pid=os.getpid())

    def describe(self, **facts: Any) -> None:
        """Replace what others read about this control plane."""
        data = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
