"""What a run shows of itself: nearest neighbours, pictures and sounds for TensorBoard, speed, data problems, the end."""
