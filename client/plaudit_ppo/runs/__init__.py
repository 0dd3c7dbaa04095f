"""What a run leaves and shows: checkpoints, logs, summary, report, figures for Prometheus. Knows no formulas."""
