"""Heads on the tokens of a frozen trunk: trained, chosen, evaluated and reported."""
