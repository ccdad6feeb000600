"""Where curves, pictures and sounds of a run go: TensorBoard, a CSV file, Weights & Biases, MLflow."""
