"""What workers that fill one capture leave for one another: who computes which block, and on which numerics."""
