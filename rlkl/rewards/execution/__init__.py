"""Running reward functions: in the loop, in threads, processes or actors."""
