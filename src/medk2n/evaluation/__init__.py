"""Paired comparison of predictors: rows, regions, tables. Predictors are passed in, never made here."""
