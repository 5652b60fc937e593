"""The YAML of a pipeline: its sections, reading and checking it, sweeps over it."""
