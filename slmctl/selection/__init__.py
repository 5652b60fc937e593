"""Which tokens are trained on: pure functions of tensors."""
