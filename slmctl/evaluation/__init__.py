"""Held-out loss, tokens to reach the control, and generation tasks."""
