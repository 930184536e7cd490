"""A pod's volumes as folders of this machine, and the paths that stand for its mounts."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from agenthive_operator.local.kubelet.environment import ConfigError, Reference, Sources, field, resource_field
from agenthive_operator.local.resources import Obj

#: path inside the volume → content
Files = dict[str, bytes]


def references(volume: Obj) -> set[Reference]:
    """The Secrets and ConfigMaps a volume shows."""
    found = set()
    if "secret" in volume:
        found.add(Reference("Secret", volume["secret"]["secretName"]))
    if "configMap" in volume:
        found.add(Reference("ConfigMap", volume["configMap"]["name"]))
    for source in (volume.get("projected") or {}).get("sources") or []:
        if "secret" in source:
            found.add(Reference("Secret", source["secret"]["name"]))
        if "configMap" in source:
            found.add(Reference("ConfigMap", source["configMap"]["name"]))
    return found


def is_written(volume: Obj) -> bool:
    """Whether the kubelet writes the volume's files (Secrets, ConfigMaps, pod fields)."""
    return any(kind in volume for kind in ("secret", "configMap", "projected", "downwardAPI"))


def unsupported(volume: Obj) -> str | None:
    """Why a volume cannot be had in local mode; None when it can."""
    offered = ("secret", "configMap", "emptyDir", "persistentVolumeClaim", "projected", "downwardAPI", "hostPath")
    kinds = [kind for kind in volume if kind != "name"]
    for kind in kinds:
        if kind not in offered:
            return f"volume {volume['name']}: {kind} is not offered in local mode, only {', '.join(offered)}"
    for source in (volume.get("projected") or {}).get("sources") or []:
        for kind in source:
            if kind not in {"secret", "configMap", "downwardAPI"}:
                return f"volume {volume['name']}: a projected {kind} is not offered in local mode"
    return None


def files_of(volume: Obj, pod: Obj, sources: Sources) -> Files:
    """The content of a volume that the kubelet writes.

    Raises:
        ConfigError: what it refers to is missing and not optional.
    """
    if "secret" in volume:
        return _selected("Secret", volume["secret"]["secretName"], volume["secret"], sources)
    if "configMap" in volume:
        return _selected("ConfigMap", volume["configMap"]["name"], volume["configMap"], sources)
    if "downwardAPI" in volume:
        return _downward(volume["downwardAPI"], pod)
    files: Files = {}
    for source in volume["projected"].get("sources") or []:
        if "secret" in source:
            files |= _selected("Secret", source["secret"]["name"], source["secret"], sources)
        elif "configMap" in source:
            files |= _selected("ConfigMap", source["configMap"]["name"], source["configMap"], sources)
        else:
            files |= _downward(source["downwardAPI"], pod)
    return files


def _selected(kind: str, name: str, selector: Obj, sources: Sources) -> Files:
    data = sources[Reference(kind, name)]
    if data is None:
        if selector.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    if not selector.get("items"):
        return dict(data)
    files = {}
    for item in selector["items"]:
        if item["key"] in data:
            files[_safe(item["path"])] = data[item["key"]]
        elif not selector.get("optional"):
            raise ConfigError(f"references non-existent key {item['key']} of {kind.lower()} {name}")
    return files


def _downward(source: Obj, pod: Obj) -> Files:
    files = {}
    for item in source.get("items") or []:
        if "fieldRef" in item:
            value = field(pod, item["fieldRef"]["fieldPath"])
        else:
            name = item["resourceFieldRef"].get("containerName")
            container = next((c for c in pod["spec"]["containers"] if c["name"] == name), None)
            if container is None:
                raise ConfigError(f"resourceFieldRef names no container of this pod: {name!r}")
            value = resource_field(container, item["resourceFieldRef"])
        files[_safe(item["path"])] = value.encode()
    return files


def _safe(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ConfigError(f"{path!r} leads out of its volume")
    return path


def write(folder: Path, files: Files, account: pwd.struct_passwd | None) -> bool:
    """Make ``folder`` show exactly ``files``, readable by ``account`` alone; whether anything changed.

    All files change at once, as in a real pod: they are links into one folder that is replaced by renaming a link.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    give(folder, account)
    current = folder / "..data"
    if current.exists() and _read(current) == files:
        return False
    fresh = folder / f"..{secrets.token_hex(8)}"
    fresh.mkdir(mode=0o700)
    give(fresh, account)
    for name, content in files.items():
        path = fresh / name
        for parent in reversed(path.relative_to(fresh).parents[:-1]):
            (fresh / parent).mkdir(exist_ok=True, mode=0o700)
            give(fresh / parent, account)
        path.touch(mode=0o600)
        path.write_bytes(content)
        give(path, account)
    old = current.resolve() if current.exists() else None
    link = folder / "..data.new"
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.rename(current)
    tops = {PurePosixPath(name).parts[0] for name in files}
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in tops:
            _remove(entry)
    for top in tops:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(Path("..data") / top)
    if old is not None:
        shutil.rmtree(old)
    return True


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _read(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def give(path: Path, account: pwd.struct_passwd | None) -> None:
    """Make ``account`` the owner (None: it is ours already)."""
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid)


def mount_paths(container: Obj, folders: Mapping[str, Path]) -> dict[str, str]:
    """Path in the container → path on this machine, for each of a container's mounts.

    Raises:
        ConfigError: a mount names a volume the pod does not have.
    """
    paths = {}
    for mount in container.get("volumeMounts") or []:
        if mount["name"] not in folders:
            raise ConfigError(f"container {container['name']} mounts a volume {mount['name']!r} the pod does not have")
        target = folders[mount["name"]]
        if mount.get("subPathExpr"):
            raise ConfigError(f"container {container['name']}: subPathExpr is not offered in local mode; use subPath")
        if mount.get("subPath"):
            target = target / _safe(mount["subPath"])
        paths[mount["mountPath"]] = str(target)
    return paths
