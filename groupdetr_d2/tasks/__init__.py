"""The tasks of the models, one file a task: all that differs between them at their two ends."""
