"""What a careful reader of results.json would say before believing it."""
