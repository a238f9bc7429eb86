"""What a run leaves behind and shows: metrics, samples, W&B, console."""
