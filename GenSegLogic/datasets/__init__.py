"""Readers of public data sets, as their own download unpacks them."""
