"""What people look at, made from tables and image files alone (never torch)."""
