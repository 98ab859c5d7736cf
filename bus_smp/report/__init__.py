"""The page people send: reads runs and summaries, needs no model (never torch)."""
