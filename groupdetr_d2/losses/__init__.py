"""Matching and losses: pure functions of tensors, and the criterion that weighs them."""
