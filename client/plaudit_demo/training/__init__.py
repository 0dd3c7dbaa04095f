"""The demo's models, and how each of them is trained."""
