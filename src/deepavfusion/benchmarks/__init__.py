"""What `src/benchmark.py` measures. Nothing else imports this."""
