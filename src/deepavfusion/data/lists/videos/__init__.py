"""A folder of videos: which there are, how long they are, what a CSV file says of them, and which are for tests."""
