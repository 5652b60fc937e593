"""Shards of tokens and scores, their manifests, the join by position, and the order in which rows are read."""
