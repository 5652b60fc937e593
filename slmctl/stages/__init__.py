"""One file a stage: what each command does, on top of the rooms below."""
