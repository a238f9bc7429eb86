"""Recording and showing a run: metrics, samples, W&B, console."""
