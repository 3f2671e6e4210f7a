"""What both scripts need: errors, flags, a run's folder, its models, pictures for people."""
