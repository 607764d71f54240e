"""Pure tensor kernels: torch in, torch out; no module, no model, no global state."""
