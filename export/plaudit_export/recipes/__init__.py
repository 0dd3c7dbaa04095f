"""How trainers make their texts: named rules, which one a checkpoint names, what the user says. Knows no models."""
