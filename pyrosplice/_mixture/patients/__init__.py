"""Mixtures of patients: data sets, fits, selection and distances."""
