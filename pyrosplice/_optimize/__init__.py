"""Searches for many small problems at once, and why each of them ended; no model is known here."""
