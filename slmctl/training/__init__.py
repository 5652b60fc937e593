"""The loop that trains references, bases and arms alike: one loop, another selection."""
