"""Models at work without training: prediction, augmentation, single groups, export, a page."""
