"""Lightning callbacks: guard/ keeps a run alive and correct, show/ presents what it learns."""
