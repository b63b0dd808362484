"""What the fault campaign tries, a module for each surface."""
