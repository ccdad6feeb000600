"""How this process was started and is stopped: by which launcher, with how many others, on how many cores."""
