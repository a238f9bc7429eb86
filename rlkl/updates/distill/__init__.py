"""On-policy distillation: the policy learns from a teacher on its own samples; see README.md."""
