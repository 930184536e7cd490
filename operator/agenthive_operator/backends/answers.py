"""What answers of the API server mean: refusals, and whether it was the API server that answered."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import orjson

LONGEST_RETRY_AFTER: Final = 120.0
"""Seconds; a server that asks for more is asked again then."""


class ApiError(Exception):
    """The API server refused a request, or could not be asked.

    ``status`` is the HTTP status (0: no answer), ``reason`` the machine-readable word of the Status body and
    ``retry_after`` the seconds the server asked to wait, if it did. ``absent``: the API server itself says that there
    is no object of the name; a 404 of a load balancer, or of a server that does not serve the kind yet, is not that.
    """

    def __init__(
        self, status: int, reason: str, message: str, *, retry_after: float | None = None, absent: bool = False
    ) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else f"{reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.absent = absent

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed a little later without anybody changing anything."""
        return self.status in {0, 401, 408, 409, 410, 429} or self.status >= 500

    @property
    def of_ending_namespace(self) -> bool:
        """Whether nothing new is taken as the namespace is being deleted."""
        return self.status == 403 and "because it is being terminated" in self.message


class NotLeadingError(ApiError):
    """Nothing was sent: another replica may act by now, and this one must not."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "NotLeading", message)


def refusal(response: aiohttp.ClientResponse, data: bytes, what: str) -> ApiError:
    """The error of an answer of 400 or above; ``what`` was asked. Pure."""
    reason, message, absent = response.reason or "", data[:500].decode(errors="replace"), False
    try:
        status = orjson.loads(data)
    except orjson.JSONDecodeError:
        status = None  # a proxy's page rather than the API's Status: its text is the message
    if isinstance(status, dict) and status.get("kind") == "Status":
        reason, message = status.get("reason") or reason, status.get("message") or message
        named = (status.get("details") or {}).get("name")  # that a kind is not served names no object
        absent = response.status == 404 and reason == "NotFound" and bool(named)
    header = response.headers.get("Retry-After", "")
    retry_after = min(float(header), LONGEST_RETRY_AFTER) if header.isdecimal() else None
    return ApiError(response.status, reason, f"{what}: {message}", retry_after=retry_after, absent=absent)


def is_list(page: dict[str, Any]) -> bool:
    """Whether an answer is a list of objects, as the API server alone makes them; null is how an empty one comes."""
    items = page.get("items", ())
    if not isinstance(items, list | None):
        return False
    if not all(isinstance(item, dict) and "metadata" in item for item in items or ()):
        return False
    return bool((page.get("metadata") or {}).get("resourceVersion"))
