"""Discovery: which groups, versions and resources there are, in the aggregated and in the old form."""

from __future__ import annotations

from .errors import Json
from .kinds import Kind, Registry

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]

# Resources that are only asked, never stored: (group, version, plural, kind).
REVIEWS = (
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview"),
)

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

VERSION: Json = {
    "major": "1", "minor": "36", "gitVersion": "v1.36.0+agenthive-emulator", "gitCommit": "", "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "agenthive/emulator",
}  # fmt: skip

_SUB_VERBS = {
    "exec": ["create", "get"], "log": ["get"], "scale": ["get", "patch", "update"],
    "status": ["get", "patch", "update"], "token": ["create"],
}  # fmt: skip


def wants_aggregated(accept: str) -> bool:
    """Whether the client takes the aggregated form, version 2."""
    return any("as=APIGroupDiscoveryList" in part and "v=v2;" in part + ";" for part in accept.split(","))


def _groups(registry: Registry, *, core: bool) -> dict[str, list[str]]:
    found = {group: list(versions) for group, versions in registry.versions().items() if (group == "") is core}
    if not core:
        for group, version, _, _ in REVIEWS:
            found.setdefault(group, [version])
    return found


def aggregated(registry: Registry, *, core: bool) -> Json:
    """``/api`` (core) or ``/apis`` in one answer."""
    items = []
    for group, versions in _groups(registry, core=core).items():
        shown = [
            {
                "version": version,
                "resources": [_aggregated(kind) for kind in registry if (kind.group, kind.version) == (group, version)]
                + [_review(*review) for review in REVIEWS if review[:2] == (group, version)],
                "freshness": "Current",
            }
            for version in versions
        ]
        items.append({"metadata": {"name": group, "creationTimestamp": None}, "versions": shown})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _review(group: str, version: str, plural: str, kind: str) -> Json:
    return {
        "resource": plural, "responseKind": {"group": group, "version": version, "kind": kind}, "scope": "Cluster",
        "singularResource": kind.lower(), "verbs": ["create"],
    }  # fmt: skip


def _aggregated(kind: Kind) -> Json:
    response = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    found: Json = {
        "resource": kind.plural, "responseKind": response, "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular_name, "verbs": VERBS,
    }  # fmt: skip
    if kind.short_names:
        found["shortNames"] = list(kind.short_names)
    if kind.categories:
        found["categories"] = list(kind.categories)
    if kind.subresources:
        found["subresources"] = [
            {
                "subresource": sub,
                "responseKind": _scale_kind() if sub == "scale" else response,
                "verbs": _SUB_VERBS[sub],
            }
            for sub in kind.subresources
        ]
    return found


def _scale_kind() -> Json:
    return {"group": "autoscaling", "version": "v1", "kind": "Scale"}


def core_versions() -> Json:
    """``/api``."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list(registry: Registry) -> Json:
    """``/apis``."""
    groups = [_group(name, versions) for name, versions in _groups(registry, core=False).items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def group(registry: Registry, name: str) -> Json | None:
    """``/apis/<group>``; None where it is not served."""
    versions = _groups(registry, core=False).get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if versions else None


def _group(name: str, versions: list[str]) -> Json:
    shown = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": shown, "preferredVersion": shown[0]}


def resource_list(registry: Registry, group: str, version: str) -> Json | None:
    """``/api/v1`` or ``/apis/<group>/<version>``; None where it is not served."""
    resources: list[Json] = []
    for kind in registry:
        if (kind.group, kind.version) != (group, version):
            continue
        found: Json = {
            "name": kind.plural, "singularName": kind.singular_name, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": VERBS,
        }  # fmt: skip
        if kind.short_names:
            found["shortNames"] = list(kind.short_names)
        if kind.categories:
            found["categories"] = list(kind.categories)
        resources.append(found)
        for sub in kind.subresources:
            shown: Json = {
                "name": f"{kind.plural}/{sub}", "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind,
                "verbs": _SUB_VERBS[sub],
            }  # fmt: skip
            if sub == "scale":
                shown |= _scale_kind()
            resources.append(shown)
    resources += [
        {"name": plural, "singularName": "", "namespaced": False, "kind": kind_name, "verbs": ["create"]}
        for review_group, review_version, plural, kind_name in REVIEWS
        if (review_group, review_version) == (group, version)
    ]
    if not resources:
        return None
    text = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": text, "resources": resources}
