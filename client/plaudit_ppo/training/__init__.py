"""An iteration from scored rollouts to the update: experience, metrics, guards, update. Knows no files."""
