"""The folders of a pipeline: where things lie, what they were made from, who works on them, how a run starts."""
