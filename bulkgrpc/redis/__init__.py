"""Redis: what is known of live jobs, and who holds them. Everything here may vanish; correctness never stands on it."""
