"""Meta-World: the 50 manipulation skills of a Sawyer arm, stepped in batches."""
