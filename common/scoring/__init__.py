"""Judge trained models: scores of a run, held-out figures during training, grades of `explain`."""
