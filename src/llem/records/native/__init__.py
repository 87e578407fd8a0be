"""Passes over the columns of records in C, where there is a compiler; numpy gives the same bits."""
