"""Curves, pictures and pages of an evaluation; no model is needed here."""
