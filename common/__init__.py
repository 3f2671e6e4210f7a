"""What train.py and sample.py share, and no model needs."""
