"""What comes after training, from the folder of a run alone."""
