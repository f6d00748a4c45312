"""What it takes that several processes compute one capture: equal numerics, and an executor that runs them."""
