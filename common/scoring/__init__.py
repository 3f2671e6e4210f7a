"""Measure trained models: the shapes world, folders of pictures, figures of held-out pictures."""
