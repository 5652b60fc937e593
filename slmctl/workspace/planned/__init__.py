"""What a run would do with each stage, and what that takes; nothing is changed by looking."""
