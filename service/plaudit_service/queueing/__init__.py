"""What waits for an engine, and what goes together. Knows no text and no HTTP."""
