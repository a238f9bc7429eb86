"""Further places that show the records of a run: Weights & Biases, TensorBoard, trackio."""
