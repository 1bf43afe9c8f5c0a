"""Byte streams with a peer identity: plain TCP and TLS 1.3."""
