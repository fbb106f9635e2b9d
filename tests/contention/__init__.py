"""Many processes, loops and signals on one file at once: what is promised about that, attacked."""
