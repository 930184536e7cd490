"""A small Kubernetes API server in memory: what a laptop and a test need of one, answered as the real one answers."""

from .server import ApiServer, write_kubeconfig
from .tls import Tls, ensure_client, ensure_tls

__all__ = ["ApiServer", "Tls", "ensure_client", "ensure_tls", "write_kubeconfig"]
