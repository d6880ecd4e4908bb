"""Training: configuration, solver, iteration, hooks, launcher."""
