"""Object storage: reads and writes what lies below one address, and waits while the storage does not answer."""
