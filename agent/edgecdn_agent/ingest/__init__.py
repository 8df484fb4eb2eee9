"""Ingest: what nobody has comes over the line once, and is shared while it comes (docs/ingest.md)."""
