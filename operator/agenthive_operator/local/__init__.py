"""The embedded control plane: API server, controllers, a kubelet of processes, servers from wheels."""
