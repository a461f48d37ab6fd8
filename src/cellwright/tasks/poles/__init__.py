"""A cart with two poles: its motion, a controller in the loop, an environment of gymnasium."""
