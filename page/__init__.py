"""The page of a run: one HTML file that shows how its models were trained, its scores and pictures."""
