"""The forms of a rewrite: ways to find the rows that put one word in another's place."""
