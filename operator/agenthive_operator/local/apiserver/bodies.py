"""Bodies of requests and answers."""

from __future__ import annotations

from typing import Any

import orjson
import yaml
from aiohttp import web

from . import errors, protobuf
from .errors import ApiError, Json

_JSON = "application/json"
_YAML = "application/yaml"
APPLY = "application/apply-patch+yaml"
PATCHES = {
    "application/json-patch+json": "json-patch",
    "application/merge-patch+json": "merge-patch",
    "application/strategic-merge-patch+json": "strategic-merge-patch",
    APPLY: "apply",
}


def parse(data: bytes, media: str) -> Any:
    """A body as JSON values.

    Raises:
        ApiError: 415 for other formats (CBOR, most of protobuf), 400 for broken ones.
    """
    if media.partition(";")[0].strip() == protobuf.MEDIA:
        return protobuf.parse(data)
    if media.partition(";")[0].strip() not in ("", _JSON, _YAML, *PATCHES):
        raise errors.unsupported_media_type(
            f"the body of the request was in an unknown format - accepted media types include: {_JSON}, {_YAML}"
        )
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if media.partition(";")[0] not in (_YAML, APPLY):
            raise errors.bad_request(f"the object provided is unrecognized: {error}") from error
    try:
        # YAML's own dates are texts in Kubernetes.
        return orjson.loads(orjson.dumps(yaml.load(data, Loader=_Loader)))  # noqa: S506  a safe loader
    except (yaml.YAMLError, TypeError, orjson.JSONEncodeError) as error:
        raise errors.bad_request(f"error decoding YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML without timestamps."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


async def read_object(request: web.BaseRequest) -> Json:
    """The body as an object.

    Raises:
        ApiError: 400, 413 or 415.
    """
    body = parse(await request.read(), request.headers.get("Content-Type", _JSON))
    if not isinstance(body, dict):
        raise errors.bad_request("the body must be an object")
    return body


def answer(body: bytes, status: int = 200, *, warnings: list[str] | None = None, media: str = _JSON) -> web.Response:
    """An answer with JSON text, and a Warning header for each warning."""
    response = web.Response(
        body=body, status=status, headers={"Content-Type": media, "Cache-Control": "no-cache, private"}
    )
    for warning in warnings or ():
        quoted = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response


def answer_object(body: Json, status: int = 200, *, media: str = _JSON) -> web.Response:
    return answer(orjson.dumps(body), status, media=media)


def refuse(error: ApiError) -> web.Response:
    """The Status of an error."""
    response = answer_object(error.status(), error.code)
    if error.code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.code in (429, 504):
        response.headers["Retry-After"] = "1"
    return response


def success(kind_group: str, plural: str, name: str, uid: str) -> Json:
    """The Status of a delete that is done."""
    details = {"name": name, "group": kind_group, "kind": plural, "uid": uid}
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }  # fmt: skip
