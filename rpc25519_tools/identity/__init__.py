"""Keys, certificates and the identities that they prove."""
