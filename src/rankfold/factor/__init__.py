"""Tensor kernels: pure functions of torch tensors, without modules or global state."""
