"""What the checkpoint says itself: golden texts, references, comparisons, reports. Knows no graphs."""
