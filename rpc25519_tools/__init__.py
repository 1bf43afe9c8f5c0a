"""Secure RPC and file transfer with your own ed25519 certificates.

Wire-compatible with the Go package rpc25519 v1.6.8. Importing this package loads
nothing heavy; the layers are described in ``docs/architecture.md``.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
