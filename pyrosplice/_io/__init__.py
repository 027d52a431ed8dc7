"""Files of fitted models: one format, written whole or not at all, checked in every part, with nothing to execute."""
