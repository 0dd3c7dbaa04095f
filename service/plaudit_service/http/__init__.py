"""Everything that answers HTTP. Knows what a request is, not how it is scored."""
