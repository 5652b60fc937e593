"""All of results.json: what is measured of base, reference, arms and checkpoints, and what follows from it."""
