"""Trees of files: what differs, what to send, and how it gets into place."""
