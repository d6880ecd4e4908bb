"""What Detectron2's evaluators lack."""
