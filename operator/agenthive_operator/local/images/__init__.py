"""What stands for a container image on a machine without a container engine.

Redis, Valkey and PostgreSQL images mean the servers of the pip wheels, started as the images' entrypoints would start
them. Any other image means nothing: its container's command runs as it is, with this installation's programs first.
"""

from __future__ import annotations

from agenthive_operator.local.images.base import BIND, Image, ImageContext, Invocation, PlainImage
from agenthive_operator.local.images.postgres import PostgresImage
from agenthive_operator.local.images.valkey import ValkeyImage

__all__ = ["BIND", "Image", "ImageContext", "Invocation", "image_for", "repository"]

_KNOWN: dict[str, type[Image]] = {"valkey": ValkeyImage, "redis": ValkeyImage, "postgres": PostgresImage}


def repository(image: str) -> str:
    """The last part of an image's repository: ``valkey`` of ``registry:5000/valkey/valkey:8.1@sha256:…``."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def image_for(image: str) -> Image:
    """What runs in place of ``image``; whichever registry it comes from."""
    return _KNOWN.get(repository(image), PlainImage)()
