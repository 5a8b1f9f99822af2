"""How much recording may cost: cadence, budget, back-pressure."""
