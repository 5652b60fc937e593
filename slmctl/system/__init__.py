"""What lies below everything: files, storage, processes, signals, memory, threads, the console, errors."""
