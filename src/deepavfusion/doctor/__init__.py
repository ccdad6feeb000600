"""What `src/doctor.py` looks at: each check returns what it found, or raises a `UserError` that says how to mend it."""
