"""A data science agent, and a demo that kills it half way through its work."""
