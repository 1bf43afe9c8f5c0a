"""Calls and streams: a pure core, and the driver that pumps it."""
