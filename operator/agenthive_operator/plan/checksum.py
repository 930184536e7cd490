"""Digests of data: what a pod uses is hashed into an annotation of its template, so that a change rolls it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

DIGEST_LENGTH = 32


def digest(data: Mapping[str, Any]) -> str:
    """A digest of JSON values that does not depend on the order of keys.

    Args:
        data: For a Secret or ConfigMap ``{"data": …, "binaryData": …}`` as the API server returns them.
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def object_digest(obj: Mapping[str, Any]) -> str:
    """The digest of a Secret's or ConfigMap's data: its metadata does not matter."""
    return digest({key: obj.get(key) or {} for key in ("data", "binaryData")})
