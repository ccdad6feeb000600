"""What predict.py calls: a checkpoint opened by itself, and what it makes of a video of any length."""
