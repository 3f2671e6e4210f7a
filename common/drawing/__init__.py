"""Draw with trained models, for sample.py and for scoring."""
