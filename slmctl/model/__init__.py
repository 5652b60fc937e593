"""Causal language models: loading, splitting into trunk and head, per-token losses, export."""
