"""The idea, and what a published student carries with it: history, knots, heads, and the few-step pipeline."""
