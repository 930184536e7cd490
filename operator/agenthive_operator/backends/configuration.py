"""Where the API server is, and how to log in there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from kubernetes.aio import client, config


async def load_configuration(context: str | None = None) -> client.Configuration:
    """Where the API server is and how to log in: KUBECONFIG (or ~/.kube/config), else the pod's service account.

    ``context``: of the kubeconfig; None means its current one.

    Raises ``kubernetes.aio.config.ConfigException`` when neither is there.
    """
    load: Any = config  # the package carries no annotations
    configuration = client.Configuration()
    if named := kubeconfig_path():
        try:
            await load.load_kube_config(
                config_file=named, context=context, client_configuration=configuration, persist_config=False
            )
        except yaml.YAMLError as error:  # as is a file that is being written
            raise config.ConfigException(f"{named}: {error}") from error
    else:
        load.load_incluster_config(client_configuration=configuration)
    configuration.proxy = configuration.proxy or proxy_of(configuration.host)
    # Otherwise the session looks for a proxy and into ~/.netrc at every request, in a thread each.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def proxy_of(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment want for ``url``."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


def kubeconfig_path() -> str:
    """The kubeconfig to use: that of KUBECONFIG, else ~/.kube/config outside of a pod; empty where there is none."""
    return os.environ.get("KUBECONFIG", "").strip() or _default_kubeconfig()


def _default_kubeconfig() -> str:
    path = Path("~/.kube/config").expanduser()
    return str(path) if "KUBERNETES_SERVICE_HOST" not in os.environ and path.is_file() else ""
