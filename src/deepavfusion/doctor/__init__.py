"""The checks of `src/doctor.py`: each returns what it found, or raises a `UserError` that says how to fix it."""
