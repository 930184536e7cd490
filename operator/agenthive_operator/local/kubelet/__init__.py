"""The process kubelet: runs a pod's containers as processes of this machine."""
