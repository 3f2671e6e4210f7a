"""What stands around the packages, in four rooms: run <- drawing <- scoring, and run <- training."""
