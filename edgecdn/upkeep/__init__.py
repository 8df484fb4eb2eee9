"""Keeping cache, settings and machine in order: what the commands beside `fetch` do."""
