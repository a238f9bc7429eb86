"""Recording a run in Weights & Biases."""
