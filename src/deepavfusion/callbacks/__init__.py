"""What a run shows of itself: nearest neighbours, pictures and sounds, speed, data problems, the end."""
